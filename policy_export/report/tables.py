"""Tables of the results, as Markdown: ``make docs`` writes them into README.md and docs.

Every table has the policies of ``matrix`` in ``params.yaml``. A policy or program without results is left out, and a
result that is INVALID says so. Paths are relative to the project's folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from policy_export.config.core_schema import read_yaml

RESULTS, STUDIES = Path("results"), Path("studies/results")
NOTHING = "-"
Cells = dict[str, dict[str, str]]  # of each policy, by the names of the rows


def policies() -> list[str]:
    """Return the policies that the pipeline builds."""
    names: list[str] = read_yaml(Path("params.yaml").read_text())["matrix"]
    return names


def results(name: str, folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return one report of each policy that has it."""
    paths = {policy: folder / policy / f"{name}.json" for policy in policies()}
    return {policy: json.loads(path.read_text()) for policy, path in paths.items() if path.is_file()}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return a table's rows; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; a sentence where it has no rows."""
    rows = list(rows)
    if not rows:
        return "There are no results yet."
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def by_policy(headers: Sequence[str], cells: Cells) -> str:
    """Return a table with a column for each policy, and the rows of all in their order."""
    rows = list(dict.fromkeys(row for column in cells.values() for row in column))
    columns = [*headers, *(f"`{policy}`" for policy in cells)]
    return table(columns, ([row, *(column.get(row, NOTHING) for column in cells.values())] for row in rows))


def number(value: float | None, form: str = ",.0f") -> str:
    """Return a number as text; a dash where there is none."""
    if value is None:
        return NOTHING
    return format(value, form) if value else "0"


def ratio(entry: Mapping[str, float | None]) -> str:
    """Return a ratio with its 95 % interval, which may be open."""
    high = "any" if entry["high"] is None else f"{entry['high']:.2f}"
    return f"{entry['ratio']:.2f} ({entry['low']:.2f} to {high})"


# What is measured and is no file of a model folder.
OTHERS = {
    "eager": "eager",
    "emulator": "the bare emulator",
    "player_onnx": "the player with ONNX Runtime",
    "player_native": "the player with `--native`",
    "torchrl": "TorchRL's `env.rollout`",
    "onnx_naive": "the naive export",
    "onnx_naive_channels_first": "the naive export, colours moved first",
    "tutorial_eager": "the tutorial's eager policy",
    "tutorial_aoti": "the tutorial's AOTInductor",
    "tutorial_onnx": "the tutorial's ONNX",
}


def names() -> Callable[[str], str]:
    """Return what says how a program is called in tables: by its file, or in words."""
    files = {
        name: f"`{entry['file']}`"
        for report in results("parity").values()
        for name, entry in report["checked"]["programs"].items()
    }

    def called(name: str) -> str:
        return files.get(name) or OTHERS.get(name) or name.replace("_", " ")

    return called


def verdict(entry: Mapping[str, Any]) -> str:
    """Return a mark to follow the figures of a timed program."""
    return "" if entry["valid"] else " INVALID"


def largest(entry: Mapping[str, Any]) -> float | None:
    """Return the largest difference of a program's actions and values; states are compared, but not counted here."""
    differences = [
        value for name, value in entry["max_abs_difference"].items() if value is not None and name[:5] != "next_"
    ]
    return max(differences, default=None)


