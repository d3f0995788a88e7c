"""The check's findings as JSON: the report, and the metrics that are taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from policy_export.device.manifest import DIGEST, sha256
from policy_export.parity.closed_loop import ClosedLoop
from policy_export.parity.comparison import DRIFT_STEPS, Comparison
from policy_export.parity.reference import Referenced
from policy_export.parity.samples import SampleComparison
from policy_export.stage.metrics import Number, power_of_ten, significant

PERCENTS = (50, 99, 99.9)
CONFIDENCE = 0.95
MARGIN_BINS = np.arange(-9, 4.01, 0.25)  # decimal logarithms
ASSUMES = (
    "decisions that are drawn independently from those that the policy meets; as those of one episode resemble each "
    "other, there is a bound for episodes too, which are independent"
)


def describe_verdict(content: Mapping[str, Any], manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what lies beside the programs: the verdict on each, and which report it is of.

    Args:
        content: of the report.
        manifest: of the model folder.
        path: where the report is.
    """
    checked = content["checked"]["programs"]
    return {
        "policy": manifest["policy"],
        "passed": content["passed"],
        DIGEST: manifest[DIGEST],
        "programs": {
            name: {
                **checked[name],
                "passed": entry["passed"],
                "decisions": entry["observations"],
                "different": entry["different_actions"],
                "ties": len(entry["ties"]),
            }
            for name, entry in content["programs"].items()
        },
        "revision": content["checked"]["revision"],
        "versions": content["checked"]["versions"],
        "report": str(path),
        "report_sha256": sha256(path),
    }


def finite(content: Any) -> Any:
    """Return a report for JSON, with None for each number that is not finite."""
    match content:
        case dict():
            return {key: finite(value) for key, value in content.items()}
        case list():
            return [finite(value) for value in content]
        case float() if not np.isfinite(content):
            return None
        case _:
            return content


def rate_bound(count: int, trials: int) -> float:
    """Return the upper bound at ``CONFIDENCE`` on a rate, from ``count`` of ``trials``: Clopper-Pearson, one-sided."""
    test = stats.binomtest(count, trials, alternative="less")
    return float(test.proportion_ci(CONFIDENCE, method="exact").high)


def flip_bounds(open_loop: Comparison, episodes: int) -> dict[str, float]:
    """Return bounds on how often actions differ from eager's, ties included: shares of decisions and of episodes."""
    seeds = {failure.place.seed for failure in open_loop.failures} | {tie["seed"] for tie in open_loop.ties}
    flips = open_loop.different_actions + len(open_loop.ties)
    return {
        "decisions": rate_bound(flips, open_loop.observations),
        "episodes": rate_bound(min(len(seeds) if flips else 0, episodes), episodes),
    }


def describe_open_loop(open_loop: Comparison, episodes: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "observations": open_loop.observations,
        "max_abs_difference": open_loop.max_abs_difference,
        "percentiles": open_loop.percentiles(PERCENTS),
        "different_actions": open_loop.different_actions if open_loop.compares_actions else None,
        "ties": open_loop.ties,
    }
    if open_loop.compares_actions:
        entry["flip_rate_bound"] = flip_bounds(open_loop, episodes)
        if open_loop.state_drift:
            entry["state_drift"] = {"steps": DRIFT_STEPS, **open_loop.state_drift}
    return entry


def describe_batch_invariance(rows: Comparison) -> dict[str, Any]:
    return {
        "rows": rows.observations,
        "max_abs_difference": rows.max_abs_difference,
        "different_actions": rows.different_actions,
        "ties": rows.ties,
        "equal_values": rows.equal_values,
    }


def describe_closed_loop(loop: ClosedLoop) -> dict[str, Any]:
    return {
        "episodes": loop.episodes,
        "identical": loop.identical,
        "ties": loop.ties,
        "max_action_difference": loop.max_action_difference,
        "steps": loop.steps,
        "mean_score": loop.mean_score,
    }


def describe_decisions(decisions: Comparison) -> dict[str, Any]:
    return {
        "decisions": decisions.observations,
        "different_actions": decisions.different_actions,
        "max_abs_difference": decisions.max_abs_difference,
        "ties": decisions.ties,
    }


def describe_reference(referenced: Referenced) -> dict[str, Any]:
    content: dict[str, Any] = {
        "function": referenced.function,
        "open_loop": describe_decisions(referenced.open_loop),
    }
    if referenced.closed_loop is not None:
        scores = np.array(referenced.scores)
        content["closed_loop"] = describe_decisions(referenced.closed_loop) | {
            "episodes": len(scores),
            "mean_score": float(scores.mean()) if len(scores) else None,
        }
    return content


def describe_samples(samples: SampleComparison) -> dict[str, Any]:
    return {
        "samples": samples.samples,
        "tests": samples.tests,
        "least_p": samples.least_p,
        "power": samples.power,
    }


def describe_margins(open_loop: Mapping[str, Comparison]) -> dict[str, Any]:
    """Return how many decisions have which margin between the policy's two best values, as a histogram.

    Args:
        open_loop: of each program.

    Returns:
        ``edges``, in decimal logarithms, one more than ``decisions``, which is none where no values are known.
    """
    margins = next((np.concatenate(part.margins) for part in open_loop.values() if part.margins), np.empty(0))
    logarithms = np.log10(np.clip(margins, 10.0 ** MARGIN_BINS[0], 10.0 ** MARGIN_BINS[-1]))
    return {"edges": MARGIN_BINS.tolist(), "decisions": np.histogram(logarithms, MARGIN_BINS)[0].tolist()}


def describe_metrics(content: Mapping[str, Any]) -> dict[str, Number]:
    """Return the metrics of a report: of all deterministic programs together, the worst where they differ."""
    programs = [entry for entry in content["programs"].values() if "flip_rate_bound" in entry]
    compared = [entry["observations"] + entry.get("closed_loop", {"steps": 0})["steps"] for entry in programs]
    largest = [
        value
        for entry in content["programs"].values()
        for name, value in entry["max_abs_difference"].items()
        if not name.startswith("next_")  # a state, of which larger differences are allowed where it is large
    ]
    return {
        "parity_passed": content["passed"],
        "decisions_compared": min(compared),
        "decisions_different": sum(entry["different_actions"] + len(entry["ties"]) for entry in programs),
        "different_per_million": significant(1e6 * max(entry["flip_rate_bound"]["decisions"] for entry in programs), 2),
        "largest_difference": power_of_ten(max(largest, default=0.0)),
    }
