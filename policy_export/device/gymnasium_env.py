"""One of gymnasium's environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Action
from .errors import UserError


class GymEnvironment:
    """One of gymnasium's environments, driven like an :class:`Emulator`.

    Args:
        id: its name in gymnasium.
        max_episode_steps: decisions after which an episode is cut off.
        seed: seed of the environment's own random numbers.
    """

    def __init__(self, id: str, *, max_episode_steps: int, seed: int) -> None:  # noqa: A002
        try:
            import gymnasium
        except ImportError:
            raise UserError(f"{id} needs gymnasium: pip install gymnasium") from None
        try:
            # As it was made for the training: gymnasium's checker refuses some that play well.
            self.env = gymnasium.make(id, max_episode_steps=max_episode_steps, disable_env_checker=True)
            observation, _ = self.env.reset(seed=seed)
        except ModuleNotFoundError as error:
            missing = getattr(error.__cause__ or error, "name", None)  # gymnasium's own has none
            raise UserError(
                f"{id!r} needs the module {missing!r}, which is not there: put it next to the folder `player`"
            ) from None
        except Exception as error:  # whatever the environment's own module and constructor raise
            raise UserError(f"gymnasium does not make {id!r}: {' '.join(str(error).split())}") from None
        self.observation, self.done = self._observed(observation), False

    def _observed(self, observation: Any) -> npt.NDArray[Any]:
        """Return an observation in the dtype that the environment declares, as not every environment keeps to it."""
        return np.asarray(observation, self.env.observation_space.dtype)

    @property
    def state(self) -> bytes:
        """Return the observation, the nearest thing to a state that every environment has."""
        return self.observation.tobytes()

    def step(self, action: Action) -> float:
        """Play one decision (an action index, or a vector), and return its reward."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.observation, self.done = self._observed(observation), bool(terminated or truncated)
        return float(reward)
