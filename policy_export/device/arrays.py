"""Types of what a policy sees and decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Arrays]
Action = int | npt.NDArray[np.float32]
