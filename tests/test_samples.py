"""The tests of a program's samples: a faultless program passes, and every fault is found and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policy_export.device.arrays import Arrays
from policy_export.device.manifest import read_manifest
from policy_export.parity.samples import (
    BEGINS_ANEW,
    ROWS,
    STEPS,
    act,
    check_noise,
    compare_pairs,
    persistence,
    run_tests,
    sample,
    sample_by_name,
)
from policy_export.stage.processes import processes

pytestmark = pytest.mark.slow


ACTIONS, CALLS, LEVEL, TOLERANCE = 6, 128, 1e-6 / 100, 1e-5
GREEDY = np.array([0, 5, 2, 2, 1, 4, 3, 3])  # of eight recorded inputs


class Explorer:
    """An epsilon-greedy program over recorded inputs that are known by their number."""

    def __init__(self, seed: int | None, epsilon: float = 0.01) -> None:
        self.random, self.epsilon = np.random.default_rng(seed), epsilon

    def __call__(self, inputs: Arrays) -> Arrays:
        greedy = GREEDY[inputs["recorded input"]]
        explores, sampled = self.numbers(len(greedy))
        return {"action": np.where(explores < self.epsilon, sampled, greedy)}

    def numbers(self, rows: int):
        return self.random.random(rows), self.random.integers(ACTIONS, size=rows)


class OneSampleForAllRows(Explorer):
    def numbers(self, rows):
        return tuple(np.repeat(array, rows) for array in super().numbers(1))


class PairsOfRows(Explorer):
    def numbers(self, rows):
        return tuple(np.repeat(array, 2) for array in super().numbers(rows // 2))


class HalvesOfRows(Explorer):
    def numbers(self, rows):
        halves = [array.reshape(-1, 1, ROWS // 2) for array in super().numbers(rows // 2)]
        return tuple(np.broadcast_to(array, (rows // ROWS, 2, ROWS // 2)).ravel() for array in halves)


class SameInEveryCall(Explorer):
    def numbers(self, rows):
        self.random = np.random.default_rng(13)
        return super().numbers(rows)


class LacksAnAction(Explorer):
    def numbers(self, rows):
        explores, sampled = super().numbers(rows)
        return explores, np.where(sampled == ACTIONS - 1, 0, sampled)


def findings(make, seeds=(1, 2, 3)):
    """Return findings of ``make(seed)`` against an eager policy; seeds of the check's own process and two others."""
    recorded_inputs = {"recorded input": np.arange(len(GREEDY))}
    eager = sample(Explorer(0), recorded_inputs, CALLS)
    sampled = [sample(make(seed), recorded_inputs, CALLS) for seed in seeds]
    assert sampled[0].shape == (len(GREEDY), CALLS, ROWS)
    return list(run_tests(eager, sampled[0], (sampled[1], sampled[2]), TOLERANCE))


def test_faultless_programs_pass_and_p_is_no_smaller_than_it_says():
    least = []
    for seed in range(40):
        found = findings(Explorer, (1 + seed, 1000 + seed, 2000 + seed))
        least.append(min(finding.p for finding in found) * len(found))
    assert min(least) > 1e-3
    assert np.mean(np.array(least) < 0.1) <= 0.25  # 0.1 expected at most


def test_policy_that_never_explores_passes():
    recorded_inputs = {"recorded input": np.arange(len(GREEDY))}
    never = sample(Explorer(0, epsilon=0.0), recorded_inputs, CALLS)
    assert all(finding.p == 1 for finding in run_tests(never, never, (never, never), TOLERANCE))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda _: Explorer(5), "independence of processes: 0 of 32768 pairs differ, "),
        (OneSampleForAllRows, "independence of neighbouring rows: 0 of "),
        (PairsOfRows, "independence of neighbouring rows: 0 of "),
        (HalvesOfRows, "independence of the two halves of a batch's rows: 0 of "),
        (SameInEveryCall, "independence of calls: "),
        (lambda seed: Explorer(seed, epsilon=0.0), "frequency of eager's most frequent actions: 32768 of "),
        (lambda seed: Explorer(seed, epsilon=0.02), "frequency of eager's most frequent actions: "),
        (LacksAnAction, "frequency of action 5 where it is not eager's most frequent: 0 of "),
    ],
)
def test_fault_is_found_and_named(make, what):
    assert any(what in f"{finding.what}: {finding.found}" for finding in findings(make) if finding.p < LEVEL)