def deciding(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the programs of a parity report that do not explore."""
    return {name: entry for name, entry in report["programs"].items() if entry["different_actions"] is not None}


def passed(entry: Mapping[str, Any]) -> str:
    return "passed" if entry["passed"] else "FAILED"


def summary() -> str:
    """Return the table of README, and where its times are from."""
    return f"{summary_table()}\n\n{measured_on('bench')}"


def summary_table() -> str:
    """Return a row for each policy: its score, what was proven, and how fast its programs decide."""
    called = names()
    trained, proven, timed = results("train"), results("parity"), results("bench")
    programs = list(dict.fromkeys(name for report in timed.values() for name in report["programs"]))
    rows = []
    for policy, report in proven.items():
        checked = deciding(report).values()
        decisions = [entry["observations"] + entry.get("closed_loop", {}).get("steps", 0) for entry in checked]
        score = (trained.get(policy, {}).get("evaluation") or {}).get("mean_score")
        speeds = timed.get(policy, {}).get("programs", {})
        rows.append(
            [
                f"`{policy}`",
                number(score, "+.1f"),
                f"{passed(report)}, {len(report['programs'])} programs",
                number(min(decisions, default=None)),
                number(sum(entry["different_actions"] for entry in checked)),
                *(latency(speeds.get(name)) for name in programs),
            ]
        )
    headers = ["policy", "mean score", "parity", "decisions", "other actions"]
    return table([*headers, *map(called, programs)], rows)


def latency(entry: Mapping[str, Any] | None) -> str:
    """Return a program's median latency in microseconds."""
    return NOTHING if entry is None else number(entry["p50_us"]) + verdict(entry)


def score_table() -> str:
    """Return what was trained, and how well it plays."""
    profiles = read_yaml(Path("params.yaml").read_text())["policies"]
    rows = []
    for policy, report in results("train").items():
        found, train = report.get("evaluation") or {}, profiles[policy]["train"]
        rows.append(
            [
                f"`{policy}`",
                f"`{profiles[policy]['policy']['factory'].rpartition(':')[0].rpartition('.')[2]}`",
                f"`{train['algorithm']}`",
                number(train.get("seed"), "d"),
                number(report.get("env_steps")),
                number(found.get("episodes"), "d"),
                *(number(found.get(key), form) for key, form in (("mean_score", "+.1f"), ("std_score", ".1f"))),
                number(found.get("min_score"), "+.0f"),
            ]
        )
    return table(["policy", "network", "algorithm", "seed", "steps", "episodes", "mean score", "std", "min"], rows)


def seeds_table() -> str:
    """Return the scores of the seeds that policies do not ship with, and how long their trainings took."""
    rows = []
    for policy in policies():
        path = STUDIES / policy / "seeds.json"
        found = json.loads(path.read_text()) if path.is_file() else []
        if found:
            means = [entry["mean_score"] for entry in found]
            minutes = [entry["seconds"] / 60 for entry in found]
            rows.append(
                [
                    f"`{policy}`",
                    ", ".join(number(entry["seed"], "d") for entry in found),
                    ", ".join(number(mean, "+.1f") for mean in means),
                    number(median(means), "+.1f"),
                    ", ".join(number(entry["min_score"], "+.0f") for entry in found),
                    f"{min(minutes):.1f} to {max(minutes):.1f}",
                    found[0]["processor"],
                ]
            )
    return table(["policy", "seeds", "mean scores", "median", "least scores", "minutes", "processor"], rows)


def tried_table() -> str:
    """Return what was tried for the trainings, one of them a row."""
    rows = [
        [
            f"`{row['policy']}`",
            row["tried"],
            row["seed"],
            number(int(row["total_steps"])),
            *(number(float(row[key]), form) for key, form in (("mean_score", "+.1f"), ("std_score", ".1f"))),
            number(float(row["min_score"]), "+.0f"),
        ]
        for row in read_rows(STUDIES / "tried.csv")
    ]
    return table(["policy", "what was tried", "seed", "steps", "mean score", "std", "min"], rows)


def parity_table() -> str:
    """Return what the check has found of each program that does not explore."""
    called = names()
    rows = []
    for policy, report in results("parity").items():
        for name, entry in deciding(report).items():
            played = entry.get("closed_loop")
            rows.append(
                [
                    f"`{policy}`",
                    called(name),
                    number(entry["observations"]),
                    number(entry["different_actions"]),
                    str(len(entry["ties"])),
                    number(entry["flip_rate_bound"]["decisions"] * 1e6),
                    number(largest(entry), ".1e"),
                    f"{played['identical']} of {played['episodes']}" if played else NOTHING,
                    number(played["steps"]) if played else NOTHING,
                    passed(entry),
                ]
            )
    headers = ["policy", "program", "decisions", "other actions", "ties", "bound, in a million", "largest difference"]
    return table([*headers, "episodes identical", "decisions in them", "verdict"], rows)


def exploring_table() -> str:
    """Return what the check has found of each program that explores."""
    called = names()
    rows = [
        [
            f"`{policy}`",
            called(name),
            number(entry["observations"]),
            number(largest(entry), ".1e"),
            number(entry["samples"]["samples"]),
            number(entry["samples"]["tests"]),
            number(entry["samples"]["least_p"], ".1e"),
            passed(entry),
        ]
        for policy, report in results("parity").items()
        for name, entry in report["programs"].items()
        if "samples" in entry
    ]
    headers = ["policy", "program", "decisions", "largest difference", "samples", "tests", "least p-value", "verdict"]
    return table(headers, rows)


def power_table() -> str:
    """Return by how much a probability of drawing must be wrong to be found 99 times of 100."""
    rows = []
    for policy, report in results("parity").items():
        tested = (entry["samples"].get("power", []) for entry in report["programs"].values() if "samples" in entry)
        rows += [
            [f"`{policy}`", power["what"]]
            + [number(power[key], ".2%") for key in ("probability", "found_below", "found_above")]
            for power in next(tested, [])
        ]
    return table(["policy", "what is drawn", "its probability", "found where below", "found where above"], rows)


def training_environment_table() -> str:
    """Return how the exported policy compares with the trained one in its training environment."""
    rows = [
        [f"`{policy}`", number(entry["decisions"]), number(entry["different_actions"]), number(largest(entry), ".1e")]
        for policy, report in results("parity").items()
        if (entry := report.get("training_environment"))
    ]
    return table(["policy", "decisions", "other actions", "largest difference"], rows)


def fault_sentence() -> str:
    """Return what the study of faults has found."""
    path = STUDIES / "fault_suite.json"
    if not path.is_file():
        return "There are no results yet."
    found = json.loads(path.read_text())
    return (
        f"It found {found['killed']} of {found['total']} faults, "
        f"and raised {found['false_alarms']} false alarms in {found['clean_runs']} runs without a fault."
    )


def latency_table() -> str:
    """Return the median and the 99th percentile of each program's latency."""
    called = names()
    return by_policy(
        ["us, p50 / p99"],
        {
            policy: {
                called(name): f"{number(entry['p50_us'])} / {number(entry['p99_us'])}{verdict(entry)}"
                for name, entry in report["programs"].items()
            }
            for policy, report in results("bench").items()
        },
    )


def invalid_table() -> str:
    """Return why results are INVALID; a sentence where none is."""
    called = names()
    rows = [
        [f"`{policy}`", called(name), entry["reason"]]
        for policy, report in results("bench").items()
        for name, entry in report["programs"].items()
        if not entry["valid"]
    ]
    return table(["policy", "program", "why it is INVALID"], rows) if rows else "No row is INVALID."


def ratio_table() -> str:
    """Return how many times as fast programs are as others, with 95 % intervals."""
    return ratios(results("bench"))


def comparison_table() -> str:
    """Return how many times as fast programs are as those that others have exported."""
    others = ("onnx_naive", "tutorial")
    return ratios(results("comparison", STUDIES), others)


def ratios(reports: Mapping[str, Mapping[str, Any]], others: tuple[str, ...] = ("",)) -> str:
    """Return the ratios to programs whose names begin so."""
    called = names()
    cells: Cells = {}
    for policy, report in reports.items():
        pairs = {name: tuple(name.split("_to_")) for name in report["times_as_fast"]}
        cells[policy] = {
            f"{called(one)} to {called(other)}": ratio(report["times_as_fast"][name])
            for name, (one, other) in pairs.items()
            if other.startswith(others)
        }
    return by_policy(["times as fast, and its 95 % interval"], cells)


def start_table() -> str:
    """Return how long the first decision of a process takes, the memory that it needs, and the size of the file."""
    called = names()
    cells: Cells = {}
    for policy, report in results("bench").items():
        entries = {called(name): entry for name, entry in report["programs"].items()}
        if command := report.get("native_command"):
            entries["the command `native/policy`"] = command
        cells[policy] = {
            name: " / ".join(
                [
                    number(entry["cold_start_ms"], ",.0f" if entry["cold_start_ms"] > 10 else ".1f"),
                    number(entry["peak_memory_mb"]),
                    number(entry["file_bytes"] / 1e6, ".1f") if "file_bytes" in entry else NOTHING,
                ]
            )
            for name, entry in entries.items()
        }
    return by_policy(["first decision, ms / peak memory, MB / file, MB"], cells)


def rollout_table() -> str:
    """Return how many decisions a second are played, with the least and the most of all rounds."""
    called = names()
    return by_policy(
        ["decisions a second, and over the rounds"],
        {
            policy: {
                called(what): f"{speed['median']:,.0f} ({speed['min']:,.0f} to {speed['max']:,.0f})"
                for what, speed in report["rollout_decisions_per_s"].items()
            }
            for policy, report in results("bench").items()
        },
    )


def batch_table() -> str:
    """Return decisions a second in batches, and their share of the machine's peak."""
    called = names()
    cells: Cells = {}
    for policy, report in results("bench").items():
        peak, flops = report["machine_peak"], report["flop_per_decision"]
        cells[policy] = {
            f"{called(name)}, {size} at once": (
                f"{speed['median']:,.0f} ({flops * speed['median'] / peak['gflop_per_s'] / 1e9:.0%})"
            )
            for name, sizes in report["offline_rows_per_s"].items()
            for size, speed in sizes.items()
        }
        cells[policy]["the machine's peak"] = f"{peak['gflop_per_s']:,.0f} GFLOP/s, {peak['copied_gb_per_s']:,.0f} GB/s"
    return by_policy(["decisions a second, and share of the peak"], cells)


def settings_table() -> str:
    """Return how settings of the runtimes compare with the chosen ones."""
    cells: Cells = {}
    for policy in policies():
        if rows := read_rows(STUDIES / policy / "settings.csv"):
            cells[policy] = {
                f"{row['runtime']}: {row['setting']}": "chosen"
                if row["finding"] == "chosen"
                else f"{float(row['times_as_fast']):.2f} ({float(row['low']):.2f} to {float(row['high']):.2f}), "
                + row["finding"]
                for row in rows
            }
    return by_policy(["setting: times as fast"], cells)


def quantised_table() -> str:
    """Return how programs of fewer bits compare with ``policy.onnx``."""
    rows = []
    for policy, report in results("quantised", STUDIES).items():
        for name, entry in ({"`policy.onnx`": report["reference"]} | report["programs"]).items():
            others, fast = entry.get("other_actions"), entry.get("times_as_fast")
            size = entry.get("file_bytes")
            rows.append(
                [
                    f"`{policy}`",
                    name,
                    f"{number(entry.get('p50_us'))} / {number(entry.get('p99_us'))}",
                    ratio(fast) if fast else NOTHING,
                    number(others, ".1%"),
                    number(size),
                    f"{entry['verdict']}: {entry['reason'].partition(':')[0]}" if "verdict" in entry else NOTHING,
                ]
            )
    return table(["policy", "program", "us, p50 / p99", "times as fast", "other actions", "bytes", "verdict"], rows)


def measured_on(stage: str, pipeline: Path = Path()) -> str:
    """Return the machines and libraries of the last runs of a stage, as ``dvc.lock`` has them.

    Args:
        stage: of the pipeline.
        pipeline: the folder of its ``dvc.yaml``.
    """
    path = pipeline / "dvc.lock"
    stages = read_yaml(path.read_text())["stages"] if path.is_file() else {}
    machines: dict[str, list[str]] = {}
    for policy in policies():
        facts = stages.get(f"{stage}@{policy}", {}).get("params", {})
        if machine := facts.get("results/machine.json"):
            versions = facts.get("results/versions.json", {})
            libraries = [f"{name} {versions[name]}" for name in ("torch", "onnxruntime") if versions.get(name)]
            told = ", ".join([machine["cpu"], f"{machine['cores']} cores", machine["architecture"], *libraries])
            machines.setdefault(told, []).append(f"`{policy}`")
    if not machines:
        return "There are no results yet."
    return "Measured on " + "; ".join(f"{told} ({', '.join(names)})" for told, names in machines.items()) + "."
