"""Measure the verified programs: latency from raw observation to action, and speed of whole rollouts.

Everything is measured in a process of its own, one after the other in rounds, so that a noisy minute meets them all;
what is reported are medians over the rounds, with the smallest and largest.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from statistics import median

from stages.common import params, runtimes
from stages.common.errors import run
from stages.common.files import write_json, write_text
from stages.common.measure import LATENCIES, ROLLOUTS
from stages.common.process import run_module

Series = dict[str, dict[str, float]]

COLUMNS = ("program", "load_ms", "p50_us", "p50_us_min", "p50_us_max", "p90_us", "p99_us")


def summarise(samples: list[float]) -> dict[str, float]:
    return {"median": round(median(samples), 2), "min": round(min(samples), 2), "max": round(max(samples), 2)}


def bench(policy: str) -> None:
    settings = params.load().bench
    runtimes.read_bundle(policy)
    samples: dict[str, dict[str, list[float]]] = {what: {} for what in (*LATENCIES, *ROLLOUTS)}
    for round_ in range(settings.rounds):
        for what, series in samples.items():
            for name, value in run_module("stages.common.measure", policy, what).items():
                series.setdefault(name, []).append(value)
        print(f"bench {policy}  round {round_ + 1}/{settings.rounds}", flush=True)

    results: dict[str, Series] = {
        what: {name: summarise(values) for name, values in series.items()} for what, series in samples.items()
    }
    latency = {what: results[what] for what in LATENCIES}
    rollout = {what: results[what]["decisions_per_s"] for what in ROLLOUTS}
    write_json(Path("results", policy, "bench.json"), {"latency": latency, "rollout_decisions_per_s": rollout})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for what, columns in latency.items():
        p50 = columns["p50_us"]
        row = [columns["load_ms"]["median"], p50["median"], p50["min"], p50["max"]]
        writer.writerow([what, *row, columns["p90_us"]["median"], columns["p99_us"]["median"]])
    write_text(Path("results", policy, "latency.csv"), table.getvalue())
    print_tables(policy, latency, rollout)


def print_tables(policy: str, latency: dict[str, Series], rollout: Series) -> None:
    print(f"\n{policy}: raw observation to action, one at a time, medians of the rounds")
    print(f"{'program':<10}{'load ms':>9}{'p50 us':>9}{'p90 us':>9}{'p99 us':>9}   p50 over the rounds")
    for what, series in latency.items():
        columns = "".join(f"{series[name]['median']:>9.0f}" for name in ("load_ms", "p50_us", "p90_us", "p99_us"))
        print(f"{what:<10}{columns}   {series['p50_us']['min']:.0f} to {series['p50_us']['max']:.0f}")
    print(f"\n{'rollout':<10}{'decisions/s':>13}   over the rounds")
    for what, speed in rollout.items():
        print(f"{what:<10}{speed['median']:>13,.0f}   {speed['min']:,.0f} to {speed['max']:,.0f}")


if __name__ == "__main__":
    run(bench, __doc__)
