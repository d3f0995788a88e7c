"""One program, measured in a process that does nothing else: ``python -m policy_export.benchmark.session``.

The process is started by :mod:`policy_export.benchmark.measured`, with a workload written for it. It prints
one line to its standard output: the time of its first action, the seconds that loading took, and its peak memory in
KiB. Before that it imports nothing that the program does not need. After that, every line of its standard input is the
number of a round: it measures, writes ``<program>.safetensors`` with the times of the queries, and answers with a line
of JSON.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from policy_export.benchmark import programs
from policy_export.device.arrays import Arrays

if TYPE_CHECKING:
    from policy_export.parity.comparison import Comparison

INPUTS, SETTINGS = "inputs.safetensors", "settings.json"
MULTI_STREAM = 8  # rows a query
TURN = 10  # queries


def expected_file(reference: str | None) -> str:
    """Return the name of the file with the right answers: a candidate's, or the policy's if ``reference`` is none."""
    return f"expected_{reference or 'policy'}.safetensors"


def peak_memory(process: int) -> int:
    """Return the peak memory of a process since its start, in KiB; 0 if it has ended."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) if found else 0


def rows_of(arrays: Arrays, rows: Any) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}


class Workload:
    """The queries of a program, and their right answers.

    Args:
        program: one of :func:`policy_export.benchmark.programs.names`.
        run: the program, loaded.
        folder: where :func:`policy_export.benchmark.workload.prepare` has written.
    """

    def __init__(self, program: str, run: Callable[[Arrays], Arrays], folder: Path) -> None:
        from safetensors.numpy import load_file

        from policy_export.parity.comparison import Comparison

        self.program, self.run, self.settings = program, run, json.loads((folder / SETTINGS).read_text())
        self.inputs = load_file(folder / INPUTS)
        self.samples = len(next(iter(self.inputs.values())))
        candidate = self.settings["candidates"].get(program)
        reference = candidate and candidate["reference"]
        self.expected = load_file(folder / expected_file(reference))
        self.comparison: Comparison = Comparison(
            compares_actions=True,
            tolerance=self.settings["tolerance"] * (candidate["tolerance_factor"] if candidate else 1),
            states=set(self.settings["states"]),
            kinds=self.settings["kinds"],
        )
        self.asked: list[Any] = []
        self.baseline, self.candidate = bool(candidate and candidate["baseline"]), candidate is not None

    def check(self, answers: list[Arrays]) -> None:
        """Compare the answers to the oldest unchecked queries with eager's."""
        from policy_export.parity.comparison import Batch, Place

        rows = np.concatenate(self.asked[: len(answers)])
        del self.asked[: len(answers)]
        outputs = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        places = [Place(0, int(row)) for row in rows]
        self.comparison.compare(Batch(places, rows_of(self.expected, rows), outputs, {}, ""))

    def stream(self, queries: int, size: int = 1, *, repeated: bool = False) -> Any:
        """Return nanoseconds of queries of ``size`` rows, sampled anew for every query, or always the same ones."""
        from policy_export.benchmark.loadgen import time_queries

        def sample_inputs() -> Iterator[Arrays]:
            rows = self.random.integers(self.samples, size=size)
            for _ in range(queries):
                if not repeated:
                    rows = self.random.integers(self.samples, size=size)
                self.asked.append(rows)
                yield rows_of(self.inputs, rows)

        feed = {name: np.empty((size, *array.shape[1:]), array.dtype) for name, array in self.inputs.items()}
        return time_queries(self.run, feed, sample_inputs(), self.check)

    def measure(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Measure a round, whose number seeds the order of queries; return its facts, and nanoseconds by scenario.

        Round 0 only warms up. Of the others, the first of every ``stride`` also has what is measured less often.
        """
        settings, self.random = self.settings, np.random.default_rng(number)
        in_detail = number % settings["stride"] == 1 % settings["stride"]
        self.stream(settings["warmup_queries"])
        times = {"single": self.stream(settings["baseline_queries" if self.baseline else "queries"])}
        for name in ("fresh", "repeated") if number % 2 else ("repeated", "fresh"):
            times[name] = self.stream(TURN, repeated=name == "repeated")
        if number == 0 or in_detail or not self.candidate:
            times["multi"] = self.stream(settings["multi_stream_queries"], MULTI_STREAM)
            os.kill(settings["emulator"], signal.SIGCONT)
            try:
                times["contended"] = self.stream(settings["contended_queries"])
            finally:
                os.kill(settings["emulator"], signal.SIGSTOP)
        batches = settings["batches"] if in_detail and self.program in settings["in_batches"] else []
        facts = {
            "offline": {size: self.offline(size) for size in batches},
            "failures": [str(failure) for failure in self.comparison.failures],
        }
        return facts, times

    def offline(self, size: int) -> float:
        """Return rows per second."""
        from policy_export.benchmark.loadgen import throughput

        self.asked.append(self.random.integers(self.samples, size=size))
        feed = rows_of(self.inputs, self.asked[-1])
        speed = throughput(self.run, feed, self.settings["offline_seconds"])
        self.check([self.run(feed)])
        return speed


def main(policy: str, program: str, folder: Path) -> None:
    with safe_open(folder / INPUTS, "np") as file:
        first = {name: file.get_slice(name)[:1] for name in file.keys()}
    settings, start = json.loads((folder / SETTINGS).read_text()), time.monotonic()
    run = programs.load(policy, program, settings["threads"], settings["candidates"])
    loading = time.monotonic() - start
    run(first)
    print(time.monotonic(), loading, peak_memory(os.getpid()), flush=True)
    workload = None
    for line in sys.stdin:
        from safetensors.numpy import save_file

        workload = workload or Workload(program, run, folder)
        facts, times = workload.measure(int(line))
        save_file(times, folder / f"{program}.safetensors")
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
