"""The few numbers that a person decides by, for ``dvc metrics`` and ``dvc exp show``: at most twelve a policy.

They are rounded so that noise does not show: what has not changed has no difference. All the rest is in the reports
``results/<policy>/*.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from policy_export.stage.files import write_json

Number = float | int | str | None


def significant(number: float, digits: int) -> float:
    """Return a number rounded to so many significant digits; a whole one as an integer, without a point."""
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def power_of_ten(number: float) -> str:
    """Return the power of ten that a number is below, such as ``1e-5`` for 3.2e-6; ``0`` for zero.

    It is text, as DVC rounds numbers to five decimals and would show 0.
    """
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    return f"1e{math.ceil(math.log10(abs(number)))}"


def write_metrics(policy: str, stage: str, numbers: Mapping[str, Number]) -> None:
    """Write a stage's part of a policy's metrics, ``results/<policy>/metrics/<stage>.json``.

    All policies have the same names, so that ``dvc metrics show`` has one column for each.
    """
    write_json(Path("results", policy, "metrics", f"{stage}.json"), dict(numbers))
