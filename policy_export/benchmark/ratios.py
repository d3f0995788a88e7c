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
    """How many times as fast the first program is, with an interval that contains it.

    Attributes:
        ratio: ratio of the speeds.
        low: lower end of the interval.
        high: upper end of the interval; infinite for too few rounds.
        least_difference: share by which speeds must differ to count as different.
    """

    ratio: float
    low: float
    high: float
    least_difference: float

    @property
    def faster(self) -> bool:
        """Return whether the first is faster, outside the noise."""
        return self.low > 1 + self.least_difference

    @property
    def slower(self) -> bool:
        """Return whether the first is slower, outside the noise."""
        return self.high * (1 + self.least_difference) < 1

    def as_dict(self) -> dict[str, float | None]:
        """Return a dictionary for JSON; with too few rounds there is no upper bound."""
        high = round(self.high, 3) if math.isfinite(self.high) else None
        return {"ratio": round(self.ratio, 3), "low": round(self.low, 3), "high": high}


def compare(
    one: Sequence[float], other: Sequence[float], least_difference: float = 0.0, confidence: float = CONFIDENCE
) -> Ratio:
    """Return the ratio of two programs' speeds from their times, one pair per round.

    It is the median of the rounds' ratios, with its distribution-free interval (of the binomial distribution), so a
    noisy minute changes neither. A round is one observation, however many queries it has, as what disturbs one query
    also disturbs its neighbours. Fewer than six rounds have no interval at 95 %, fewer than eight none at 99 %.
    """
    ratios = np.asarray(other) / np.asarray(one)
    middle = float(np.median(ratios))
    interval: Any = quantile_test(ratios, q=middle).confidence_interval(confidence)
    low, high = np.nan_to_num(interval.low, nan=0.0), np.nan_to_num(interval.high, nan=np.inf)
    return Ratio(middle, float(low), float(high), least_difference)


def fastest(times: Mapping[str, Sequence[float]], least_difference: float) -> str | None:
    """Return the one that is faster than every other; none if the noise is too large or there is no other."""
    if len(times) < 2:
        return None
    for name, own in times.items():
        if all(compare(own, other, least_difference, SURE).faster for rival, other in times.items() if rival != name):
            return name
    return None
