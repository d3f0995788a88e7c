"""Measure the settings of ONNX Runtime and AOTInductor, one changed at a time, next to those in params.yaml.

Its table says whether the chosen settings, ``manifest.onnx_session`` and
``compile_aoti``, are the best ones on this machine. It works on the bundles that ``dvc repro`` has built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import onnxruntime

from policy_export.backends import registry, runtimes
from policy_export.benchmark.measured import Measured
from policy_export.benchmark.programs import Candidate
from policy_export.benchmark.ratios import Ratio, compare
from policy_export.benchmark.workload import Plan, measure_candidates
from policy_export.config import params
from policy_export.device.onnx_session import session_options
from policy_export.lowering.aoti import compile_to
from policy_export.program.archive import load_program
from policy_export.stage.command import run
from policy_export.stage.files import write_table
from policy_export.stage.processes import processes
from studies.settings import RESULTS

# The values that each setting may have; where several are changed, they only matter together.
ONNX_SESSION: dict[str, tuple[Any, ...]] = {
    "threads": (1, 2),
    "spinning": (False, True),
    "memory_pattern": (False, True),
    "arena": (False, True),
    "optimization": ("none", "basic", "extended", "layout", "all"),
}
ONNX_TOGETHER = ({"threads": 2, "spinning": True}, {"memory_pattern": False, "arena": False})
COMPILE_AOTI: dict[str, tuple[Any, ...]] = {
    "freezing": (False, True),
    "max_autotune": (False, True),
    "gemm_backends": (["ATEN"], ["CPP"], ["ATEN", "CPP"]),
    "convolutions_as_products": (False, True),
}
CHOSEN, AGAIN = "chosen", "chosen_again"  # measured twice: what the second differs by is noise
SAVED = "saved_graph"
MEASURED = ("p50_us", "p99_us", "cold_start_ms", "load_ms", "file_bytes")
COLUMNS = ("runtime", "setting", *MEASURED, "times_as_fast", "low", "high", "finding")


class Change(NamedTuple):
    """Settings that differ from the chosen ones, and their names in files and in the table."""

    name: str
    text: str
    settings: dict[str, Any]


def changes(
    chosen: dict[str, Any], values: dict[str, tuple[Any, ...]], together: Sequence[dict[str, Any]] = ()
) -> Iterator[Change]:
    """Yield every other value of every setting, one at a time, and those that are to be changed together."""
    single = ({key: value} for key, allowed in values.items() for value in allowed if value != chosen[key])
    for changed in [*single, *(several for several in together if not several.items() <= chosen.items())]:
        words = [
            f"{key} {'+'.join(value) if isinstance(value, list) else str(value).lower()}"
            for key, value in changed.items()
        ]
        yield Change("-".join(words).replace(" ", "_"), ", ".join(words), changed)


def save_optimized(program: Path, settings: dict[str, Any], path: Path) -> Candidate:
    """Save the graph as ONNX Runtime optimises it for this processor, so that loading does not have to do it again."""
    options = session_options(settings)
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # it warns that the file is for this processor only
    onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    return Candidate(str(path), settings["threads"], settings | {"optimization": "none"})


def onnx_candidates(policy: str, chosen: dict[str, Any], folder: Path) -> dict[str, tuple[str, Candidate]]:
    """Return each candidate for ONNX Runtime's settings by name, with what the table calls it."""
    program = Path("models", policy, registry.backends()["onnx"].file)
    found = {
        name: (text, Candidate(str(program), chosen["threads"], chosen))
        for name, text in ((CHOSEN, "as chosen"), (AGAIN, "as chosen, again"))
    }
    for change in changes(chosen, ONNX_SESSION, ONNX_TOGETHER):
        settings = chosen | change.settings
        found[change.name] = change.text, Candidate(str(program), settings["threads"], settings)
    found[SAVED] = "optimised graph saved", save_optimized(program, chosen, folder / f"{SAVED}.onnx")
    return found


