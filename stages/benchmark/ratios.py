"""Ratios between programs that were measured in the same rounds, and when one may be called faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

CONFIDENCE = 0.95  # of the intervals that are told
SURE = 0.99  # before a program is called the fastest
LEAST = 0.02  # what is less than 2 % apart is not told apart, however surely


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the first is, with an interval that holds it."""

    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the first is faster, outside the noise."""
        return self.low > 1 + LEAST

    def as_dict(self) -> dict[str, float]:
        return {"ratio": round(self.ratio, 3), "low": round(self.low, 3), "high": round(self.high, 3)}


def compare(one: Sequence[float], other: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """The ratio of two programs' speeds from their times, a pair a round.

    Student's interval of the mean of the rounds' logarithms: a round is one observation, however many queries it has,
    as what disturbs one query disturbs its neighbours too.
    """
    logs = np.log(np.asarray(other) / np.asarray(one))
    mean = float(logs.mean())
    if len(logs) == 1:
        return Ratio(float(np.exp(mean)), 0.0, float("inf"))
    half = float(t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return Ratio(float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)))


def fastest(times: dict[str, Sequence[float]]) -> str | None:
    """The one that is faster than every other, or none where the noise does not tell."""
    for name, own in times.items():
        if all(compare(own, other, SURE).faster for rival, other in times.items() if rival != name):
            return name
    return None
