"""How programs are timed: LoadGen's rules, the verdicts, and when a program may be called faster."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import ROOT
from safetensors.numpy import save_file

from policy_export.benchmark.loadgen import (
    CHECKED,
    PERCENTILES,
    allowed_over,
    needed_queries,
    percentile_of,
    throughput,
    time_queries,
)
from policy_export.benchmark.measured import Measured
from policy_export.benchmark.ratios import Ratio, compare, fastest
from policy_export.benchmark.report import name_fastest
from policy_export.benchmark.session import INPUTS, SETTINGS, TURN, Workload, expected_file
from policy_export.program.decisions import ONE_INDEX

LEAST = 0.03  # of which speeds must differ before they are told apart


@pytest.mark.parametrize(("percentile", "queries"), [(0.9, 64), (0.99, 662), (0.999, 6636)])
def test_as_many_queries_are_needed_as_loadgen_says(percentile, queries):
    assert needed_queries(percentile) == queries
    assert allowed_over(queries - 1, percentile) < 1 <= allowed_over(queries, percentile)


def test_percentile_is_exceeded_as_rarely_as_claimed():
    """Check that, over many runs, the reported p90 is below the true one in at most 1 of 100."""
    random, true = np.random.default_rng(0), -np.log(1 - 0.9)
    reported = [percentile_of((random.exponential(size=500) * 1e9).astype(np.int64), 0.9) for _ in range(2000)]
    assert np.mean(np.array(reported) < true * 1e9) <= 0.01
    assert np.median(reported) < 1.3 * true * 1e9


def test_percentile_of_too_few_is_not_told():
    times = np.arange(661)
    assert percentile_of(times, 0.99) is None
    assert percentile_of(np.arange(662), 0.99) == 661


def test_queries_are_copied_before_their_time_and_checked_after():
    feed, seen, checked = {"x": np.zeros(1)}, [], []

    def run(inputs):
        assert inputs is feed
        time.sleep(0.002)
        seen.append(inputs["x"].item())
        return {"y": inputs["x"] * 2}

    def check(answers):
        time.sleep(0.02)
        checked.append([answer["y"].item() for answer in answers])

    count = CHECKED + 3
    times = time_queries(run, feed, ({"x": np.array([float(value)])} for value in range(count)), check)
    assert seen == list(range(count))
    assert [len(answers) for answers in checked] == [CHECKED, 3]
    assert np.concatenate(checked).tolist() == [2 * value for value in range(count)]
    assert (times >= 2e6).all()
    assert np.median(times) < 20e6


def test_throughput_counts_rows():
    calls, start = [], time.perf_counter()
    speed = throughput(lambda feed: calls.append(time.sleep(0.01)) or feed, {"x": np.zeros((8, 2))}, 0.05)
    passed = time.perf_counter() - start
    assert 8 * len(calls) / passed <= speed <= 8 / 0.01


def measured(rounds=3, queries=2212, scale=1.0, **times) -> Measured:
    random = np.random.default_rng(0)
    found = Measured([1.0] * rounds, peak_memory=2048)
    for scenario in ("single", "multi", "fresh", "repeated", "contended"):
        factor = times.get(scenario, scale)
        found.times[scenario] = [(random.normal(1e5, 1e3, queries) * factor).astype(np.int64) for _ in range(rounds)]
    return found


def test_result_is_valid():
    entry = measured().describe(noise=0.25)
    assert (entry["valid"], entry["reason"], entry["queries"]) == (True, "", 6636)
    assert 99 < entry["p50_us"] < entry["p90_us"] < entry["p99_us"] < entry["p99_9_us"] < 110
    assert entry["late"] == {"15hz": 0, "60hz": 0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"queries": 2000}, "too few queries: 6000, p99.9 needs 6636"),
        ({"repeated": 0.5, "rounds": 8, "queries": 830}, "answers are kept"),
    ],
)
def test_result_is_invalid(change, reason):
    assert reason in measured(**change).reason_invalid(0.25)


def test_baseline_may_claim_less():
    few = measured(queries=300)
    few.claimed = "p99"
    assert few.reason_invalid(0.25) is None
    few.times["single"] = few.times["single"][:2]
    assert few.reason_invalid(0.25) == "too few queries: 600, p99 needs 662"


def test_noisy_rounds_and_wrong_outputs_are_invalid():
    noisy = measured(rounds=24, queries=280)
    noisy.times["single"][:5] = [times * 2 for times in noisy.times["single"][:5]]
    assert noisy.reason_invalid(0.25) is None  # less than a quarter of the rounds
    noisy.times["single"][5:8] = [times * 2 for times in noisy.times["single"][5:8]]
    assert noisy.reason_invalid(0.25).startswith("too noisy: half of the rounds' medians are 100 to 200 us")
    wrong = measured()
    wrong.failures.append("action_value differs")
    assert wrong.reason_invalid(0.25) == "wrong outputs: action_value differs"


def decide(feed):
    values = np.concatenate([feed["x"], -feed["x"]], 1)
    return {"action": values.argmax(1), "action_value": values}


@pytest.fixture
def workload(tmp_path):
    """Give a function that makes a workload of a little program."""
    inputs = {"x": np.linspace(-1, 1, 8, dtype=np.float32)[:, None]}
    save_file(inputs, tmp_path / INPUTS)
    save_file(decide(inputs), tmp_path / expected_file(None))
    settings = {
        "tolerance": 1e-5,
        "states": [],
        "kinds": ONE_INDEX,
        "offline_seconds": 0.01,
        "candidates": {},
        "in_batches": [],
        "baseline_queries": 10,
    }
    (tmp_path / SETTINGS).write_text(json.dumps(settings))

    def make(run) -> Workload:
        made = Workload("onnx", run, tmp_path)
        made.random = np.random.default_rng(0)
        return made

    return make


def test_answers_are_checked_while_they_are_timed(workload):
    def wrong(feed):
        answers = decide(feed)
        answers["action_value"][feed["x"][:, 0] == 1] += 0.001  # of the last sample only
        return answers

    for run, failures in ((decide, False), (wrong, True)):
        single, many, offline = workload(run), workload(run), workload(run)
        single.stream(50)
        many.stream(10, 8)
        offline.offline(64)
        assert [bool(one.comparison.failures) for one in (single, many, offline)] == [failures] * 3


def test_program_that_keeps_its_answers_is_found_out(workload):
    last = {}

    def keep(feed):
        if last.get("x") != (asked := feed["x"].tobytes()):
            time.sleep(0.001)
        last["x"] = asked
        return decide(feed)

    found, asking = measured(rounds=24, queries=280), workload(keep)
    found.times["fresh"] = [asking.stream(TURN) for _ in range(8)]
    found.times["repeated"] = [asking.stream(TURN, repeated=True) for _ in range(8)]
    assert "answers are kept" in found.reason_invalid(0.25)
    assert not asking.comparison.failures


STARTER = """
from policy_export.benchmark.workload import running_emulator

