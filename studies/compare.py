"""Time the verified programs next to what others would have exported: naively, and as TorchRL's tutorial does."""

from __future__ import annotations

import math
from typing import Any

from policy_export.backends import runtimes
from policy_export.benchmark import programs
from policy_export.benchmark.measured import Measured
from policy_export.benchmark.programs import Candidate
from policy_export.benchmark.ratios import compare as compare_speeds
from policy_export.benchmark.workload import Plan, measure_candidates
from policy_export.config import params
from policy_export.stage.command import run
from policy_export.stage.files import write_json, write_table
from studies import settings, tutorial
from studies.export_naive import NAIVE, naive_path

SCREEN = [210, 160, 3]  # that the tutorial's policy takes
COLUMNS = ("program", "valid", "cold_start_ms", "p50_us", "p90_us", "p99_us", "peak_memory_mb")


def find_baselines(
    policy: str, manifest: dict[str, Any], study: settings.Compare, threads: int
) -> dict[str, Candidate]:
    """Return the programs that a policy is compared with; the tutorial's are only for screens like Pong's."""
    factor = study.naive_tolerance_factor
    found = {
        name: Candidate(str(naive_path(policy, name)), threads, tolerance_factor=factor, baseline=True)
        for name in NAIVE
    }
    if SCREEN in [spec["shape"][1:] for spec in manifest["inputs"]]:
        paths = {tutorial.EAGER: ""} | {name: str(settings.BASELINES / file) for name, file in tutorial.FILES.items()}
        loader = f"{tutorial.__name__}:{tutorial.load_baseline.__name__}"
        found |= {
            name: Candidate(path, threads, loader=loader, reference=tutorial.EAGER, baseline=True)
            for name, path in paths.items()
        }
    return found


def describe(
    policy: str, measured: dict[str, Measured], baselines: dict[str, Candidate], bench: params.Bench
) -> dict[str, Any]:
    """Return every program's times, and how many times as fast each of the policy's own is as each baseline."""
    described = {name: one.describe(bench.noise) for name, one in measured.items()}
    for name, entry in described.items():
        if (size := programs.file_bytes(policy, name, baselines)) is not None:
            entry["file_bytes"] = size
    ratios = {
        f"{name}_to_{baseline}": compare_speeds(measured[name].medians(), measured[baseline].medians()).as_dict()
        for name in measured
        if name not in baselines
        for baseline in baselines
    }
    return {"threads": bench.threads, "programs": described, "times_as_fast": ratios}


def compare(policy: str) -> None:
    everything, study = params.load(), settings.load().compare
    manifest, _ = runtimes.read_model(policy)
    baselines = find_baselines(policy, manifest, study, everything.bench.threads)
    names = [name for name in programs.names(manifest) if name != runtimes.EAGER]
    plan = Plan(
        [*names, *baselines],
        everything.bench,
        everything.parity_check.tolerance,
        baselines,
        baseline_queries=study.baseline_queries,
    )
    content = describe(policy, measure_candidates(policy, plan), baselines, everything.bench)
    folder = settings.RESULTS / policy
    write_json(folder / "comparison.json", content)
    rows = [{"program": name} | entry for name, entry in content["programs"].items()]
    write_table(folder / "comparison.csv", COLUMNS, rows)
    for name, ratio in content["times_as_fast"].items():
        interval = f"{ratio['low']:.2f} to {ratio['high'] or math.inf:.2f}"
        print(f"compare {policy}  {name.replace('_to_', ' to '):<48}{ratio['ratio']:>7.2f}   {interval}", flush=True)


if __name__ == "__main__":
    run(compare, __doc__)
