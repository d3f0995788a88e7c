"""Time the verified programs by MLPerf LoadGen's rules, beside what others would have exported.

Every program runs in a process of its own; many short rounds go through all of them, so that a noisy minute meets them
all. Inputs are drawn from recorded observations, outputs are checked while they are
timed, and no program is called faster than another inside the noise. A result is VALID, or INVALID with the reason.
"""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from safetensors.numpy import save_file

from play import read_manifest
from stages.benchmark import programs, session
from stages.benchmark.measured import Measured, Session
from stages.benchmark.ratios import Ratio, compare, fastest
from stages.benchmark.rollouts import ROLLOUTS, measure_rollout
from stages.benchmark.roofline import Peak, Work, count_work, measure_peak
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
    *(("onnx", name) for name in programs.NAIVE),
    ("onnx", "tutorial_onnx"),
    ("aoti", "tutorial_aoti"),
    ("onnx", "tutorial_eager"),
    ("aoti", "tutorial_eager"),
)
COLUMNS = ("program", "valid", "cold_start_ms", "p50_us", "p90_us", "p99_us", "p99_9_us", "peak_memory_mb")


def prepare(policy: str, folder: Path, settings: params.Bench, tolerance: float, emulator: int) -> tuple[Work, Peak]:
    """Write the workload that every session reads: decisions of a recorded episode, and what eager makes of them.

    Returns:
        What a decision needs, and what the machine could do.
    """
    from stages.parity.situations import pick_by_name

    manifest = read_manifest(Path("models", policy))
    inputs = pick_by_name(policy, settings.samples).inputs
    save_file(inputs, folder / session.INPUTS)
    save_file(runtimes.load_by_name(policy, "eager", settings.threads)(inputs), folder / session.EXPECTED)
    if programs.TUTORIAL[0] in programs.names(manifest):
        tutorial = programs.load(policy, programs.TUTORIAL[0], settings.threads)
        save_file(tutorial(inputs), folder / session.TUTORIAL_EXPECTED)
    content = settings.model_dump(exclude={"noise"})
    content |= {"tolerance": tolerance, "emulator": emulator, "states": [s["output"] for s in manifest["states"]]}
    (folder / session.SETTINGS).write_text(json.dumps(content))
    return count_work(policy, session.rows_of(inputs, slice(1)), settings.threads), measure_peak(settings.threads)


@contextmanager
def emulator_beside(policy: str) -> Iterator[int]:
    """A process that plays the environment without a policy, and pauses until it is told to go on; its id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.benchmark.rollouts", policy],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.send_signal(signal.SIGSTOP)
        yield process.pid
    finally:
        process.kill()
        process.wait()


class Findings(NamedTuple):
    """What was measured of all programs, of rollouts (decisions a second, one a round), and of the machine."""

    programs: dict[str, Measured]
    rollouts: dict[str, list[float]]
    work: Work
    peak: Peak


def measure(policy: str, settings: params.Bench, tolerance: float) -> Findings:
    """Go through all programs, and all rollouts, once a round. The first round only warms them up."""
    names = programs.names(read_manifest(Path("models", policy)))
    measured = {name: Measured() for name in names}
    speeds: dict[str, list[float]] = {what: [] for what in ROLLOUTS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        emulator = stack.enter_context(emulator_beside(policy))
        with processes(1) as executor:
            work, peak = executor.submit(prepare, policy, folder, settings, tolerance, emulator).result()
        for _ in range(settings.cold_starts - 1):
            for name in names:
                with Session(policy, name, folder, settings.threads) as session:
                    measured[name].cold_starts.append(session.cold_start)
        sessions = {name: stack.enter_context(Session(policy, name, folder, settings.threads)) for name in names}
        rolling = {what: stack.enter_context(processes(1)) for what in ROLLOUTS}
        for name, session in sessions.items():
            measured[name].cold_starts.append(session.cold_start)
            facts, _ = session.measure(0)
            measured[name].peak_memory = facts["peak_memory_kib"]
        for what in ROLLOUTS:
            rolling[what].submit(measure_rollout, policy, what, settings).result()
        for round_ in range(1, settings.rounds + 1):
            for name, session in sessions.items():
                measured[name].add(*session.measure(round_))
            for what, speed in speeds.items():
                speed.append(rolling[what].submit(measure_rollout, policy, what, settings).result())
            print(f"bench {policy}  round {round_}/{settings.rounds}", flush=True)
    return Findings(measured, speeds, work, peak)


def draw_roofline(offline: list[dict[str, Any]], work: Work, peak: Peak) -> list[dict[str, Any]]:
    """Every program's operations a second over its operations a byte, and the roof above them."""
    intensities = [work.intensity(row["batch"]) for row in offline]
    speeds = [work.flops * row["rows_per_s"] for row in offline]
    points = list(zip([row["program"] for row in offline], intensities, speeds, strict=True))
    ends = (min(intensities) / 2, peak.flops / peak.bytes, max(2 * max(intensities), 2 * peak.flops / peak.bytes))
    points += [("roof", intensity, peak.roof(intensity)) for intensity in ends]
    return [
        {"program": program, "flop_per_byte": round(intensity, 3), "gflop_per_s": round(speed / 1e9, 3)}
        for program, intensity, speed in points
    ]


def summarise(samples: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(samples), 1), "min": round(min(samples), 1), "max": round(max(samples), 1)}


def bench(policy: str) -> None:
    everything = params.load()
    settings = everything.bench
    runtimes.read_bundle(policy)
    measured, speeds, work, peak = measure(policy, settings, everything.parity_check.tolerance)
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
        "machine_peak": {"gflop_per_s": round(peak.flops / 1e9, 1), "copied_gb_per_s": round(peak.bytes / 1e9, 1)},
        "flop_per_decision": work.flops,
    }
    folder = Path("results", policy)
    write_json(folder / "bench.json", report)
    write_table(folder / "latency.csv", COLUMNS, [{"program": name} | entry for name, entry in described.items()])
    offline = [
        {"program": name, "batch": int(size), "rows_per_s": speed["median"]}
        for name, sizes in report["offline_rows_per_s"].items()
        for size, speed in sizes.items()
    ]
    write_table(folder / "offline.csv", ("program", "batch", "rows_per_s"), offline)
    write_table(
        folder / "roofline.csv", ("program", "flop_per_byte", "gflop_per_s"), draw_roofline(offline, work, peak)
    )
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
