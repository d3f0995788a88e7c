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
    """Return a number rounded to so many significant digits."""
    return float(f"{number:.{digits}g}")


def power_of_ten(number: float) -> str:
    """Return the power of ten that a number is below, such as ``1e-5`` for 3.2e-6; ``0`` for zero.

    It is text, as DVC rounds numbers to five decimals and would show 0.
    """
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    return f"1e{math.ceil(math.log10(abs(number)))}"


def write_metrics(policy: str, stage: str, numbers: Mapping[str, Number]) -> None:
    """Write a stage's part of a policy's metrics, ``results/<policy>/metrics/<stage>.json``.

    The policy's name stands before each of them, as ``dvc exp show`` has those of all policies in one table.
    """
    write_json(Path("results", policy, "metrics", f"{stage}.json"), {policy: dict(numbers)})