with running_emulator("dqn") as emulator:
    print(emulator, flush=True)
    input()
"""


def state(process: int) -> str:
    """Return the kernel's letter for it: R for running, T for stopped, Z for one that has ended."""
    status = Path(f"/proc/{process}/stat")
    return status.read_text().rpartition(")")[2].split()[0] if status.exists() else "Z"


def becomes(process: int, letter: str) -> bool:
    deadline = time.monotonic() + 10
    while (found := state(process)) != letter and time.monotonic() < deadline:
        time.sleep(0.05)
    return found == letter


def test_environment_beside_ends_with_its_starter(workspace):
    """Check that it ends however its starter ends, even while it is paused."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(
        command, cwd=workspace, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        emulator = int(starter.stdout.readline())
        assert becomes(emulator, "T")
        starter.send_signal(signal.SIGKILL)
    assert becomes(emulator, "Z")


def test_late_decisions_are_counted():
    late = measured(contended=300.0)  # 30 ms
    assert late.describe(0.25)["late"] == {"15hz": 0, "60hz": 1}
    assert late.describe(0.25, rate_hz=25.0)["late"] == {"15hz": 0, "60hz": 1, "25hz": 0}
    assert late.describe(0.25, rate_hz=62.5)["late"]["62.5hz"] == 1


def test_ratio_has_the_interval_of_its_rounds():
    random = np.random.default_rng(0)
    one, other = random.normal(100, 2, 24), random.normal(200, 4, 24)
    ratio = compare(one, other)
    assert 1.9 < ratio.low < ratio.ratio < ratio.high < 2.1
    assert ratio.ratio == pytest.approx(2.0, abs=0.04)
    assert ratio.faster
    one[:4] *= 10  # a noisy minute
    assert compare(one, other).ratio == pytest.approx(2.0, abs=0.04)


def test_few_rounds_tell_nothing():
    assert not compare([100.0] * 5, [200.0] * 5).faster
    one_round = compare([100.0], [200.0])
    assert one_round == Ratio(2.0, 0.0, math.inf, 0.0)
    assert one_round.as_dict() == {"ratio": 2.0, "low": 0.0, "high": None}


def test_interval_holds_the_true_ratio():
    """Check that it does so as often as claimed, whatever the distribution of the noise."""
    random = np.random.default_rng(0)
    pairs = [(random.lognormal(0, 0.3, 24), 3 * random.lognormal(0, 0.3, 24)) for _ in range(400)]
    assert (
        np.mean([low <= 3 <= high for low, high in ((r.low, r.high) for r in (compare(*pair) for pair in pairs))])
        > 0.92
    )


def test_the_same_twice_has_no_winner():
    """Check that, with rounds that differ by 3 %, one of two equal programs is called faster in at most 1 of 20."""
    random = np.random.default_rng(0)
    winners = sum(
        fastest({name: random.normal(100, 3, 24).tolist() for name in ("one", "other")}, LEAST) is not None
        for _ in range(400)
    )
    assert winners <= 20


def test_fastest_is_found_outside_the_noise_only():
    random = np.random.default_rng(0)
    speeds = {"a": random.normal(100, 2, 24), "b": random.normal(150, 2, 24), "c": random.normal(130, 2, 24)}
    assert fastest(speeds, LEAST) == "a"
    assert fastest(speeds | {"d": random.normal(100, 2, 24)}, LEAST) is None
    assert fastest({"a": speeds["a"]}, LEAST) is None


def test_no_program_is_named_fastest_where_the_fastest_is_invalid():
    """Check that the fastest of the others is not named instead."""
    found = {"onnx": measured(rounds=24, queries=280, scale=1.0), "pt2": measured(rounds=24, queries=280, scale=2.0)}
    described = {name: one.describe(0.25) for name, one in found.items()}
    assert name_fastest(found, described, LEAST) == "onnx"
    found["onnx"].failures.append("action_value differs")
    described = {name: one.describe(0.25) for name, one in found.items()}
    assert name_fastest(found, described, LEAST) is None


def test_percentiles_are_named_in_order():
    assert list(PERCENTILES.values()) == sorted(PERCENTILES.values())
