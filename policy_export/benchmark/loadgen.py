"""MLPerf LoadGen's way to time a program: scenarios, percentiles that may be claimed, and how many queries they need.

After the MLPerf inference rules (Reddi et al., 2020, "MLPerf Inference Benchmark") and their early stopping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from policy_export.device.arrays import Arrays

CONFIDENCE = 0.99  # that a percentile is not higher than what is reported
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}

CHECKED = 32  # queries at once

Nanoseconds = npt.NDArray[np.int64]


def allowed_over(queries: int, percentile: float) -> int:
    """Return how many of the slowest queries the percentile may leave out.

    This is the largest number for which the chance that so few queries, or fewer, are over the true percentile is at
    most 1 in 100: LoadGen's early stopping without tolerance.
    """
    over = int(binom.ppf(1 - CONFIDENCE, queries, 1 - percentile))
    return over if binom.cdf(over, queries, 1 - percentile) <= 1 - CONFIDENCE else over - 1


def needed_queries(percentile: float) -> int:
    """Return the fewest queries that a percentile needs to be claimed: 64 for 0.9, 662 for 0.99 and 6,636 for 0.999."""
    queries = 1
    while allowed_over(queries, percentile) < 1:
        queries += max(1, queries // 1000)
    while allowed_over(queries - 1, percentile) >= 1:
        queries -= 1
    return queries


def percentile_of(latencies: Nanoseconds, percentile: float) -> float | None:
    """Return nanoseconds that the percentile does not exceed, with a confidence of 99 %; none for too few queries."""
    over = allowed_over(len(latencies), percentile)
    return None if over < 1 else float(np.sort(latencies)[len(latencies) - over])


def time_queries(
    run: Callable[[Arrays], Arrays], feed: Arrays, queries: Iterable[Arrays], check: Callable[[list[Arrays]], None]
) -> Nanoseconds:
    """Time one query after the other, as SingleStream and MultiStream require: each starts after the previous answer.

    Args:
        run: the program.
        feed: its inputs, into which each query is copied before its time starts, as a camera writes into a buffer.
        queries: the inputs of each query.
        check: checks the outputs of the last ``CHECKED`` queries together, so that it does not empty the caches
            before each of them.

    Returns:
        ``(queries,)`` nanoseconds.
    """
    times, answers = [], list[Arrays]()
    for inputs in queries:
        for name, array in inputs.items():
            np.copyto(feed[name], array)
        start = time.perf_counter_ns()
        outputs = run(feed)
        times.append(time.perf_counter_ns() - start)
        answers.append(outputs)
        if len(answers) == CHECKED:
            check(answers)
            answers = []
    if answers:
        check(answers)
    return np.array(times, np.int64)


def throughput(run: Callable[[Arrays], Arrays], feed: Arrays, seconds: float) -> float:
    """Return rows per second, with one batch after the other for at least ``seconds``: the Offline scenario."""
    rows = len(next(iter(feed.values())))
    done, passed, start = 0, 0.0, time.perf_counter()
    while passed < seconds:
        run(feed)
        done += rows
        passed = time.perf_counter() - start
    return done / passed
