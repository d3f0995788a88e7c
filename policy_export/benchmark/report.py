"""The benchmark's findings as JSON, as metrics, as a table of latencies, and as printed text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from policy_export.backends.registry import backends
from policy_export.backends.runtimes import EAGER
from policy_export.benchmark import command, programs
from policy_export.benchmark.measured import Measured
from policy_export.benchmark.ratios import compare, fastest
from policy_export.benchmark.rollouts import EMULATOR, PLAYER
from policy_export.benchmark.roofline import Peak, Work
from policy_export.config import params
from policy_export.stage.files import write_table
from policy_export.stage.metrics import Number, significant

COLUMNS = (
    *(
        "program",
        "valid",
        "cold_start_ms",
        "p50_us",
        "lower_quartile",
        "upper_quartile",
        "p90_us",
        "p99_us",
        "p99_9_us",
    ),
    *("times_as_fast_as_eager", "peak_memory_mb"),
)
TO_EAGER = f"_to_{EAGER}"
SHOWN = 2  # programs in the metrics


class Findings(NamedTuple):
    """All results: of programs, native command's starts, rollouts (decisions per second, one per round) and machine."""

    programs: dict[str, Measured]
    starts: list[command.Start]
    rollouts: dict[str, list[float]]
    work: Work
    peak: Peak


