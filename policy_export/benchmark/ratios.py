"""Ratios between programs that were measured in the same rounds, and when one may be called faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import quantile_test

CONFIDENCE = 0.95  # of the intervals that are told
SURE = 0.99  # before a program is called the fastest


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the first is, with an interval that holds it.

    Attributes:
        ratio: of the speeds.
        low: of the interval.
        high: of the interval; infinite of too few rounds.
        least_difference: share by which speeds must differ before they are told apart.
    """

    ratio: float
    low: float
    high: float
    least_difference: float

    @property
    def faster(self) -> bool:
        """Whether the first is faster, outside the noise."""
        return self.low > 1 + self.least_difference

    @property
    def slower(self) -> bool:
        """Whether the first is slower, outside the noise."""
        return self.high * (1 + self.least_difference) < 1

    def as_dict(self) -> dict[str, float | None]:
        """For JSON: too few rounds have no upper bound."""
        high = round(self.high, 3) if math.isfinite(self.high) else None
        return {"ratio": round(self.ratio, 3), "low": round(self.low, 3), "high": high}


def compare(
    one: Sequence[float], other: Sequence[float], least_difference: float = 0.0, confidence: float = CONFIDENCE
) -> Ratio:
    """The ratio of two programs' speeds from their times, a pair a round.

    The median of the rounds' ratios and its distribution-free interval (of the binomial distribution), so that a noisy
    minute moves neither. A round is one observation, however many queries it has, as what disturbs one query disturbs
    its neighbours too; fewer than six rounds have no interval at 95 %, fewer than eight none at 99 %.
    """
    ratios = np.asarray(other) / np.asarray(one)
    middle = float(np.median(ratios))
    interval: Any = quantile_test(ratios, q=middle).confidence_interval(confidence)
    low, high = np.nan_to_num(interval.low, nan=0.0), np.nan_to_num(interval.high, nan=np.inf)
    return Ratio(middle, float(low), float(high), least_difference)


def fastest(times: Mapping[str, Sequence[float]], least_difference: float) -> str | None:
    """The one that is faster than every other, or none where the noise does not tell or there is no other."""
    if len(times) < 2:
        return None
    for name, own in times.items():
        if all(compare(own, other, least_difference, SURE).faster for rival, other in times.items() if rival != name):
            return name
    return None
