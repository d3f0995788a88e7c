"""Check that an exploring program samples its actions as the trained policy does: as often, and independently.

All programs sample many times for the same few recorded inputs. Where the probabilities are known by which the policy
draws (they are outputs, and are compared as such), the samples are held against these, otherwise against the policy's
own samples. Where the noise has a state, which only programs that
explore have, they also act for many steps with each of these. The noise of one step must depend on that of the one
before as the policy's does, and begin anew where an episode begins.

The tests of discrete actions are exact or conservative, those of vectors are exact in the limit of many samples:
the chance that a faultless program fails is at most the sum of the levels that its tests are held to.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.device.arrays import Arrays, Run
from policy_export.device.manifest import action_kinds, read_manifest
from policy_export.parity.draws import (
    Finding,
    Probabilities,
    compare_at_every_distance,
    compare_with_probabilities,
    rates,
)
from policy_export.parity.exploration import complete, noise_states
from policy_export.program.decisions import ONE_INDEX, Kinds, components, is_choice, probabilities

ROWS = 32  # of a call that show the same input
STEPS = 60  # that are taken one after the other
BEGINS_ANEW = 40  # the step at which the noise of every second row does
SHOWN = (0, 5, BEGINS_ANEW, STEPS - 1)  # whose actions are compared, in the rows that go on
LAGS = (1, 5)  # steps between actions that are correlated
SAME = 1e-6  # by how much probabilities of one input may differ in several calls: by rounding in rows of a batch

Actions = npt.NDArray[np.int64 | np.float32]
Sampled = dict[str, Actions]  # by the name of what was sampled, such as ``action`` or ``agents_action[1]``


@dataclass
class SampleComparison:
    """The samples of a program that explores; its least likely test, held to a share of the error rate.

    ``power`` has, for what is drawn by known probabilities, how far another must be to be found 99 times of 100.
    """

    samples: int
    tests: int
    least_p: float
    failures: list[str]
    power: list[dict[str, Any]]


class Samples(NamedTuple):
    """What a program sampled, and the probabilities that it said, ``(inputs, choices)``, where it said them."""

    actions: Sampled
    probabilities: dict[str, Probabilities]


def sample(run: Run, recorded_inputs: Arrays, calls: int) -> Actions:
    """Return ``(inputs, calls, ROWS)`` actions, as :func:`sample_all` draws them.

    Where an action is a vector, the shape is ``(inputs, calls, ROWS, k)``.
    """
    (sampled,) = sample_all(run, recorded_inputs, calls, ONE_INDEX).actions.values()
    return sampled


def sample_all(run: Run, recorded_inputs: Arrays, calls: int, kinds: Kinds) -> Samples:
    """Return samples of all that an action is made of, by name, ``(inputs, calls, ROWS, ...)`` each.

    In half of the calls a batch has all inputs, ``ROWS`` times each: a row must be drawn by its own probabilities. In
    the others it has one input only: numbers that come again show best where they meet the same probabilities.
    """
    inputs = len(next(iter(recorded_inputs.values())))
    together = [np.repeat(np.arange(inputs), ROWS)] * (calls - calls // 2)
    alone = np.repeat(np.arange(inputs), calls // 2 * ROWS)
    shown = [*together, *np.split(alone, range(inputs * ROWS, len(alone), inputs * ROWS))]
    taken, said = [], []
    for rows in shown:
        outputs = run({name: array[rows] for name, array in recorded_inputs.items()})
        taken.append(parts_of(outputs, kinds))  # and not the states, which are large
        said.append(probabilities_of(outputs, kinds))
    sampled, chances = (
        {name: by_input(np.concatenate([call[name] for call in called]), inputs, calls) for name in called[0]}
        for called in (taken, said)
    )
    still = {name: each for name, each in chances.items() if np.ptp(each, (1, 2)).max() <= SAME}
    return Samples(sampled, {name: each[:, 0, 0].astype(np.float64) for name, each in still.items()})


def by_input(drawn: npt.NDArray[Any], inputs: int, calls: int) -> npt.NDArray[Any]:
    """Return draws in the order in which :func:`sample_all` draws them as ``(inputs, calls, ROWS, ...)``."""
    together = calls - calls // 2
    first, second = np.split(drawn, [together * inputs * ROWS])
    mixed = first.reshape(together, inputs, ROWS, *drawn.shape[1:])
    return np.concatenate([mixed.swapaxes(0, 1), second.reshape(inputs, -1, ROWS, *drawn.shape[1:])], 1)


def in_sequence(sampled: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return draws by input in the order in which they were drawn: the inverse of :func:`by_input`."""
    together = sampled.shape[1] - sampled.shape[1] // 2
    first, second = sampled[:, :together].swapaxes(0, 1), sampled[:, together:]
    return np.concatenate([part.reshape(-1, *sampled.shape[3:]) for part in (first, second)])


