"""Tests of draws with known probabilities: they are as frequent as these say, and independent at every distance.

The draws of a program are one sequence, call after call, row after row. Two draws at any distance are of two numbers of
the generator: one that repeats itself, or whose parts follow from each other, makes them agree more or less often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, signal, stats

Draws = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]

CANDIDATES = 32  # distances, the most conspicuous, that are tested; the level is that of all
POWER = 0.99


@dataclass(frozen=True)
class Finding:
    """One test: what was compared, what was found, and the probability that a faultless program differs as much."""

    what: str
    found: str
    p: float


@dataclass(frozen=True)
class Rate:
    """How often something should be drawn, over all inputs.

    Attributes:
        what: describes it.
        probability: by which it is drawn, on average.
        draws: number of all draws among which it is counted.
        count: how often it was drawn.
    """

    what: str
    probability: float
    draws: int
    count: int

    @property
    def p(self) -> float:
        """Return the probability of a count that is as unlikely on one side, twice.

        Rates of several inputs are averaged: a sum of draws with different probabilities varies less (Hoeffding, 1956).
        """
        chance = float(np.clip(self.probability, 0, 1))
        below = stats.binom.cdf(self.count, self.draws, chance)
        above = stats.binom.sf(self.count - 1, self.draws, chance)
        return float(min(1.0, 2 * min(below, above)))

    def detectable(self, level: float) -> tuple[float, float]:
        """Return the probabilities below and above which another is found with a chance of 99 %; 0 or 1 for none.

        Args:
            level: to which the test is held.
        """
        chance = float(np.clip(self.probability, 0, 1))
        few = stats.binom.ppf(level / 2, self.draws, chance) - 1  # the largest count that is too few
        many = stats.binom.isf(level / 2, self.draws, chance) + 1

        def lacks(other: float) -> float:
            return float(stats.binom.cdf(few, self.draws, other)) - POWER

        def exceeds(other: float) -> float:
            return float(stats.binom.sf(many - 1, self.draws, other)) - POWER

        below = optimize.brentq(lacks, 0.0, chance) if few >= 0 and chance > 0 else 0.0
        above = optimize.brentq(exceeds, chance, 1.0) if many <= self.draws and chance < 1 else 1.0
        return below, above


def rates(probabilities: Probabilities, actions: Draws) -> Iterator[Rate]:
    """Yield how often each choice was drawn over all inputs where it is not the likeliest, and all of these together.

    Args:
        probabilities: of each choice, ``(inputs, choices)``.
        actions: what was drawn, ``(inputs, ...)``.
    """
    likeliest = np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(-1)]
    counts, each = count(actions, probabilities.shape[1]), actions[0].size
    rare = np.where(likeliest, 0, probabilities)
    yield Rate(
        "any action but the likeliest",
        float(rare.sum() / len(rare)),
        actions.size,
        int(counts[:, : likeliest.shape[1]][~likeliest].sum()),
    )
    for action, where in enumerate((~likeliest).T):
        if where.any():
            chance, found = float(probabilities[where, action].mean()), int(counts[where, action].sum())
            yield Rate(f"action {action} where it is not the likeliest", chance, int(where.sum()) * each, found)


def count(actions: Draws, choices: int) -> npt.NDArray[np.int64]:
    """Return how often each choice was drawn for each input, ``(inputs, choices + 1)``: the last are no choices."""
    known = np.where((actions >= 0) & (actions < choices), actions, choices)
    return np.stack([np.bincount(each.ravel(), minlength=choices + 1) for each in known])


def compare_with_probabilities(probabilities: Probabilities, actions: Draws) -> Iterator[Finding]:
    """Compare how often each choice was drawn, for each input and over all, with its probability: binomial tests."""
    counts, each = count(actions, probabilities.shape[1]), actions[0].size
    if strange := int(counts[:, -1].sum()):
        yield Finding("frequency of what is no choice", f"{strange} of {actions.size} draws", 0.0)
    alone = (
        Rate(f"action {action} for input {index}", float(chance), each, int(counts[index, action]))
        for (index, action), chance in np.ndenumerate(probabilities)
    )
    for rate in (*alone, *rates(probabilities, actions)):
        expected = rate.probability * rate.draws
        found = f"{rate.count} of {rate.draws} draws, {expected:.1f} expected"
        yield Finding(f"frequency of {rate.what}", found, rate.p)


def compare_at_every_distance(
    between: str, chances: Probabilities, first: Draws, second: Draws | None = None
) -> Finding:
    """Test whether draws at any distance are independent: whether they agree as often as their probabilities say.

    Args:
        between: describes what lies between the draws.
        chances: the probabilities by which each draw was made, ``(draws, choices)``.
        first: what was drawn, in the order in which it was, ``(draws,)``.
        second: what was drawn by another process; none for distances within the one sequence.

    Returns:
        the most conspicuous distance; its probability is that of all distances together.
    """
    choices, within = chances.shape[1], second is None
    both = (first, first if second is None else second)
    of_first, of_second = (np.eye(choices + 1)[np.clip(each, 0, choices)][:, :choices] for each in both)
    rarely = 1 - np.eye(choices)[chances.argmax(-1)]
    rare = [(each * rarely).sum(-1, keepdims=True) for each in (of_first, of_second, chances)]
    distances = np.arange(1, len(chances)) if within else np.arange(1 - len(chances), len(chances))
    tests = len(distances) * (2 if within else 1) * 2
    least, found = 1.0, "nothing conspicuous"
    for what, ones, others, chance in (
        ("the same action", of_first, of_second, chances),
        ("not the likeliest action", *rare),
    ):
        observed, expected = _correlate(ones, others)[distances], _correlate(chance, chance)[distances]
        conspicuous = np.abs(observed - expected) / np.sqrt(expected + 1)
        for distance in distances[np.argsort(conspicuous)[-CANDIDATES:]].tolist():
            for agreeing, wanted, pairs in _pairs_at(distance, ones, others, chance, within=within):
                if (p := _unlikely(agreeing, wanted, pairs)) < least:
                    of = f"{agreeing} of {pairs} pairs of draws {distance} apart, {wanted:.1f} expected"
                    least, found = p, f"{what} in {of}"
    return Finding(f"independence of draws {between}", found, min(1.0, least * tests))


def _correlate(ones: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sum of products at each distance, which may be negative, at its index."""
    steps = len(ones)
    total = np.sum([signal.correlate(b, a, method="fft") for a, b in zip(ones.T, others.T, strict=True)], 0)
    return np.concatenate([total[steps - 1 :], total[: steps - 1]])


def _pairs_at(
    distance: int,
    ones: npt.NDArray[np.float64],
    others: npt.NDArray[np.float64],
    chance: npt.NDArray[np.float64],
    *,
    within: bool,
) -> Iterator[tuple[int, float, int]]:
    """Yield how many pairs at a distance agree, how many should, and how many there are; no draw is in two pairs.

    Within one sequence these are two sets of pairs, as a draw has one such distance before it and one behind it.
    """
    steps = np.arange(max(0, -distance), len(ones) - max(0, distance))
    for part in (0, 1) if within else (None,):
        here = steps if part is None else steps[steps // distance % 2 == part]
        if len(here):
            agreeing = float((ones[here] * others[here + distance]).sum())
            yield round(agreeing), float((chance[here] * chance[here + distance]).sum()), len(here)


def _unlikely(agreeing: int, expected: float, pairs: int) -> float:
    """Return a bound on the chance that so many, or so few, of independent pairs agree: Chernoff's, on both sides."""
    share, wanted = agreeing / pairs, float(np.clip(expected / pairs, 1e-300, 1 - 1e-16))
    apart = stats.entropy([share, 1 - share], [wanted, 1 - wanted])
    return float(min(1.0, 2 * np.exp(-pairs * apart)))
