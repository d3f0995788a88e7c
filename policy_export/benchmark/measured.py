"""A program that is measured in a process of its own, its results, and whether they are VALID."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any, AnyStr, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from policy_export.benchmark.loadgen import PERCENTILES, needed_queries, percentile_of
from policy_export.benchmark.ratios import SURE, compare
from policy_export.device.errors import UserError

DEADLINES = {"15hz": 1 / 15, "60hz": 1 / 60}  # seconds
REPEATED = 0.9  # of a fresh input's time: what answers a repeated one faster has kept its answer


def stream(pipe: IO[AnyStr] | None) -> IO[AnyStr]:
    """Return a pipe that Popen was asked to open."""
    assert pipe is not None
    return pipe


class Session:
    """A process that holds a program and measures it on request.

    Args:
        policy: its name.
        program: one of :func:`policy_export.benchmark.programs.names`.
        folder: where :func:`policy_export.benchmark.workload.prepare` has written.
        threads: number of the runtime's threads.

    Attributes:
        cold_start: milliseconds from the start of the process to the program's first action.
        loading: the part of it, in milliseconds, that loading the program and its libraries took.
        peak_memory: the peak memory of the process by then, in KiB.

    Raises:
        UserError: the program does not run.
    """

    def __init__(self, policy: str, program: str, folder: Path, threads: int) -> None:
        self.policy, self.program, self.folder = policy, program, folder
        self.log = (folder / f"{program}.log").open("w+")
        command = [sys.executable, "-m", "policy_export.benchmark.session", policy, program, str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        start = time.monotonic()
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        acted, loading, memory = self.answer().split()
        self.cold_start, self.loading = (float(acted) - start) * 1e3, float(loading) * 1e3
        self.peak_memory = int(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def answer(self) -> str:
        line = stream(self.process.stdout).readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            reason = (self.log.read().strip().splitlines() or [f"exit status {status}"])[-1]
            if status < 0:
                reason = f"its process was ended by {signal.Signals(-status).name}"
            raise UserError(f"{self.program} of {self.policy} cannot be measured: {reason}")
        return line

    def measure(self, number: int) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.int64]]]:
        """Measure one round; return its facts, and nanoseconds of every query by scenario."""
        requests = stream(self.process.stdin)
        with suppress(BrokenPipeError):  # the answer that is missing tells why
            requests.write(f"{number}\n")
            requests.flush()
        return json.loads(self.answer()), load_file(self.folder / f"{self.program}.safetensors")


@dataclass
class Measured:
    """The results of all rounds for one program.

    Attributes:
        cold_starts: milliseconds from the start of its process to its first action, one per start.
        times: nanoseconds of every query by scenario, one array per round.
        offline: rows per second by batch size, one for each of some rounds.
        peak_memory: the highest peak memory of its processes after their first decision, in KiB.
        failures: outputs that differ from eager's.
        loading: milliseconds of the cold starts that loading took.
        claimed: the highest percentile that is asked for.
    """

    cold_starts: list[float] = field(default_factory=list)
    times: dict[str, list[npt.NDArray[np.int64]]] = field(default_factory=dict)
    offline: dict[str, list[float]] = field(default_factory=dict)
    peak_memory: int = 0
    failures: list[str] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)
    claimed: str = "p99_9"

    def add(self, facts: dict[str, Any], times: dict[str, npt.NDArray[np.int64]]) -> None:
        """Add the results of one round."""
        self.failures = facts["failures"]
        for size, speed in facts["offline"].items():
            self.offline.setdefault(size, []).append(speed)
        for name, nanoseconds in times.items():
            self.times.setdefault(name, []).append(nanoseconds)

    def medians(self, scenario: str = "single") -> list[float]:
        """Return the median of each round, in microseconds."""
        return [float(np.median(times)) / 1e3 for times in self.times[scenario]]

    def quartiles(self) -> tuple[float, float]:
        """Return the lower and upper quartile of the rounds' medians, in microseconds."""
        low, high = np.quantile(self.medians(), (0.25, 0.75))
        return float(low), float(high)

    def percentiles(self, scenario: str) -> dict[str, float | None]:
        """Return each percentile in microseconds, with LoadGen's confidence; none for too few queries."""
        pooled = np.concatenate(self.times[scenario])
        found = {name: percentile_of(pooled, share) for name, share in PERCENTILES.items()}
        return {f"{name}_us": None if value is None else round(value / 1e3, 1) for name, value in found.items()}

    def reason_invalid(self, noise: float) -> str | None:
        """Return why the result is INVALID; none if it is VALID."""
        queries, (low, high) = sum(map(len, self.times["single"])), self.quartiles()
        if self.failures:
            return f"wrong outputs: {self.failures[0]}"
        if queries < (needed := needed_queries(PERCENTILES[self.claimed])):
            return f"too few queries: {queries}, {self.claimed.replace('_', '.')} needs {needed}"
        if high > (1 + noise) * low:
            return f"too noisy: half of the rounds' medians are {low:.0f} to {high:.0f} us, the others beyond"
        repeated, fresh = self.medians("repeated"), self.medians("fresh")
        if compare(repeated, fresh, confidence=SURE).low > 1 / REPEATED:
            times = f"{median(repeated):.0f} us, a fresh one {median(fresh):.0f}"
            return f"a repeated input takes {times}: answers are kept"
        return None

    def describe(self, noise: float, rate_hz: float | None = None) -> dict[str, Any]:
        """Return all findings, with how many decisions were late, also at the rate that the policy's device needs.

        Args:
            noise: what share the quartiles of the rounds' medians may be apart.
            rate_hz: decisions a second; none where it is not known.
        """
        deadlines = DEADLINES | ({f"{rate_hz:g}hz": 1 / rate_hz} if rate_hz else {})
        reason, contended = self.reason_invalid(noise), np.concatenate(self.times["contended"]) / 1e9
        low, high = self.quartiles()
        return {
            "valid": reason is None,
            "reason": reason or "",
            "cold_start_ms": round(median(self.cold_starts), 1),
            **self.percentiles("single"),
            "rounds_p50_us": {"lower_quartile": round(low, 1), "upper_quartile": round(high, 1)},
            "queries": sum(map(len, self.times["single"])),
            "multi_stream": self.percentiles("multi"),
            "late": {name: float((contended > seconds).mean()) for name, seconds in deadlines.items()},
            "late_queries": len(contended),
            "peak_memory_mb": round(self.peak_memory / 1024, 1),
        }