def probabilities_of(outputs: Arrays, kinds: Kinds) -> dict[str, npt.NDArray[Any]]:
    """Return what choices are drawn by, ``(batch, n)``, by the names that :func:`parts_of` gives them."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, kind in kinds.items():
        known = probabilities(outputs, name, kind)
        found |= {f"{name}[{place}]" if len(known) > 1 else name: each for place, each in enumerate(known)}
    return found


def parts_of(outputs: Arrays, kinds: Kinds) -> Sampled:
    """Return what actions are made of, by name, one row each: every choice alone, and vectors as they are."""
    found: Sampled = {}
    for name, kind in kinds.items():
        if chosen := components(outputs, name, kind):
            several = len(chosen) > 1
            found |= {f"{name}[{place}]" if several else name: taken for place, (taken, _) in enumerate(chosen)}
        else:
            found[name] = outputs[name].reshape(len(outputs[name]), -1)
    return found


def _by_input(sampled: Actions) -> Actions:
    return sampled.reshape(-1, ROWS, *sampled.shape[1:])


def sample_by_name(policy: str, programs: Iterable[str], recorded_inputs: Arrays, calls: int) -> dict[str, Samples]:
    """Run :func:`sample` with some of a policy's programs that explore, by their names.

    ``recorded_inputs`` are inputs of a deterministic program.
    """
    manifest = read_manifest(Path("models", policy))
    inputs, kinds = complete(recorded_inputs, manifest), action_kinds(manifest)
    return {name: sample_all(runtimes.load_by_name(policy, name, threads=1), inputs, calls, kinds) for name in programs}


def act(run: Run, recorded_inputs: Arrays, states: dict[str, str]) -> Actions:
    """Return ``(inputs, STEPS, ROWS)`` actions of episodes in which nothing but the noise changes.

    Where an action is a vector, the shape is ``(inputs, STEPS, ROWS, k)``.

    Args:
        run: a program that explores.
        recorded_inputs: its inputs, one row each.
        states: of the noise, input by output; they are handed on.
    """
    (acted,) = act_all(run, recorded_inputs, states, ONE_INDEX).values()
    return acted


def act_all(run: Run, recorded_inputs: Arrays, states: dict[str, str], kinds: Kinds) -> Sampled:
    """Return what :func:`act` does for all that an action is made of, by name."""
    feed, parts = {name: np.repeat(array, ROWS, 0) for name, array in recorded_inputs.items()}, []
    second = np.arange(len(feed["is_init"])).reshape(feed["is_init"].shape) % 2 == 1
    for step in range(STEPS):
        outputs = run(feed | {"is_init": second if step == BEGINS_ANEW else np.full_like(second, step == 0)})
        parts.append(parts_of(outputs, kinds))
        feed |= {name: outputs[output] for output, name in states.items()}
    return {name: np.stack([_by_input(part[name]) for part in parts], 1) for name in parts[0]}


def act_by_name(policy: str, program: str, recorded_inputs: Arrays) -> Sampled:
    """Run :func:`act` with a policy's exploring program, by its name; the inputs are a deterministic program's."""
    manifest = read_manifest(Path("models", policy))
    run = runtimes.load_by_name(policy, program, threads=1)
    return act_all(run, complete(recorded_inputs, manifest), noise_states(manifest), action_kinds(manifest))


def run_tests(
    eager: Actions,
    actions: Actions,
    processes: tuple[Actions, Actions],
    tolerance: float,
    known: Probabilities | None = None,
) -> Iterator[Finding]:
    """Return the findings of all tests of one program.

    Args:
        eager: what the trained policy sampled, ``(inputs, calls, ROWS)``, or the same with vectors.
        actions: what the program sampled, the same shape; ``calls`` is even.
        processes: what it sampled in two processes of their own, ``(inputs, ...)`` each.
        tolerance: largest difference of numbers that are not drawn.
        known: the probabilities by which the policy draws its choices; none where these are not known.
    """
    pairs = {
        "neighbouring rows": (actions[:, :, 0::2], actions[:, :, 1::2]),
        "the two halves of a batch's rows": np.split(actions, 2, 2),
        "calls": (actions[:, 0::2], actions[:, 1::2]),
        "processes": processes,
    }
    if is_choice(actions):
        if known is None:
            yield from compare_frequencies(eager, actions)
        else:
            yield from compare_with_probabilities(known, actions.astype(np.int64))
            yield from compare_sequences("", known, actions, *processes)
        for between, (first, second) in pairs.items():
            yield compare_pairs(between, first, second)
        return
    for component in range(actions.shape[-1]):
        ones, *all_others = (each[..., component] for each in (eager, actions, *processes))
        yield from compare_distributions(component, ones, all_others[0], tolerance)
        yield from compare_sides(component, tolerance, ones, *all_others)
        for between, (first, second) in pairs.items():
            yield from correlate_pairs(between, component, tolerance, first[..., component], second[..., component])


def compare_sides(component: int, tolerance: float, *sampled: Actions) -> Iterator[Finding]:
    """Test whether a number of a vector is above its median at any distance as often as independent numbers are.

    Args:
        component: which number.
        tolerance: largest difference of numbers that are not drawn, which have no sides.
        sampled: it in samples of eager, the program, and the program in two processes, ``(inputs, calls, ROWS)`` each.
    """
    together = np.concatenate(sampled, 1)
    middle = np.median(together, (1, 2), keepdims=True)
    middle[np.ptp(together, (1, 2)) <= tolerance] = np.inf
    above = [(each > middle).astype(np.int64) for each in sampled]
    share = np.concatenate(above, 1).mean((1, 2))  # less than a half where a bound is taken often
    chances, what = np.stack([1 - share, share], -1), f"side of the median of action[{component}]"
    yield from compare_sequences(f", {what}", chances, *above[1:])


def compare_sequences(what: str, chances: Probabilities, *sampled: Actions) -> Iterator[Finding]:
    """Test whether draws are independent at every distance, within one process and between two others.

    Args:
        what: describes the draws, for messages.
        chances: of each choice, ``(inputs, choices)``.
        sampled: choices by the process itself, and by the two others, ``(inputs, calls, ROWS)`` each.
    """
    shapes = [(*each.shape, chances.shape[1]) for each in sampled]
    of_own, of_both, _ = (in_sequence(np.broadcast_to(chances[:, None, None], shape)) for shape in shapes)
    own, *both = (in_sequence(each.astype(np.int64)) for each in sampled)
    yield compare_at_every_distance(f"of one process{what}", of_own, own)
    yield compare_at_every_distance(f"of two processes{what}", of_both, *both)


def compare_distributions(component: int, eager: Actions, actions: Actions, tolerance: float) -> Iterator[Finding]:
    """Compare one number of a vector, for each input and for all inputs together: two-sample Kolmogorov-Smirnov tests.

    For all together, the numbers are standardised with mean and deviation of both programs' samples for an input.
    """
    finding = compare_standardised(f"action[{component}] for all inputs", eager, actions, tolerance)
    if finding is not None:
        yield finding
    for index, (ones, others) in enumerate(zip(eager, actions, strict=True)):
        what = f"distribution of action[{component}] for input {index}"
        found = f"mean {others.mean():.4g} and std {others.std():.4g}, eager {ones.mean():.4g} and {ones.std():.4g}"
        if np.ptp(ones) <= tolerance:  # not drawn
            p = float(np.abs(others - ones.ravel()[0]).max() <= tolerance)
        else:
            p = float(stats.ks_2samp(ones.ravel(), others.ravel()).pvalue)
        yield Finding(what, found, p)


def compare_standardised(
    what: str, eager: Actions, actions: Actions, tolerance: float, *, size: bool = False
) -> Finding | None:
    """Compare the distributions of standardised numbers of several inputs, which are the first axis.

    Mean and deviation are those of both programs' numbers for an input. None where nothing varies.

    Args:
        what: describes what is compared.
        eager: the policy's numbers, ``(inputs, ...)``.
        actions: the program's, the same shape.
        tolerance: largest difference of numbers that are not drawn.
        size: compare the distances from the mean, on either side; this shows different deviations with fewer rows.
    """
    both = np.concatenate([eager, actions], 1)
    axes = tuple(range(1, both.ndim))
    spread = both.std(axes, keepdims=True)
    varied = ~(spread.ravel() <= tolerance)  # also what is no number, which fails
    if not varied.any():
        return None
    scaled = [(sampled - both.mean(axes, keepdims=True)) / np.where(spread, spread, 1) for sampled in (eager, actions)]
    ones, others = (np.abs(sampled[varied]).ravel() if size else sampled[varied].ravel() for sampled in scaled)
    found = f"standardised mean {others.mean():.4g} and std {others.std():.4g}, eager {ones.mean():.4g} and "
    p = float(stats.ks_2samp(ones, others).pvalue)
    return Finding(f"{'size' if size else 'distribution'} of {what}", f"{found}{ones.std():.4g}", p)


def correlate_pairs(
    between: str, component: int, tolerance: float, first: Actions, second: Actions
) -> Iterator[Finding]:
    """Test whether pairs of samples for the same input are correlated: Spearman's rank correlation."""
    for index, (ones, others) in enumerate(zip(first, second, strict=True)):
        if min(np.ptp(ones), np.ptp(others)) <= tolerance:  # not drawn; what rounding leaves may well be correlated
            continue
        result = stats.spearmanr(ones.ravel(), others.ravel())
        what = f"independence of {between}, action[{component}] for input {index}"
        yield Finding(what, f"rank correlation {result.statistic:.4g} of {ones.size} pairs", float(result.pvalue))