def describe(policy: str, found: Findings, settings: params.Bench, rate_hz: float | None = None) -> dict[str, Any]:
    """Return all findings: verdicts, ratios with their intervals, rollouts, batches, and the machine's peak.

    Args:
        policy: its name.
        found: what was measured.
        settings: of the benchmark.
        rate_hz: decisions a second that the policy's device needs, if it is known.
    """
    measured, starts, speeds, work, peak = found
    ratios = {
        f"{one}_to_{other}": compare(measured[one].medians(), measured[other].medians(), settings.least_difference)
        for one, other in pairs(list(measured))
    }
    ratios |= {
        f"{player}_to_emulator": compare(speeds[EMULATOR], speed, settings.least_difference)
        for player, speed in speeds.items()
        if player.startswith(PLAYER)
    }
    described = {name: one.describe(settings.noise, rate_hz) for name, one in measured.items()}
    for name, entry in described.items():
        if (size := programs.file_bytes(policy, name, {})) is not None:
            entry["file_bytes"] = size
    offline = {
        name: {size: summarise(speed) for size, speed in one.offline.items()}
        for name, one in measured.items()
        if one.offline
    }
    return {
        "threads": settings.threads,
        **({"control_rate_hz": rate_hz} if rate_hz else {}),
        "programs": described,
        **({"native_command": command.describe(starts)} if starts else {}),
        "fastest": name_fastest(measured, described, settings.least_difference),
        "times_as_fast": {name: ratio.as_dict() for name, ratio in ratios.items()},
        "rollout_decisions_per_s": {what: summarise(speed) for what, speed in speeds.items()},
        "offline_rows_per_s": offline,
        "roofline": draw_roofline(offline, work, peak),
        "machine_peak": {"gflop_per_s": round(peak.flops / 1e9, 1), "copied_gb_per_s": round(peak.bytes / 1e9, 1)},
        "flop_per_decision": work.flops,
    }


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of programs whose ratios are reported: each program with every earlier one in the table."""
    return [(one, other) for place, one in enumerate(names) for other in names[:place]]


def name_fastest(
    measured: Mapping[str, Measured], described: Mapping[str, Mapping[str, Any]], least_difference: float
) -> str | None:
    """Return the program that is faster than all others outside the noise; none if its result is INVALID."""
    winner = fastest({name: one.medians() for name, one in measured.items()}, least_difference)
    return winner if winner is not None and described[winner]["valid"] else None


def summarise(samples: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(samples), 1), "min": round(min(samples), 1), "max": round(max(samples), 1)}


def write_latencies(path: Path, content: Mapping[str, Any]) -> None:
    """Write the latency of every program, with its ratio to eager where that is known."""
    ratios = {name.removesuffix(TO_EAGER): ratio for name, ratio in content["times_as_fast"].items()}
    rows = [
        {"program": name, "times_as_fast_as_eager": ratios[name]["ratio"] if name in ratios else None}
        | entry["rounds_p50_us"]
        | entry
        for name, entry in content["programs"].items()
    ]
    write_table(path, COLUMNS, rows)


def describe_metrics(content: Mapping[str, Any]) -> dict[str, Number]:
    """Return the metrics of a report: of up to two programs, those that need no PyTorch before the others."""
    run_by, measured = {name: backend.run_by for name, backend in backends().items()}, content["programs"]
    names = sorted((name for name in measured if name in run_by), key=lambda name: "torch" in run_by[name])[:SHOWN]
    medians = {name: measured[name]["p50_us"] for name in names}  # none after too few queries
    metrics: dict[str, Number] = {
        f"{name}_p50_us": None if value is None else significant(value, 2) for name, value in medians.items()
    }
    metrics |= {f"{name}_speedup": significant(content["times_as_fast"][name + TO_EAGER]["ratio"], 2) for name in names}
    return metrics | {"program_mb": significant(max(measured[name]["file_bytes"] for name in names) / 1e6, 2)}


def draw_roofline(offline: Mapping[str, Mapping[str, Any]], work: Work, peak: Peak) -> list[dict[str, Any]]:
    """Return every program's operations per second over its operations per byte, and the roof above them.

    Args:
        offline: rows per second, by program and size of the batch.
        work: of a decision.
        peak: of the machine.
    """
    rows = [
        {"program": name, "batch": int(size), "rows_per_s": speed["median"]}
        for name, sizes in offline.items()
        for size, speed in sizes.items()
    ]
    if not rows:
        return []
    intensities = [work.intensity(row["batch"]) for row in rows]
    speeds = [work.flops * row["rows_per_s"] for row in rows]
    points = list(zip([row["program"] for row in rows], intensities, speeds, strict=True))
    ends = (min(intensities) / 2, peak.flops / peak.bytes, max(2 * max(intensities), 2 * peak.flops / peak.bytes))
    points += [("roof", intensity, peak.roof(intensity)) for intensity in ends]
    return [
        {"program": program, "flop_per_byte": round(intensity, 3), "gflop_per_s": round(speed / 1e9, 3)}
        for program, intensity, speed in points
    ]


def print_tables(policy: str, content: dict[str, Any]) -> None:
    columns = ("cold_start_ms", "p50_us", "p90_us", "p99_us", "p99_9_us", "peak_memory_mb")
    print(f"\n{policy}: raw observation to action, one at a time")
    print(f"{'program':<26}" + "".join(f"{column.removesuffix('_us'):>14}" for column in columns) + "  verdict")
    for name, entry in content["programs"].items():
        cells = "".join(f"{'-' if entry[column] is None else format(entry[column], '.0f'):>14}" for column in columns)
        print(f"{name:<26}{cells}  {'VALID' if entry['valid'] else 'INVALID: ' + entry['reason']}")
    if start := content.get("native_command"):
        print(f"native command  first decision after {start['cold_start_ms']} ms, memory {start['peak_memory_mb']} MB")
    if rate := content.get("control_rate_hz"):
        late = [f"{name} {entry['late'][f'{rate:g}hz']:.2%}" for name, entry in content["programs"].items()]
        print(f"later than {rate:g} Hz asks, with the environment played beside: {', '.join(late)}")
    print(f"fastest: {content['fastest'] or 'the noise does not tell'}")
    print(f"\n{'times as fast':<40}{'ratio':>7}   95 % interval")
    for name, ratio in content["times_as_fast"].items():
        interval = f"{ratio['low']:.2f} to {ratio['high'] or math.inf:.2f}"
        print(f"{name.replace('_to_', ' to '):<40}{ratio['ratio']:>7.2f}   {interval}")
    print(f"\n{'rollout':<16}{'decisions/s':>12}   over the rounds")
    for what, speed in content["rollout_decisions_per_s"].items():
        print(f"{what:<16}{speed['median']:>12,.0f}   {speed['min']:,.0f} to {speed['max']:,.0f}")
