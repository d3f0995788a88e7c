from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import stats

from policy_export.parity import report
from policy_export.parity.comparison import Batch, Comparison, Place


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


def test_tables(tmp_path):
    comparison = compared([[1.0, 0.0], [1.0, 0.9], [1.0, 1.0]], off=2e-6)
    programs = {"pt2": report.describe_open_loop(comparison, episodes=20)}
    report.write_tables(tmp_path, {"pt2": comparison}, programs)
    read = {path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.glob("*.csv")}
    assert [row["output"] for row in read["differences"]] == ["pt2 action_value"]
    assert float(read["differences"][0]["largest"]) == pytest.approx(2e-6, rel=0.1)
    counted = {float(row["log10_margin"]): int(row["decisions"]) for row in read["margins"] if row["decisions"] != "0"}
    assert counted == {-8.875: 1, -0.875: 1, 0.125: 1}
    assert float(read["flip_bounds"][0]["flips_in_a_million"]) == pytest.approx(1e6 * report.rate_bound(1, 3))


def test_report_has_no_number_that_json_lacks():
    assert report.finite({"a": [1.0, float("nan")], "b": {"c": float("inf")}, "d": "text", "e": None, "f": 3}) == {
        "a": [1.0, None],
        "b": {"c": None},
        "d": "text",
        "e": None,
        "f": 3,
    }
