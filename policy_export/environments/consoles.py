"""Atari consoles that play episode after episode, and whose state can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ale_py
import numpy as np
import numpy.typing as npt

from policy_export.device.emulator import Emulator


class Console(Emulator):
    """A console that plays one episode after the other, and can go on where another one was.

    The state that the emulator gives lacks the action that a sticky frame repeats. So a console's state is the
    emulator's at the start of the episode, where there is no such action, and the actions since then.

    Args:
        settings: the arguments of an Emulator, but for its seed.
        seed: seed of the emulator's own random numbers.
        screen: ``(height, width, 3)`` uint8, to which the console writes what it shows.
    """

    def __init__(self, settings: Mapping[str, Any], seed: int, screen: npt.NDArray[np.uint8]) -> None:
        super().__init__(**settings, seed=seed)
        self.observation = screen
        self._begin()

    def _begin(self) -> None:
        self.ale.getScreenRGB(self.observation)
        self.start, self.taken = self.ale.cloneState(include_rng=True), bytearray()

    def restart(self) -> None:
        """Begin the next episode."""
        self.ale.reset_game()
        self._begin()

    def play(self, action: int) -> float:
        """Play one decision, and return its reward."""
        self.taken.append(action)
        return self.step(action)

    @property
    def truncated(self) -> bool:
        return bool(self.ale.game_truncated())

    @property
    def saved(self) -> tuple[bytes, bytes]:
        return self.start.serialize(), bytes(self.taken)

    def restore(self, start: bytes, taken: bytes) -> None:
        """Go on where a console of the same settings was, whatever its seed, by what it had ``saved``."""
        self.ale.reset_game()
        self.ale.restoreState(ale_py.ALEState(start))
        self._begin()
        for action in taken:
            self.play(action)
