"""The environment that a manifest describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from .emulator import Emulator
from .gymnasium_env import GymEnvironment
from .player import Player

Environment = Emulator | GymEnvironment


def make_environment(manifest: dict[str, Any], seed: int) -> Environment:
    """Return the environment that the manifest describes, at the start of an episode.

    Raises:
        UserError: the environment is not available.
    """
    environment = manifest["environment"]
    if "rom" not in environment:
        return GymEnvironment(environment["id"], max_episode_steps=environment["max_episode_steps"], seed=seed)
    return Emulator(
        environment["rom"],
        [action["ale_id"] for action in manifest["actions"]],
        frame_skip=environment["frame_skip"],
        repeat_action_probability=environment["repeat_action_probability"],
        max_episode_steps=environment["max_episode_steps"],
        seed=seed,
    )


def play(player: Player, seed: int) -> Iterator[tuple[float, npt.NDArray[Any]]]:
    """Play one episode; yield each decision's reward and the observation it led to.

    A screen is overwritten by the next step: copy it to keep it.
    """
    environment = make_environment(player.manifest, seed)
    player.reset()
    while not environment.done:
        yield environment.step(player.act(environment.observation)), environment.observation
