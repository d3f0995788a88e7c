"""Measure the verified programs: latency from raw observation to action, and speed of whole rollouts.

Everything is measured in a process of its own, one after the other in rounds, so that a noisy minute meets them all;
what is reported are medians over the rounds, with the smallest and largest. Loading is measured once, when the process
has just started.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from stages.common import params, runtimes
from stages.common.errors import run
from stages.common.files import write_json, write_text
from stages.common.measure import LATENCIES, ROLLOUTS, measure_latency, measure_load, measure_rollout
from stages.common.processes import processes

Series = dict[str, dict[str, float]]

COLUMNS = ("program", "load_ms", "p50_us", "p50_us_min", "p50_us_max", "p90_us", "p99_us")


def summarise(samples: list[float]) -> dict[str, float]:
    return {"median": round(median(samples), 2), "min": round(min(samples), 2), "max": round(max(samples), 2)}


def bench(policy: str) -> None:
    settings = params.load().bench
    runtimes.read_bundle(policy)
    with ExitStack() as stack:
        workers = {what: stack.enter_context(processes(1)) for what in (*LATENCIES, *ROLLOUTS)}

        def measure(measurement: Callable[..., Any], what: str) -> Any:
            return workers[what].submit(measurement, policy, what, settings).result()

        load = {what: measure(measure_load, what) for what in LATENCIES}
        latencies: dict[str, list[dict[str, float]]] = {what: [] for what in LATENCIES}
        speeds: dict[str, list[float]] = {what: [] for what in ROLLOUTS}
        for round_ in range(settings.rounds):
            for what, percentiles in latencies.items():
                percentiles.append(measure(measure_latency, what))
            for what, speed in speeds.items():
                speed.append(measure(measure_rollout, what))
            print(f"bench {policy}  round {round_ + 1}/{settings.rounds}", flush=True)

    latency: dict[str, Series] = {
        what: {name: summarise([found[name] for found in rounds]) for name in rounds[0]}
        for what, rounds in latencies.items()
    }
    rollout = {what: summarise(speed) for what, speed in speeds.items()}
    report = {"load_ms": load, "latency": latency, "rollout_decisions_per_s": rollout}
    write_json(Path("results", policy, "bench.json"), report)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for what, columns in latency.items():
        p50 = columns["p50_us"]
        row = [round(load[what], 2), p50["median"], p50["min"], p50["max"]]
        writer.writerow([what, *row, columns["p90_us"]["median"], columns["p99_us"]["median"]])
    write_text(Path("results", policy, "latency.csv"), table.getvalue())
    print_tables(policy, load, latency, rollout)


def print_tables(policy: str, load: dict[str, float], latency: dict[str, Series], rollout: Series) -> None:
    print(f"\n{policy}: raw observation to action, one at a time, medians of the rounds")
    print(f"{'program':<10}{'load ms':>9}{'p50 us':>9}{'p90 us':>9}{'p99 us':>9}   p50 over the rounds")
    for what, series in latency.items():
        columns = "".join(f"{series[name]['median']:>9.0f}" for name in ("p50_us", "p90_us", "p99_us"))
        print(f"{what:<10}{load[what]:>9.0f}{columns}   {series['p50_us']['min']:.0f} to {series['p50_us']['max']:.0f}")
    print(f"\n{'rollout':<10}{'decisions/s':>13}   over the rounds")
    for what, speed in rollout.items():
        print(f"{what:<10}{speed['median']:>13,.0f}   {speed['min']:,.0f} to {speed['max']:,.0f}")


if __name__ == "__main__":
    run(bench, __doc__)