def compare_frequencies(eager: Actions, actions: Actions) -> Iterator[Finding]:
    """Compare how often each action occurs, for each input and for groups of inputs: Fisher's exact test.

    The groups are the inputs in which the action is eager's most frequent one, and those in which it is not.
    """
    of_eager, of_program = _counts(eager, actions)
    samples = eager[0].size
    for (index, action), count in np.ndenumerate(of_eager):
        what = f"action {action} for input {index}"
        yield _compare_counts(what, int(count), int(of_program[index, action]), samples)
    frequent = np.eye(of_eager.shape[1], dtype=bool)[of_eager.argmax(-1)]
    yield _compare_counts(
        "eager's most frequent actions", int(of_eager[frequent].sum()), int(of_program[frequent].sum()), eager.size
    )
    for action, rare in enumerate(~frequent.T):
        at_eager, at_program = (int(count[rare, action].sum()) for count in (of_eager, of_program))
        what = f"action {action} where it is not eager's most frequent"
        yield _compare_counts(what, at_eager, at_program, int(rare.sum()) * samples)


def _counts(*samples: Actions) -> list[Actions]:
    """Return how often each action was sampled for each input, ``(inputs, actions)`` for each argument.

    The first is action 0, or the least one, if that is below.
    """
    least = min(0, *(int(sampled.min()) for sampled in samples))
    size = 1 + max(int(sampled.max()) for sampled in samples) - least
    return [
        np.stack([np.bincount(actions.ravel() - least, minlength=size) for actions in sampled]) for sampled in samples
    ]


