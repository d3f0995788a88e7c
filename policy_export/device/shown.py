"""What an environment of any kind shows."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from .arrays import Arrays


class Shown:
    """Something that shows ``observations``, arrays by name."""

    observations: Arrays

    @property
    def observation(self) -> npt.NDArray[Any]:
        """Return the only observation."""
        (observation,) = self.observations.values()
        return observation

    @property
    def state(self) -> bytes:
        """Return the observations, the nearest thing to a state that every environment has."""
        return b"".join(array.tobytes() for array in self.observations.values())
