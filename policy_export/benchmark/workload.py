"""Processes that hold one program each, started with the queries to measure them with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from policy_export.backends import runtimes
from policy_export.backends.registry import quickest
from policy_export.benchmark import rollouts, session
from policy_export.benchmark.measured import Measured, Session, stream
from policy_export.benchmark.programs import Candidate
from policy_export.config import params
from policy_export.device.arrays import Arrays
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds, read_manifest
from policy_export.stage.files import replacing
from policy_export.stage.processes import processes


@dataclass(frozen=True)
class Plan:
    """What to measure of a policy, and how.

    Attributes:
        names: names of programs and candidates.
        settings: settings of the measurement.
        tolerance: largest absolute difference of an output.
        candidates: by name.
        in_batches: names of those that are also timed in batches of all sizes.
        reference: the program with the right answers; none for the policy's quickest one, which needs no PyTorch.
        baseline_queries: number of one-row queries per round, for candidates that are baselines.
    """

    names: Sequence[str]
    settings: params.Bench
    tolerance: float
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    in_batches: Sequence[str] = ()
    reference: str | None = None
    baseline_queries: int = 0


SHORT = 1000  # milliseconds: what starts faster is started again and again, as its start varies more


def prepare(policy: str, folder: Path, plan: Plan, emulator: int) -> None:
    """Write the workload that every session reads: decisions of a recorded episode, and the right answers.

    Args:
        policy: its name.
        folder: to write to.
        plan: what is measured, and how.
        emulator: id of the process that plays at the same time.
    """
    from policy_export.parity.recorded_inputs import pick_by_name

    manifest, settings = read_manifest(Path("models", policy)), plan.settings
    inputs = pick_by_name(policy, quickest(manifest), settings.samples).inputs
    save(folder / session.INPUTS, inputs)
    right = runtimes.load_by_name(policy, plan.reference or quickest(manifest), settings.threads)(inputs)
    save(folder / session.expected_file(None), right)
    for name in {candidate.reference for candidate in plan.candidates.values()} - {None}:
        save(folder / session.expected_file(name), plan.candidates[str(name)].load()(inputs))
    content = settings.model_dump(exclude={"noise"}) | {
        "tolerance": plan.tolerance,
        "emulator": emulator,
        "states": [state["output"] for state in manifest["states"]],
        "kinds": action_kinds(manifest),
        "candidates": {name: asdict(candidate) for name, candidate in plan.candidates.items()},
        "in_batches": list(plan.in_batches),
        "baseline_queries": plan.baseline_queries,
    }
    (folder / session.SETTINGS).write_text(json.dumps(content))


def save(path: Path, arrays: Arrays) -> None:
    with replacing(path) as temporary:
        save_file(arrays, temporary)


@contextmanager
def running_emulator(policy: str) -> Iterator[int]:
    """Start a process that plays without a policy and pauses until it is told to continue; yield its id.

    Raises:
        UserError: it does not play, or ends too early.
    """
    command = [sys.executable, "-m", rollouts.__name__, policy, str(os.getpid())]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    try:
        if stream(process.stdout).readline().strip() != rollouts.PLAYING:
            raise UserError(f"the environment of {policy} cannot be played while its programs are timed")
        process.send_signal(signal.SIGSTOP)
        yield process.pid
        if process.poll() is not None:
            raise UserError(f"the environment of {policy}, which is played while its programs are timed, has ended")
    finally:
        process.kill()
        process.communicate()


@dataclass
class Sessions:
    """Processes and their results, both by the names of the programs."""

    running: dict[str, Session]
    measured: dict[str, Measured]

    def measure(self, number: int) -> None:
        """Measure a round: one program after the other, in an order that the round's number seeds."""
        for name in np.random.default_rng(number).permutation(list(self.running)).tolist():
            self.measured[name].add(*self.running[name].measure(number))


@contextmanager
def prepared(policy: str, plan: Plan) -> Iterator[Path]:
    """Prepare a folder with the workload, and an environment that can be played at the same time."""
    with tempfile.TemporaryDirectory() as folder, running_emulator(policy) as emulator:
        with processes(1, fresh=True) as executor:
            executor.submit(prepare, policy, Path(folder), plan, emulator).result()
        yield Path(folder)


@contextmanager
def sessions(policy: str, folder: Path, plan: Plan) -> Iterator[Sessions]:
    """Start every program (repeatedly if it takes less than a second), and warm all up with a parallel round.

    Args:
        policy: its name.
        folder: the one from :func:`prepared`.
        plan: what is measured, and how.

    Raises:
        UserError: a program does not run.
    """
    threads = {name: candidate.threads for name, candidate in plan.candidates.items()}
    baselines = {name for name, candidate in plan.candidates.items() if candidate.baseline}
    measured = {name: Measured(claimed="p99" if name in baselines else "p99_9") for name in plan.names}
    with ExitStack() as stack:

        def start(name: str) -> Session:
            started = Session(policy, name, folder, threads.get(name, plan.settings.threads))
            measured[name].cold_starts.append(started.cold_start)
            measured[name].loading.append(started.loading)
            measured[name].peak_memory = max(measured[name].peak_memory, started.peak_memory)
            return started

        running = {name: stack.enter_context(start(name)) for name in plan.names}
        for name in (name for name in plan.names if measured[name].cold_starts[0] < SHORT):
            for _ in range(plan.settings.cold_starts - 1):
                with start(name):
                    pass
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda session_: session_.measure(0), running.values()))
        yield Sessions(running, measured)


def measure_candidates(policy: str, plan: Plan) -> dict[str, Measured]:
    """Measure everything that a plan names, in turns, each in its own process."""
    with prepared(policy, plan) as folder, sessions(policy, folder, plan) as started:
        for round_ in range(1, plan.settings.rounds + 1):
            started.measure(round_)
        return started.measured