def _compare_counts(what: str, eager: int, program: int, samples: int) -> Finding:
    table = np.array([[eager, program], [samples - eager, samples - program]])
    found = f"{program} of {samples} samples, eager {eager}"
    return Finding(f"frequency of {what}", found, float(stats.fisher_exact(table).pvalue))


def compare_pairs(between: str, first: Actions, second: Actions) -> Finding:
    """Test whether pairs of samples for the same input differ as often as independent samples do: a binomial test."""
    sampled = first[0].size
    ones, others = (counts / sampled for counts in _counts(first, second))
    expected = 1 - float(np.clip((ones * others).sum(-1).mean(), 0, 1))
    different = int((first != second).sum())
    p = stats.binomtest(different, first.size, expected).pvalue
    found = f"{different} of {first.size} pairs differ, {expected * first.size:.0f} expected"
    return Finding(f"independence of {between}", found, float(p))


def check_noise(eager: Actions, actions: Actions, tolerance: float) -> Iterator[Finding]:
    """Test whether noise continues from step to step, and restarts, as the policy's does: Kolmogorov-Smirnov tests.

    Rows are independent of each other, the steps of a row are not, so every test takes one number per row.

    Args:
        eager: what the trained policy did, ``(inputs, STEPS, ROWS)``, or the same with vectors: of :func:`act`.
        actions: what the program did.
        tolerance: largest difference of numbers that are not drawn.
    """
    rows = eager.shape[:3]
    for component in range(eager[0, 0, 0].size):
        name = "action" if eager.shape == rows else f"action[{component}]"
        both = [taken.reshape(*rows, -1)[..., component] for taken in (eager, actions)]
        for lag in LAGS:
            of_eager, of_program = (persistence(taken[:, :BEGINS_ANEW], lag, tolerance).ravel() for taken in both)
            found = f"median {np.median(of_program):.4g}, eager {np.median(of_eager):.4g}"
            p = float(stats.ks_2samp(of_eager, of_program).pvalue)
            yield Finding(f"correlation of {name} with that of {lag} steps before", found, p)
        going_on, anew = ([taken[:, :, start::2] for taken in both] for start in (0, 1))
        compared = {f"{name} at step {step}": [taken[:, step] for taken in going_on] for step in SHOWN}
        where = "where the noise begins anew"
        compared |= {
            f"{name} {where}": [taken[:, BEGINS_ANEW] for taken in anew],
            f"the change of {name} {where}": [np.diff(taken, axis=1)[:, BEGINS_ANEW - 1] for taken in anew],
            f"{name} {STEPS - 1 - BEGINS_ANEW} steps after the noise has begun anew": [taken[:, -1] for taken in anew],
        }
        for (what, (ones, others)), size in itertools.product(compared.items(), (False, True)):
            finding = compare_standardised(what, ones, others, tolerance, size=size)
            if finding is not None:
                yield finding


