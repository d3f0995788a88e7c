"""Whether an exploring program draws its actions as the trained policy does: as often, and independently.

All programs draw many times in the same few situations. The tests of actions to choose from are exact or conservative,
those of vectors are exact in the limit of many draws: the chance that a faultless program fails is at most the sum of
the levels that its tests are held to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from play import Arrays
from stages.common import params, runtimes
from stages.common.decisions import is_choice
from stages.common.runtimes import Run

ROWS = 32  # of a call that show the same situation

Actions = npt.NDArray[np.int64 | np.float32]


@dataclass
class Draws:
    """How a program that explores draws; its least likely test, held to a share of the error rate."""

    draws: int
    tests: int
    least_p: float
    failures: list[str]


@dataclass(frozen=True)
class Finding:
    """One test: what was compared, what was found, and how likely a faultless program is to be found as far off."""

    what: str
    found: str
    p: float


def draw(run: Run, situations: Arrays, calls: int) -> Actions:
    """``(situations, calls, ROWS)`` actions; every call is one batch of all situations, ``ROWS`` times each.

    Where an action is a vector, ``(situations, calls, ROWS, k)``.
    """
    batch = {name: np.repeat(array, ROWS, 0) for name, array in situations.items()}
    actions = [run(batch)["action"] for _ in range(calls)]
    return np.stack([drawn.reshape(-1, ROWS, *drawn.shape[1:]) for drawn in actions], 1)


def draw_by_name(policy: str, programs: Iterable[str], situations: Arrays, calls: int) -> dict[str, Actions]:
    """:func:`draw` with some of a policy's programs, by their names."""
    return {name: draw(runtimes.load_by_name(policy, name, threads=1), situations, calls) for name in programs}


def judge(eager: Actions, actions: Actions, processes: tuple[Actions, Actions], tolerance: float) -> Iterator[Finding]:
    """All tests of one program.

    Args:
        eager: what the trained policy drew, ``(situations, calls, ROWS)``, or the same with vectors.
        actions: what the program drew, the same shape; ``calls`` is even.
        processes: what it drew in two processes of their own, ``(situations, ...)`` each.
        tolerance: largest difference of numbers that are not drawn.
    """
    pairs = {
        "neighbouring rows": (actions[:, :, 0::2], actions[:, :, 1::2]),
        "the two halves of a batch's rows": np.split(actions, 2, 2),
        "calls": (actions[:, 0::2], actions[:, 1::2]),
        "processes": processes,
    }
    if is_choice(actions):
        yield from compare_frequencies(eager, actions)
        for between, (first, second) in pairs.items():
            yield compare_pairs(between, first, second)
        return
    for component in range(actions.shape[-1]):
        yield from compare_distributions(component, eager[..., component], actions[..., component], tolerance)
        for between, (first, second) in pairs.items():
            yield from correlate_pairs(between, component, first[..., component], second[..., component])


def compare_distributions(component: int, eager: Actions, actions: Actions, tolerance: float) -> Iterator[Finding]:
    """How a number of a vector is distributed, in each situation and in all: the two-sample Kolmogorov-Smirnov test.

    Taken together, the numbers are standardised with mean and deviation of both programs' draws in a situation.
    """
    both = np.concatenate([eager, actions], 1)
    axes = tuple(range(1, both.ndim))
    spread = both.std(axes, keepdims=True)
    scaled = [(drawn - both.mean(axes, keepdims=True)) / np.where(spread, spread, 1) for drawn in (eager, actions)]
    if (varied := spread.ravel() > tolerance).any():
        ones, others = (drawn[varied].ravel() for drawn in scaled)
        found = f"standardised mean {others.mean():.4g} and std {others.std():.4g}, eager {ones.mean():.4g} and "
        p = float(stats.ks_2samp(ones, others).pvalue)
        yield Finding(f"distribution of action[{component}] in all situations", f"{found}{ones.std():.4g}", p)
    for situation, (ones, others) in enumerate(zip(eager, actions, strict=True)):
        what = f"distribution of action[{component}] in situation {situation}"
        found = f"mean {others.mean():.4g} and std {others.std():.4g}, eager {ones.mean():.4g} and {ones.std():.4g}"
        if np.ptp(ones) <= tolerance:  # not drawn
            p = float(np.abs(others - ones.ravel()[0]).max() <= tolerance)
        else:
            p = float(stats.ks_2samp(ones.ravel(), others.ravel()).pvalue)
        yield Finding(what, found, p)