def compile_candidate(policy: str, settings: params.CompileAoti, path: Path) -> None:
    compile_to(path, *load_program(Path("models", policy, "policy.pt2"), policy), settings)


def aoti_candidates(policy: str, chosen: params.CompileAoti, folder: Path) -> dict[str, tuple[str, Candidate]]:
    """Return the same for AOTInductor's settings, each compiled."""
    program = str(Path("models", policy, registry.backends()["aoti"].file))
    found = {
        name: (text, Candidate(program, chosen.threads))
        for name, text in ((CHOSEN, "as chosen"), (AGAIN, "as chosen, again"))
    }
    with processes(2) as executor:
        compiling = []
        for change in changes(chosen.model_dump(), COMPILE_AOTI):
            path = folder / f"{change.name}.aoti.pt2"
            settings = chosen.model_copy(update=change.settings)
            compiling.append(executor.submit(compile_candidate, policy, settings, path))
            found[change.name] = change.text, Candidate(str(path), chosen.threads)
        for done in compiling:
            done.result()
    return found


def describe_finding(found: Measured, ratio: Ratio) -> str:
    """Describe a setting by its speed, as a multiple of the chosen setting's."""
    if found.failures:
        return f"wrong outputs: {found.failures[0]}"
    if ratio.faster:
        return "faster"
    return "slower" if ratio.slower else "inside the noise"


def tabulate(
    runtime: str, candidates: dict[str, tuple[str, Candidate]], measured: dict[str, Measured], least_difference: float
) -> list[dict[str, Any]]:
    """Return one row per candidate."""
    rows = []
    for name, (text, candidate) in candidates.items():
        found, percentiles = measured[name], measured[name].percentiles("single")
        ratio = compare(found.medians(), measured[CHOSEN].medians(), least_difference)
        rows.append(
            {
                "runtime": runtime,
                "setting": text,
                "p50_us": percentiles["p50_us"],
                "p99_us": percentiles["p99_us"],
                "cold_start_ms": round(median(found.cold_starts), 1),
                "load_ms": round(median(found.loading), 1),
                "file_bytes": Path(candidate.path).stat().st_size,
                "times_as_fast": round(ratio.ratio, 3),
                "low": round(ratio.low, 3),
                "high": round(ratio.high, 3),
                "finding": CHOSEN if name == CHOSEN else describe_finding(found, ratio),
            }
        )
    return rows


def search(policy: str, runtime: str, everything: params.Params) -> list[dict[str, Any]]:
    """Return the table of one runtime, ``onnx`` or ``aoti``."""
    with tempfile.TemporaryDirectory() as folder:
        if runtime == "onnx":
            candidates = onnx_candidates(policy, everything.manifest.onnx_session.model_dump(), Path(folder))
        else:
            candidates = aoti_candidates(policy, everything.compile_aoti, Path(folder))
        print(f"search_settings {policy}  {runtime}: {len(candidates)} settings in turns", flush=True)
        programs = {name: candidate for name, (_, candidate) in candidates.items()}
        plan = Plan(list(programs), everything.bench, everything.parity_check.tolerance, programs)
        return tabulate(runtime, candidates, measure_candidates(policy, plan), everything.bench.least_difference)


def search_settings(policy: str) -> None:
    everything = params.load()
    runtimes.read_model(policy)
    rows = search(policy, "onnx", everything) + search(policy, "aoti", everything)
    write_table(RESULTS / policy / "settings.csv", COLUMNS, rows)
    heads = ("p50_us", "p99_us", "cold_ms", "load_ms", "times")
    print(f"\n{policy:<40}" + "".join(f"{head:>9}" for head in heads) + "  95 % interval")
    for row in rows:
        print(
            f"{row['runtime']:<6}{row['setting']:<34}{row['p50_us'] or '-':>9}{row['p99_us'] or '-':>9}"
            f"{row['cold_start_ms']:>9}{row['load_ms']:>9}{row['times_as_fast']:>9}  "
            f"{row['low']} to {row['high']}  {row['finding']}"
        )


if __name__ == "__main__":
    run(search_settings, __doc__)