class Normal:
    """A program whose action is a vector of two numbers."""

    def __init__(self, seed: int, scale: float = 0.5, shift: float = 0.0) -> None:
        self.random, self.scale, self.shift = np.random.default_rng(seed), scale, shift

    def __call__(self, inputs: Arrays) -> Arrays:
        loc = GREEDY[inputs["recorded input"]][:, None] * [1.0, -1.0] + self.shift
        return {"action": (loc + self.scale * self.numbers(len(loc))).astype(np.float32)}

    def numbers(self, rows: int):
        return self.random.standard_normal((rows, 2))


class SameVectorInEveryCall(Normal):
    def numbers(self, rows):
        self.random = np.random.default_rng(13)
        return super().numbers(rows)


class Rounds(Normal):
    """What a row has differs in the last bits by the row's place, in every call and every process."""

    def numbers(self, rows):
        return np.arange(2 * rows).reshape(rows, 2) % 7 * (TOLERANCE / 7)


class PairsOfVectors(Normal):
    def numbers(self, rows):
        return np.repeat(super().numbers(rows // 2), 2, 0)


def vector_findings(make, seeds=(1, 2, 3), eager=None):
    recorded_inputs = {"recorded input": np.arange(len(GREEDY))}
    sampled = [sample(make(seed), recorded_inputs, CALLS) for seed in seeds]
    assert sampled[0].shape == (len(GREEDY), CALLS, ROWS, 2)
    return list(
        run_tests(sample(eager or Normal(0), recorded_inputs, CALLS), sampled[0], (sampled[1], sampled[2]), TOLERANCE)
    )


def test_faultless_vectors_pass_and_p_is_no_smaller_than_it_says():
    least = []
    for seed in range(40):
        found = vector_findings(Normal, (1 + seed, 1000 + seed, 2000 + seed))
        least.append(min(finding.p for finding in found) * len(found))
    assert min(least) > 1e-3
    assert np.mean(np.array(least) < 0.1) <= 0.25


def test_vectors_that_are_not_drawn_pass_within_the_tolerance():
    def near(_):
        return Normal(0, scale=0.0, shift=TOLERANCE / 2)

    assert all(finding.p == 1 for finding in vector_findings(near, eager=Normal(0, scale=0.0)))


def test_what_rounding_leaves_of_vectors_that_are_not_drawn_may_be_correlated():
    assert all(finding.p == 1 for finding in vector_findings(Rounds, eager=Normal(0, scale=0.0)))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda _: Normal(5), "independence of processes, action[0] for input 0: rank correlation 1 "),
        (SameVectorInEveryCall, "independence of calls, action[1]"),
        (PairsOfVectors, "independence of neighbouring rows, action[0]"),
        (lambda seed: Normal(seed, scale=0.55), "distribution of action[0] for all inputs: standardised mean "),
        (lambda seed: Normal(seed, shift=0.1), "distribution of action[1] for input 7: mean "),
        (lambda seed: Normal(seed, scale=0.0), "distribution of action[0] for input 0: mean 0 and std 0, "),
    ],
)
def test_fault_of_vectors_is_found_and_named(make, what):
    assert any(what in f"{finding.what}: {finding.found}" for finding in vector_findings(make) if finding.p < LEVEL)


BOUND = 4.0  # of vectors: for inputs 1 and 5 nothing or half of the noise is left of them


