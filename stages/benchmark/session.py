"""One program, measured once, in a process that does nothing else: ``python -m stages.benchmark.session``.

The process is started by :mod:`stages.bench`, which writes a workload for it and reads what it wrote. Before its first
action it imports nothing that the program does not need.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from play import Arrays
from stages.benchmark import programs

INPUTS, EXPECTED, SETTINGS = "inputs.safetensors", "expected.safetensors", "settings.json"
TUTORIAL_EXPECTED = "expected_tutorial.safetensors"
MULTI_STREAM = 8  # rows a query
NAIVE_ROUNDING = 10  # times the tolerance, of what averages bytes as floats; it is not shipped, its decisions count


def rows_of(arrays: Arrays, rows: Any) -> Arrays:
    return {name: array[rows] for name, array in arrays.items()}


def main(policy: str, program: str, folder: Path, number: int) -> None:
    """Measure, and write ``<program>-<number>.safetensors`` and ``.json`` into the workload's folder.

    Args:
        policy: its name.
        program: one of :func:`stages.benchmark.programs.names`.
        folder: of the workload.
        number: of the round, which also seeds the order of the queries.
    """
    settings = json.loads((folder / SETTINGS).read_text())
    with safe_open(folder / INPUTS, "np") as file:
        first = {name: file.get_slice(name)[:1] for name in file.keys()}
    run = programs.load(policy, program, settings["threads"])
    run(first)
    first_action = time.monotonic()

    from stages.benchmark.loadgen import throughput, time_queries
    from stages.parity.comparison import Batch, Comparison, Place

    inputs = load_file(folder / INPUTS)
    tutorials = program in programs.TUTORIAL
    expected = load_file(folder / (TUTORIAL_EXPECTED if tutorials else EXPECTED))
    tolerance = settings["tolerance"] * (NAIVE_ROUNDING if program == programs.NAIVE else 1)
    comparison = Comparison(compares_actions=True, tolerance=tolerance, states=set(settings["states"]))
    samples = len(next(iter(inputs.values())))
    random = np.random.default_rng(number)
    asked: list[Any] = []

    def check(answers: list[Arrays]) -> None:
        rows = np.concatenate(asked[: len(answers)])
        del asked[: len(answers)]
        outputs = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        comparison.compare(Batch([Place(0, int(row)) for row in rows], rows_of(expected, rows), outputs, {}, ""))

    def queries(count: int, size: int, *, repeated: bool = False) -> Iterator[Arrays]:
        """Rows that are drawn anew for every query, or the same ones again and again."""
        rows = random.integers(samples, size=size)
        for _ in range(count):
            if not repeated:
                rows = random.integers(samples, size=size)
            asked.append(rows)
            yield rows_of(inputs, rows)

    def stream(count: int, size: int = 1, *, repeated: bool = False) -> Any:
        feed = {name: np.empty((size, *array.shape[1:]), array.dtype) for name, array in inputs.items()}
        return time_queries(run, feed, queries(count, size, repeated=repeated), check)

    stream(settings["warmup_queries"])
    times = {"single": stream(settings["queries"]), "multi": stream(settings["multi_stream_queries"], MULTI_STREAM)}
    # Fresh and repeated inputs in turns, so that a noisy moment meets both.
    turns = [(stream(10), stream(10, repeated=True)) for _ in range(settings["warmup_queries"] // 10)]
    times["fresh"], times["repeated"] = (np.concatenate(parts) for parts in zip(*turns, strict=True))
    os.kill(settings["emulator"], signal.SIGCONT)
    try:
        times["beside"] = stream(-(-settings["queries"] // 2))
    finally:
        os.kill(settings["emulator"], signal.SIGSTOP)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before the large batches
    offline = {}
    for size in settings["batches"] if program in programs.OFFLINE else ():
        feed = rows_of(inputs, random.integers(samples, size=size))
        run(feed)
        offline[size] = throughput(run, feed, settings["offline_seconds"])
    save_file(times, folder / f"{program}-{number}.safetensors")
    facts = {
        "first_action": first_action,
        "peak_memory_kib": memory,
        "offline": offline,
        "failures": [str(failure) for failure in comparison.failures],
    }
    (folder / f"{program}-{number}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
