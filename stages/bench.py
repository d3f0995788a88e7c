"""Time the verified programs by MLPerf LoadGen's rules, beside what others would have exported.

Every program runs in a process of its own, which is started anew in every round; the rounds go through all programs, so
that a noisy minute meets them all. Inputs are drawn from recorded observations, outputs are checked while they are
timed, and no program is called faster than another inside the noise. A result is VALID, or INVALID with the reason.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from play import read_manifest
from stages.benchmark import programs, session
from stages.benchmark.loadgen import PERCENTILES, needed_queries, percentile_of
from stages.benchmark.ratios import Ratio, compare, fastest
from stages.benchmark.rollouts import ROLLOUTS, measure_rollout
from stages.common import params, runtimes
from stages.common.errors import UserError, run
from stages.common.files import write_json, write_text
from stages.common.processes import processes

# How many times as fast the first is as the second: what exporting this way has bought.
PAIRS = (
    ("onnx", "eager"),
    ("aoti", "eager"),
    ("onnx", "pt2"),
    ("onnx", "aoti"),
    ("native", "onnx"),
    ("native", "aoti"),
    ("onnx", programs.NAIVE),
    ("onnx", "tutorial_onnx"),
    ("aoti", "tutorial_aoti"),
    ("onnx", "tutorial_eager"),
    ("aoti", "tutorial_eager"),
)
DEADLINES = {"15hz": 1 / 15, "60hz": 1 / 60}  # seconds
REPEATED = 0.9  # of a fresh input's time: what answers a repeated one faster has kept its answer
COLUMNS = ("program", "valid", "cold_start_ms", "p50_us", "p90_us", "p99_us", "p99_9_us", "peak_memory_mb")


def prepare(policy: str, folder: Path, settings: params.Bench, tolerance: float, emulator: int) -> None:
    """Write the workload that every session reads: decisions of a recorded episode, and what eager makes of them."""
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


@dataclass
class Measured:
    """What the rounds found of one program.

    Attributes:
        cold_starts: milliseconds from the start of its process to its first action, one a round.
        times: nanoseconds of every query by scenario, an array a round.
        offline: rows a second by batch size, one a round.
        peak_memory: KiB of its process, one a round.
        failures: outputs that are not eager's.
    """

    cold_starts: list[float] = field(default_factory=list)
    times: dict[str, list[npt.NDArray[np.int64]]] = field(default_factory=dict)
    offline: dict[str, list[float]] = field(default_factory=dict)
    peak_memory: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run_session(self, policy: str, program: str, folder: Path, round_: int, threads: int) -> None:
        """Measure once more.

        Raises:
            UserError: the program does not run.
        """
        command = [sys.executable, "-m", "stages.benchmark.session", policy, program, str(folder), str(round_)]
        start = time.monotonic()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise UserError(f"{program} of {policy} cannot be measured: {reason}")
        facts = json.loads((folder / f"{program}-{round_}.json").read_text())
        self.cold_starts.append((facts["first_action"] - start) * 1e3)
        self.peak_memory.append(facts["peak_memory_kib"])
        self.failures += facts["failures"]
        for size, speed in facts["offline"].items():
            self.offline.setdefault(size, []).append(speed)
        for name, times in load_file(folder / f"{program}-{round_}.safetensors").items():
            self.times.setdefault(name, []).append(times)

    def medians(self, scenario: str = "single") -> list[float]:
        """Microseconds, one a round."""
        return [float(np.median(times)) / 1e3 for times in self.times[scenario]]

    def percentiles(self, scenario: str) -> dict[str, float | None]:
        """Microseconds that are not exceeded, with LoadGen's confidence; none of too few queries."""
        pooled = np.concatenate(self.times[scenario])
        found = {name: percentile_of(pooled, share) for name, share in PERCENTILES.items()}
        return {f"{name}_us": None if value is None else round(value / 1e3, 1) for name, value in found.items()}

    def complaint(self, noise: float) -> str | None:
        """Why the result is INVALID, if it is."""
        rounds, queries = self.medians(), sum(map(len, self.times["single"]))
        if self.failures:
            return f"wrong outputs: {self.failures[0]}"
        if queries < (needed := needed_queries(PERCENTILES["p99_9"])):
            return f"too few queries: {queries}, p99.9 needs {needed}"
        if max(rounds) > (1 + noise) * min(rounds):
            return f"too noisy: p50 was {min(rounds):.0f} to {max(rounds):.0f} us over the rounds"
        fresh, repeated = (float(np.median(np.concatenate(self.times[name]))) for name in ("fresh", "repeated"))
        if repeated < REPEATED * fresh:
            return f"a repeated input takes {repeated / 1e3:.0f} us, a fresh one {fresh / 1e3:.0f}: answers are kept"
        return None

    def describe(self, noise: float) -> dict[str, Any]:
        complaint, beside = self.complaint(noise), np.concatenate(self.times["beside"]) / 1e9
        return {
            "valid": complaint is None,
            "complaint": complaint or "",
            "cold_start_ms": round(median(self.cold_starts), 1),
            **self.percentiles("single"),
            "p50_us_of_rounds": [round(value, 1) for value in self.medians()],
            "queries": sum(map(len, self.times["single"])),
            "multi_stream": self.percentiles("multi"),
            "late": {name: float((beside > seconds).mean()) for name, seconds in DEADLINES.items()},
            "late_queries": len(beside),
            "peak_memory_mb": round(median(self.peak_memory) / 1024, 1),
        }


def measure(
    policy: str, settings: params.Bench, tolerance: float
) -> tuple[dict[str, Measured], dict[str, list[float]]]:
    """Go through all programs, and all rollouts, once a round."""
    names = programs.names(read_manifest(Path("models", policy)))
    measured = {name: Measured() for name in names}
    speeds: dict[str, list[float]] = {what: [] for what in ROLLOUTS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        emulator = stack.enter_context(emulator_beside(policy))
        with processes(1) as executor:
            executor.submit(prepare, policy, folder, settings, tolerance, emulator).result()
        rolling = {what: stack.enter_context(processes(1)) for what in ROLLOUTS}
        for round_ in range(settings.rounds):
            for name in names:
                measured[name].run_session(policy, name, folder, round_, settings.threads)
            for what, speed in speeds.items():
                speed.append(rolling[what].submit(measure_rollout, policy, what, settings).result())
            print(f"bench {policy}  round {round_ + 1}/{settings.rounds}", flush=True)
    return measured, speeds


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
