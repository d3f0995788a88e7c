"""One Atari console."""

from __future__ import annotations

from collections.abc import Sequence

import ale_py
import ale_py.roms
import numpy as np

from .arrays import Action, Arrays
from .errors import UserError


class Emulator:
    """One Atari console, driven one decision at a time.

    A decision is ``frame_skip`` emulator frames with the same action and the summed reward; it ends early when the game
    does. ``observation`` is the screen, such as ``(210, 160, 3)`` uint8, and is overwritten by every step. The same
    ``seed`` and the same actions give the same screens, bit for bit.

    Args:
        rom: name of the game in ale-py, such as ``"pong"``.
        actions: the ALE action id of every action index.
        frame_skip: emulator frames per decision.
        repeat_action_probability: chance that a frame repeats the previous action (sticky actions).
        max_episode_steps: decisions after which an episode is cut off.
        seed: seed of the emulator's own random numbers.
    """

    def __init__(
        self,
        rom: str,
        actions: Sequence[int],
        *,
        frame_skip: int,
        repeat_action_probability: float,
        max_episode_steps: int,
        seed: int,
    ) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", seed)  # read when the ROM is loaded, so it comes first
        self.ale.setFloat("repeat_action_probability", repeat_action_probability)
        self.ale.setInt("max_num_frames_per_episode", max_episode_steps * frame_skip)
        path = ale_py.roms.get_rom_path(rom)
        if path is None:
            raise UserError(f"ale-py has no game called {rom!r}")
        self.ale.loadROM(path)
        by_id = {action.value: action for action in self.ale.getLegalActionSet()}
        self.actions = [by_id[ale_id] for ale_id in actions]
        self.frame_skip = frame_skip
        self.observation = np.empty((*self.ale.getScreenDims(), 3), np.uint8)
        self.ale.reset_game()
        self.ale.getScreenRGB(self.observation)

    @property
    def observations(self) -> Arrays:
        """Return the screen by its name; it is overwritten by the next step."""
        return {"observation": self.observation}

    @property
    def done(self) -> bool:
        return bool(self.ale.game_over())

    @property
    def state(self) -> bytes:
        """Return the console's 128 bytes of memory."""
        return self.ale.getRAM().tobytes()

    def step(self, action: Action) -> float:
        """Play one decision (an action index), and return its reward."""
        ale, ale_action, reward = self.ale, self.actions[int(action)], 0  # type: ignore[arg-type]
        for _ in range(self.frame_skip):
            reward += ale.act(ale_action)
            if ale.game_over():
                break
        ale.getScreenRGB(self.observation)
        return reward
