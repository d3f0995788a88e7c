"""Time the verified programs by MLPerf LoadGen's rules, beside what others would have exported.

Every program runs in a process of its own; many short rounds go through all of them, so that a noisy minute meets them
all. Inputs are drawn from recorded observations, outputs are checked while they are
timed, and no program is called faster than another inside the noise. A result is VALID, or INVALID with the reason.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from play import read_manifest
from stages.benchmark import programs
from stages.benchmark.measured import Measured
from stages.benchmark.ratios import Ratio, compare, fastest
from stages.benchmark.rollouts import ROLLOUTS, measure_rollout
from stages.benchmark.workload import sessions
from stages.common import params, runtimes
from stages.common.errors import run
from stages.common.files import write_json, write_text
from stages.common.processes import processes

# How many times as fast the first is as the second: what exporting this way has bought.
PAIRS = (
    ("onnx", "eager"),
    ("aoti", "eager"),
    ("onnx", "pt2"),
    ("onnx", "aoti"),
    ("onnx", programs.NAIVE),
    ("onnx", "tutorial_onnx"),
    ("aoti", "tutorial_aoti"),
    ("onnx", "tutorial_eager"),
    ("aoti", "tutorial_eager"),
)
COLUMNS = ("program", "valid", "cold_start_ms", "p50_us", "p90_us", "p99_us", "p99_9_us", "peak_memory_mb")


def measure(
    policy: str, settings: params.Bench, tolerance: float
) -> tuple[dict[str, Measured], dict[str, list[float]]]:
    """Go through all programs, and all rollouts, once a round. The first round only warms them up."""
    names = programs.names(read_manifest(Path("models", policy)))
    speeds: dict[str, list[float]] = {what: [] for what in ROLLOUTS}
    with sessions(policy, names, settings, tolerance) as started, ExitStack() as stack:
        rolling = {what: stack.enter_context(processes(1)) for what in ROLLOUTS}
        for what in ROLLOUTS:
            rolling[what].submit(measure_rollout, policy, what, settings).result()
        for round_ in range(1, settings.rounds + 1):
            started.measure(round_)
            for what, speed in speeds.items():
                speed.append(rolling[what].submit(measure_rollout, policy, what, settings).result())
            print(f"bench {policy}  round {round_}/{settings.rounds}", flush=True)
    return started.measured, speeds


def summarise(samples: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(samples), 1), "min": round(min(samples), 1), "max": round(max(samples), 1)}


def bench(policy: str) -> None:
    everything = params.load()
    settings = everything.bench
    runtimes.read_bundle(policy)
    measured, speeds = measure(policy, settings, everything.parity_check.tolerance)
    ratios = {
        f"{one}_to_{other}": compare(measured[one].medians(), measured[other].medians())
        for one, other in PAIRS
        if other in measured
    }
    ratios["player_to_emulator"] = compare(speeds["emulator"], speeds["player"])
    described = {name: one.describe(settings.noise) for name, one in measured.items()}
    for name, entry in described.items():
        if (size := programs.file_bytes(policy, name)) is not None:
            entry["file_bytes"] = size
    report: dict[str, Any] = {
        "programs": described,
        "fastest": fastest({name: measured[name].medians() for name in programs.OWN}),
        "times_as_fast": {name: ratio.as_dict() for name, ratio in ratios.items()},
        "rollout_decisions_per_s": {what: summarise(speed) for what, speed in speeds.items()},
        "offline_rows_per_s": {
            name: {size: summarise(speed) for size, speed in measured[name].offline.items()}
            for name in programs.OFFLINE
        },
    }
    folder = Path("results", policy)
    write_json(folder / "bench.json", report)
    write_table(folder / "latency.csv", COLUMNS, [{"program": name} | entry for name, entry in described.items()])
    rows = [
        {"program": name, "log2_batch": round(math.log2(int(size)), 2), "rows_per_s": speed["median"]}
        for name, sizes in report["offline_rows_per_s"].items()
        for size, speed in sizes.items()
    ]
    write_table(folder / "offline.csv", ("program", "log2_batch", "rows_per_s"), rows)
    print_tables(policy, report, ratios)


def write_table(path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def print_tables(policy: str, report: dict[str, Any], ratios: dict[str, Ratio]) -> None:
    columns = ("cold_start_ms", "p50_us", "p90_us", "p99_us", "p99_9_us", "peak_memory_mb")
    print(f"\n{policy}: raw observation to action, one at a time")
    print(f"{'program':<16}" + "".join(f"{column.removesuffix('_us'):>15}" for column in columns) + "  verdict")
    for name, entry in report["programs"].items():
        cells = "".join(f"{'-' if entry[column] is None else format(entry[column], '.0f'):>15}" for column in columns)
        print(f"{name:<16}{cells}  {'VALID' if entry['valid'] else 'INVALID: ' + entry['complaint']}")
    print(f"fastest: {report['fastest'] or 'the noise does not tell'}")
    print(f"\n{'times as fast':<28}{'ratio':>7}   95 % interval")
    for name, ratio in ratios.items():
        print(f"{name.replace('_to_', ' to '):<28}{ratio.ratio:>7.2f}   {ratio.low:.2f} to {ratio.high:.2f}")
    print(f"\n{'rollout':<12}{'decisions/s':>12}   over the rounds")
    for what, speed in report["rollout_decisions_per_s"].items():
        print(f"{what:<12}{speed['median']:>12,.0f}   {speed['min']:,.0f} to {speed['max']:,.0f}")


if __name__ == "__main__":
    run(bench, __doc__)