def persistence(actions: Actions, lag: int, tolerance: float) -> npt.NDArray[np.float64]:
    """Return the autocorrelation of each row's action over some steps; 1 where it does not vary.

    For discrete actions, which have no order, return the share that is the same.

    Args:
        actions: ``(inputs, steps, rows)``.
        lag: the steps.
        tolerance: largest difference of numbers that are not drawn.

    Returns:
        ``(inputs, rows)``.
    """
    if is_choice(actions):
        return np.mean(actions[:, lag:] == actions[:, :-lag], 1)
    varied = np.ptp(actions, 1) > tolerance
    apart = actions - actions.mean(1, keepdims=True, dtype=np.float64)
    products, squares = (apart[:, lag:] * apart[:, :-lag]).sum(1), (apart**2).sum(1)
    return np.where(varied, products / np.where(varied, squares, 1), 1)


def check_samples(
    sampled: dict[str, Samples],
    first: list[dict[str, Samples]],
    settings: params.ParityCheck,
    acted: dict[str, Sampled] | None = None,
) -> dict[str, SampleComparison]:
    """Compare every program's samples with those of the policy itself, ``eager_random``.

    ``random_error_rate`` is shared by all tests of all programs, so that it bounds the chance of any false alarm.

    Args:
        sampled: of :func:`sample`, by program.
        first: the same, in two processes of their own.
        settings: of the check.
        acted: of :func:`act`, by program, where the noise has a state.
    """
    (expected, known), acted = sampled["eager_random"], acted or {}
    of_eager = [
        dataclasses.replace(_of_part(part, finding), what=f"the policy's own {finding.what}")
        for part, probability in known.items()
        for finding in compare_with_probabilities(probability, expected[part].astype(np.int64))
    ]
    findings = {
        name: of_eager
        + [
            _of_part(part, finding)
            for part, own in sampled[name].actions.items()
            for finding in run_tests(
                expected[part],
                own,
                (first[0][name].actions[part], first[1][name].actions[part]),
                settings.tolerance,
                known.get(part),
            )
        ]
        for name in sampled
        if name != "eager_random"
    }
    for name in findings.keys() & acted.keys():
        for part, own in acted[name].items():
            noise = check_noise(acted["eager_random"][part], own, settings.tolerance)
            findings[name] += [_of_part(part, finding) for finding in noise]
    level = settings.random_error_rate / sum(map(len, findings.values()))
    power = [
        {"what": _named(part, rate.what), "probability": rate.probability}
        | dict(zip(("found_below", "found_above"), rate.detectable(level), strict=True))
        for part, probability in known.items()
        for rate in rates(probability, expected[part].astype(np.int64))
    ]
    return {
        name: SampleComparison(
            sum(part.size for part in expected.values()),
            len(found),
            float(np.min([finding.p for finding in found])),
            [f"{finding.what}: {finding.found} (p {finding.p:.1e})" for finding in found if not finding.p >= level],
            power,
        )
        for name, found in findings.items()
    }


def _named(part: str, what: str) -> str:
    """Return what is compared, with the part of an action that it is of, unless there is only the one ``action``."""
    return what if part == "action" else f"{part}: {what}"


def _of_part(part: str, finding: Finding) -> Finding:
    return dataclasses.replace(finding, what=_named(part, finding.what))