def correlate_pairs(between: str, component: int, first: Actions, second: Actions) -> Iterator[Finding]:
    """Whether pairs of draws in the same situation are correlated: the test of Spearman's rank correlation."""
    for situation, (ones, others) in enumerate(zip(first, second, strict=True)):
        if np.ptp(ones) == 0 or np.ptp(others) == 0:  # no correlation of what is constant
            continue
        result = stats.spearmanr(ones.ravel(), others.ravel())
        what = f"independence of {between}, action[{component}] in situation {situation}"
        yield Finding(what, f"rank correlation {result.statistic:.4g} of {ones.size} pairs", float(result.pvalue))


def compare_frequencies(eager: Actions, actions: Actions) -> Iterator[Finding]:
    """How often each action comes, in each situation, and in all taken together: Fisher's exact test.

    Taken together are the situations in which the action is eager's most frequent one, and those in which it is not.
    """
    of_eager, of_program = _counts(eager, actions)
    draws = eager[0].size
    for (situation, action), count in np.ndenumerate(of_eager):
        what = f"action {action} in situation {situation}"
        yield _compare_counts(what, int(count), int(of_program[situation, action]), draws)
    frequent = np.eye(of_eager.shape[1], dtype=bool)[of_eager.argmax(-1)]
    yield _compare_counts(
        "eager's most frequent actions", int(of_eager[frequent].sum()), int(of_program[frequent].sum()), eager.size
    )
    for action, rare in enumerate(~frequent.T):
        at_eager, at_program = (int(count[rare, action].sum()) for count in (of_eager, of_program))
        what = f"action {action} where it is not eager's most frequent"
        yield _compare_counts(what, at_eager, at_program, int(rare.sum()) * draws)


def _counts(*draws: Actions) -> list[Actions]:
    """How often each action was drawn in each situation, ``(situations, actions)`` for each of the draws."""
    size = 1 + max(int(drawn.max()) for drawn in draws)
    return [np.stack([np.bincount(actions.ravel(), minlength=size) for actions in drawn]) for drawn in draws]


def _compare_counts(what: str, eager: int, program: int, draws: int) -> Finding:
    table = np.array([[eager, program], [draws - eager, draws - program]])
    found = f"{program} of {draws} draws, eager {eager}"
    return Finding(f"frequency of {what}", found, float(stats.fisher_exact(table).pvalue))


def compare_pairs(between: str, first: Actions, second: Actions) -> Finding:
    """Whether pairs of draws in the same situation differ as often as independent draws do: a binomial test."""
    drawn = first[0].size
    ones, others = (counts / drawn for counts in _counts(first, second))
    expected = 1 - float(np.clip((ones * others).sum(-1).mean(), 0, 1))
    different = int((first != second).sum())
    p = stats.binomtest(different, first.size, expected).pvalue
    found = f"{different} of {first.size} pairs differ, {expected * first.size:.0f} expected"
    return Finding(f"independence of {between}", found, float(p))


def judge_draws(
    drawn: dict[str, Actions], first: list[dict[str, Actions]], settings: params.ParityCheck
) -> dict[str, Draws]:
    """Hold every program's draws against those of the policy itself, ``eager_random``.

    ``random_error_rate`` is shared by all tests of all programs, so that it bounds the chance of any false alarm.
    """
    expected = drawn["eager_random"]
    findings = {
        name: list(judge(expected, drawn[name], (first[0][name], first[1][name]), settings.tolerance))
        for name in drawn
        if name != "eager_random"
    }
    level = settings.random_error_rate / sum(map(len, findings.values()))
    return {
        name: Draws(
            expected.size,
            len(found),
            float(np.min([finding.p for finding in found])),
            [f"{finding.what}: {finding.found} (p {finding.p:.1e})" for finding in found if not finding.p >= level],
        )
        for name, found in findings.items()
    }
