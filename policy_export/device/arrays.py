"""Types of what a policy sees and decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Arrays]
# An index, an array, or where an action has several entries, each by its name.
Action = int | npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