class Process:
    """A program whose noise is an Ornstein-Uhlenbeck process, with its state."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def begins(self, inputs: Arrays) -> np.ndarray:
        return inputs["is_init"]

    def step(self, noise: np.ndarray) -> np.ndarray:
        return 0.99 * noise + 0.02 * self.random.standard_normal(noise.shape)

    def __call__(self, inputs: Arrays) -> Arrays:
        noise = self.step(np.where(self.begins(inputs), 0, inputs["noise"])).astype(np.float32)
        loc = GREEDY[inputs["recorded input"]][:, None] * np.array([1, -1], np.float32)
        return {"action": np.clip(loc + noise, -BOUND, BOUND).astype(np.float32), "next_noise": noise}


class Restarts(Process):
    def begins(self, inputs):
        return np.ones_like(inputs["is_init"])


class NeverBeginsAnew(Process):
    def begins(self, inputs):
        return np.zeros_like(inputs["is_init"])


class BeginsAnewInAllRows(Process):
    def begins(self, inputs):
        return np.full_like(inputs["is_init"], inputs["is_init"].any())


class BeginsAnewInOtherRows(Process):
    def begins(self, inputs):
        return inputs["is_init"][::-1]


class Forgets(Process):
    def step(self, noise):
        return super().step(0.9 * noise)


class FirstNoiseStays(Process):
    def step(self, noise):
        return np.where(noise == 0, super().step(noise), noise)


class OffCentre(Process):
    def step(self, noise):
        return super().step(noise) + 0.04


class NoNoise(Process):
    def step(self, noise):
        return 0 * noise


def acted(program) -> np.ndarray:
    recorded_inputs = np.arange(len(GREEDY))
    inputs = {
        "recorded input": recorded_inputs,
        "noise": np.zeros((len(recorded_inputs), 2), np.float32),
        "is_init": np.zeros((len(recorded_inputs), 1), bool),
    }
    return act(program, inputs, {"next_noise": "noise"})


def noise_findings(make, seed: int = 1, eager: type[Process] = Process):
    expected, found = acted(eager(0)), acted(make(seed))
    assert found.shape == (len(GREEDY), STEPS, ROWS, 2)
    return list(check_noise(expected, found, TOLERANCE))


def test_faultless_noise_passes_and_p_is_no_smaller_than_it_says():
    least = []
    for seed in range(40):
        found = list(check_noise(acted(Process(seed)), acted(Process(1000 + seed)), TOLERANCE))
        least.append(min(finding.p for finding in found) * len(found))
    assert min(least) > 1e-3
    assert np.mean(np.array(least) < 0.1) <= 0.25


@pytest.mark.parametrize("same", [NoNoise, FirstNoiseStays, Restarts])
def test_program_passes_whose_noise_is_the_policys_own_kind(same):
    assert all(finding.p > 1e-4 for finding in noise_findings(same, eager=same))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Restarts, "correlation of action[0] with that of 1 steps before: median "),
        (Restarts, "size of action[1] at step 59: "),
        (Forgets, "size of action[0] at step 59: "),
        (NeverBeginsAnew, "size of action[0] where the noise begins anew: "),
        (NeverBeginsAnew, "size of the change of action[1] where the noise begins anew: "),
        (BeginsAnewInAllRows, "size of action[0] at step 40: "),
        (BeginsAnewInOtherRows, "size of action[0] where the noise begins anew: "),
        (BeginsAnewInOtherRows, "size of action[0] at step 40: "),
        (OffCentre, "distribution of action[1] at step 5: "),
        (FirstNoiseStays, "correlation of action[0] with that of 1 steps before: median 1, eager 0."),
        (NoNoise, "size of action[1] at step 0: "),
    ],
)
def test_fault_of_noise_is_found_and_named(make, what):
    assert any(what in f"{finding.what}: {finding.found}" for finding in noise_findings(make) if finding.p < LEVEL)


def test_noise_that_becomes_no_number_is_a_fault():
    found = acted(Process(1))
    found[2, -1, 0] = np.nan
    failed = {finding.what for finding in check_noise(acted(Process(0)), found, TOLERANCE) if not finding.p >= LEVEL}
    assert failed == {
        f"{kind} of action[{component}] at step 59" for kind in ("distribution", "size") for component in (0, 1)
    }


def test_noise_that_restarts_has_the_same_draws():
    """Check that samples of one step do not show this fault, so that several steps are needed."""
    inputs = {
        "recorded input": np.arange(len(GREEDY)),
        "noise": np.zeros((len(GREEDY), 2), np.float32),
        "is_init": np.ones((len(GREEDY), 1), bool),
    }
    eager, *sampled = (
        sample(program, inputs, CALLS) for program in (Process(0), Restarts(1), Restarts(2), Restarts(3))
    )
    assert all(finding.p > LEVEL for finding in run_tests(eager, sampled[0], (sampled[1], sampled[2]), TOLERANCE))


class Sticky(Explorer):
    """A program that explores with one action for five steps on average: its state, negative if it does not explore."""

    stays = 0.8

    def __call__(self, inputs: Arrays) -> Arrays:
        greedy, held = GREEDY[inputs["recorded input"]], np.where(inputs["is_init"][:, 0], -1, inputs["held"])
        samples, sampled = self.numbers(len(greedy))
        goes_on = (held >= 0) & (self.random.random(len(greedy)) < self.stays)
        held = np.where(goes_on, held, np.where(samples < 0.3, sampled, -1))
        return {"action": np.where(held >= 0, held, greedy), "next_held": held}


class NotSticky(Sticky):
    stays = 0.0


def test_choices_that_stay_are_told_from_those_that_are_drawn_anew():
    rows = len(GREEDY)
    inputs = {"recorded input": np.arange(rows), "held": np.zeros(rows, int), "is_init": np.zeros((rows, 1), bool)}
    eager, same, other = (
        act(program, inputs, {"next_held": "held"}) for program in (Sticky(0), Sticky(1), NotSticky(2))
    )
    assert same.shape == (rows, STEPS, ROWS)
    assert all(finding.p > 1e-4 for finding in check_noise(eager, same, TOLERANCE))
    found = [finding.what for finding in check_noise(eager, other, TOLERANCE) if finding.p < LEVEL]
    assert "correlation of action with that of 1 steps before" in found


def test_persistence_is_autocorrelation():
    """Check that it is a little less than the process's own for a walk of 40 steps, and 1 for a constant."""
    actions = acted(Process(3))[..., 0][:, :BEGINS_ANEW]
    found = persistence(actions, 1, TOLERANCE)
    assert found.shape == (len(GREEDY), ROWS)
    row = actions[0, :, 0].astype(float) - actions[0, :, 0].mean(dtype=float)
    assert found[0, 0] == pytest.approx((row[1:] * row[:-1]).sum() / (row**2).sum())
    assert (found[1] == 1).all()
    assert 0.8 < np.median(found[0]) < 0.99


def test_programs_draw_anew_in_every_process(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    inputs, names = read_manifest(Path("models/dqn"))["inputs"], ["pt2_random", "onnx_random"]
    recorded_inputs = {spec["name"]: np.zeros([8, *spec["shape"][1:]], spec["dtype"]) for spec in inputs}
    with processes(2, one_task_each=True) as executor:
        started = [executor.submit(sample_by_name, "dqn", names, recorded_inputs, 8) for _ in range(2)]
        first, second = (process.result() for process in started)
    for name in names:
        ones, others = first[name].actions["action"], second[name].actions["action"]
        assert ones.shape == (8, 8, ROWS)
        assert compare_pairs("processes", ones, others).p > LEVEL
        assert (ones != others).sum() > 0
