"""Processes that hold a program each, started with the queries that they are measured by."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from policy_export.backends import runtimes
from policy_export.benchmark import programs, rollouts, session
from policy_export.benchmark.measured import Measured, Session, stream
from policy_export.benchmark.programs import Candidate
from policy_export.config import params
from policy_export.device.errors import UserError
from policy_export.device.manifest import read_manifest
from policy_export.stage.processes import processes

SHORT = 1000  # milliseconds: what starts faster is started again and again, as its start varies more


def prepare(
    policy: str,
    folder: Path,
    settings: params.Bench,
    tolerance: float,
    emulator: int,
    *,
    candidates: dict[str, Candidate] | None = None,
) -> None:
    """Write the workload that every session reads: decisions of a recorded episode, and what eager makes of them.

    What candidates decide is compared with the ONNX program, which needs no PyTorch.

    Args:
        policy: its name.
        folder: to write to.
        settings: of the measurement.
        tolerance: largest absolute difference of an output.
        emulator: id of the process that plays beside.
        candidates: to be measured instead of the policy's programs, by name.
    """
    from policy_export.parity.recorded_inputs import pick_by_name

    manifest, reference = read_manifest(Path("models", policy)), "onnx" if candidates else "eager"
    inputs = pick_by_name(policy, "onnx", settings.samples).inputs
    save_file(inputs, folder / session.INPUTS)
    save_file(runtimes.load_by_name(policy, reference, settings.threads)(inputs), folder / session.EXPECTED)
    if not candidates and programs.TUTORIAL[0] in programs.names(manifest):
        tutorial = programs.load(policy, programs.TUTORIAL[0], settings.threads)
        save_file(tutorial(inputs), folder / session.TUTORIAL_EXPECTED)
    content = settings.model_dump(exclude={"noise"})
    content |= {"tolerance": tolerance, "emulator": emulator, "states": [s["output"] for s in manifest["states"]]}
    (folder / session.SETTINGS).write_text(json.dumps(content | {"candidates": candidates or {}}))


@contextmanager
def emulator_beside(policy: str) -> Iterator[int]:
    """A process that plays the environment without a policy, and pauses until it is told to go on; its id.

    Raises:
        UserError: it does not play, or has not until the end.
    """
    command = [sys.executable, "-m", rollouts.__name__, policy]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    try:
        if stream(process.stdout).readline().strip() != rollouts.PLAYING:
            raise UserError(f"the environment of {policy} cannot be played beside its programs")
        process.send_signal(signal.SIGSTOP)
        yield process.pid
        if process.poll() is not None:
            raise UserError(f"the environment of {policy}, played beside its programs, has ended")
    finally:
        process.kill()
        process.communicate()


@dataclass
class Sessions:
    """Processes by the names of their programs, and what was found of them."""

    running: dict[str, Session]
    measured: dict[str, Measured]

    def measure(self, number: int) -> None:
        """A round: one program after the other, in an order that its number seeds."""
        for name in np.random.default_rng(number).permutation(list(self.running)).tolist():
            self.measured[name].add(*self.running[name].measure(number))


@contextmanager
def prepared(
    policy: str, settings: params.Bench, tolerance: float, candidates: dict[str, Candidate] | None = None
) -> Iterator[Path]:
    """A folder with the workload, and an environment that can be played beside; for the arguments see ``prepare``."""
    with tempfile.TemporaryDirectory() as folder, emulator_beside(policy) as emulator:
        with processes(1) as executor:
            executor.submit(
                prepare, policy, Path(folder), settings, tolerance, emulator, candidates=candidates
            ).result()
        yield Path(folder)


@contextmanager
def sessions(
    policy: str,
    names: Sequence[str],
    folder: Path,
    settings: params.Bench,
    candidates: dict[str, Candidate] | None = None,
) -> Iterator[Sessions]:
    """Start every program, those that start in less than a second again, and warm all up by a round, side by side.

    Args:
        policy: its name.
        names: of :func:`policy_export.benchmark.programs.names`, or of the candidates.
        folder: of :func:`prepared`.
        settings: of the measurement.
        candidates: by name, where they are what is measured.

    Raises:
        UserError: a program does not run.
    """
    threads = {name: candidate.threads for name, candidate in (candidates or {}).items()}
    measured = {name: Measured(claimed="p99" if name in programs.BASELINES else "p99_9") for name in names}
    with ExitStack() as stack:

        def start(name: str) -> Session:
            started = Session(policy, name, folder, threads.get(name, settings.threads))
            measured[name].cold_starts.append(started.cold_start)
            measured[name].loading.append(started.loading)
            measured[name].peak_memory = max(measured[name].peak_memory, started.peak_memory)
            return started

        running = {name: stack.enter_context(start(name)) for name in names}
        for name in (name for name in names if measured[name].cold_starts[0] < SHORT):
            for _ in range(settings.cold_starts - 1):
                with start(name):
                    pass
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda session_: session_.measure(0), running.values()))
        yield Sessions(running, measured)


def measure_candidates(
    policy: str, candidates: dict[str, Candidate], settings: params.Bench, tolerance: float
) -> dict[str, Measured]:
    """All candidates in turns, a process each."""
    with (
        prepared(policy, settings, tolerance, candidates) as folder,
        sessions(policy, list(candidates), folder, settings, candidates) as started,
    ):
        for round_ in range(1, settings.rounds + 1):
            started.measure(round_)
        return started.measured
