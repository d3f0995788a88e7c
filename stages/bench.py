"""Time the verified programs by MLPerf LoadGen's rules, beside what others would have exported.

Every program runs in a process of its own; many short rounds go through all of them, so that a noisy minute meets them
all. Inputs are drawn from recorded observations, outputs are checked while they are timed, and no program is called
faster than another inside the noise. A result is VALID, or INVALID with the reason.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors.numpy import save_file

from play import read_manifest
from stages.benchmark import programs, report, session
from stages.benchmark.measured import Measured, Session
from stages.benchmark.rollouts import ROLLOUTS, measure_rollout
from stages.benchmark.roofline import Peak, Work, count_work, measure_peak
from stages.common import params, runtimes
from stages.common.errors import run
from stages.common.files import write_json
from stages.common.processes import processes


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


def measure(policy: str, settings: params.Bench, tolerance: float) -> report.Findings:
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
    return report.Findings(measured, speeds, work, peak)


def bench(policy: str) -> None:
    everything = params.load()
    runtimes.read_bundle(policy)
    found = measure(policy, everything.bench, everything.parity_check.tolerance)
    content = report.describe(policy, found, everything.bench.noise)
    folder = Path("results", policy)
    write_json(folder / "bench.json", content)
    report.write_tables(folder, content, found)
    report.print_tables(policy, content)


if __name__ == "__main__":
    run(bench, __doc__)
