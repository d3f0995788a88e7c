from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from policy_export.benchmark.report import describe_metrics
from policy_export.parity import report
from policy_export.parity.comparison import Batch, Comparison, Place
from policy_export.stage.metrics import power_of_ten, significant


@pytest.mark.parametrize(("flips", "decisions"), [(0, 50_000), (3, 1000), (0, 1)])
def test_bound_is_the_rate_at_which_so_few_flips_have_a_chance_of_one_in_twenty(flips, decisions):
    bound = report.rate_bound(flips, decisions)
    assert stats.binom.cdf(flips, decisions, bound) == pytest.approx(0.05)


def test_bound_of_all():
    assert report.rate_bound(5, 5) == 1


def compared(values: list[list[float]], off: float) -> Comparison:
    """Return the comparison for one episode with a program whose values are off in the last decision."""
    eager = np.array(values, np.float32)
    found = eager.copy()
    found[-1] += off
    actions = np.array([0] * (len(values) - 1) + [1])
    comparison = Comparison(compares_actions=True, tolerance=1e-5, states=set())
    places = [Place(3, step) for step in range(len(values))]
    outputs = [{"action": taken, "action_value": given} for taken, given in ((0 * actions, eager), (actions, found))]
    comparison.compare(Batch(places, *outputs, inputs={}))
    return comparison


def test_ties_count_as_flips_and_an_episode_once():
    """Check that the bounds cover all differences, whether these can be explained or not."""
    tied = compared([[1.0, 0.0], [1.0, 1.0 - 2e-6]], off=2e-6)
    assert (tied.different_actions, len(tied.ties)) == (0, 1)
    assert report.flip_bounds(tied, episodes=20) == {
        "decisions": report.rate_bound(1, 2),
        "episodes": report.rate_bound(1, 20),
    }


def test_margins_are_counted_by_their_size():
    comparison = compared([[1.0, 0.0], [1.0, 0.9], [1.0, 1.0]], off=2e-6)
    margins = report.describe_margins({"pt2": comparison})
    counted = dict(zip(margins["edges"], margins["decisions"], strict=False))
    assert len(margins["edges"]) == len(margins["decisions"]) + 1
    assert {edge: count for edge, count in counted.items() if count} == {-9: 1, -1: 1, 0: 1}


def test_metrics_are_those_of_the_worst_program():
    programs = {}
    for name, off in (("pt2", 0.0), ("onnx", 2e-6)):
        entry = report.describe_open_loop(compared([[1.0, 0.0], [1.0, 1.0 - 2e-6]], off), episodes=20)
        entry["max_abs_difference"]["next_hidden"] = 0.5  # a state, which may be large
        programs[name] = entry | {"closed_loop": {"steps": 7}}
    programs["onnx_random"] = {"max_abs_difference": {"action_value": 3e-6}}
    assert report.describe_metrics({"passed": True, "programs": programs}) == {
        "parity_passed": True,
        "decisions_compared": 9,
        "decisions_different": 2,  # ties, in either program
        "different_per_million": pytest.approx(1e6 * report.rate_bound(1, 2), rel=0.01),
        "largest_difference": "1e-5",
    }


def test_median_of_too_few_queries_is_no_metric():
    measured = {name: {"p50_us": value, "file_bytes": 2e6} for name, value in (("pt2", 9.0), ("onnx", None))}
    content = {"programs": measured, "times_as_fast": {f"{name}_to_eager": {"ratio": 3.21} for name in measured}}
    assert describe_metrics(content) == {
        "onnx_p50_us": None,
        "pt2_p50_us": 9,
        "onnx_speedup": 3.2,
        "pt2_speedup": 3.2,
        "program_mb": 2,
    }


def test_numbers_that_are_shown_do_not_tell_noise():
    assert [significant(number, 2) for number in (46.14, 896.0, 0.0, -20.04)] == [46, 900, 0, -20]
    assert [power_of_ten(number) for number in (3.2e-6, 1e-5, 0.0, 0.5, 2.0)] == ["1e-5", "1e-5", "0", "1e0", "1e1"]


def test_report_has_no_number_that_json_lacks():
    assert report.finite({"a": [1.0, float("nan")], "b": {"c": float("inf")}, "d": "text", "e": None, "f": 3}) == {
        "a": [1.0, None],
        "b": {"c": None},
        "d": "text",
        "e": None,
        "f": 3,
    }
