"""The environment that a manifest describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .arrays import Arrays
from .emulator import Emulator
from .errors import UserError
from .gymnasium_env import GymEnvironment
from .player import Player
from .torchrl_env import TorchRLEnvironment

Environment = Emulator | GymEnvironment | TorchRLEnvironment


def make_environment(manifest: dict[str, Any], seed: int) -> Environment:
    """Return the environment that the manifest describes, at the start of an episode.

    Raises:
        UserError: the environment is not available.
    """
    environment = manifest["environment"]
    if not is_playable(manifest):
        raise UserError(
            f"{manifest.get('policy', 'the policy')} has no environment to play in, only recorded observations"
        )
    if "factory" in environment:
        return TorchRLEnvironment(
            environment["factory"],
            arguments=environment["arguments"],
            max_episode_steps=environment["max_episode_steps"],
            seed=seed,
        )
    if "rom" not in environment:
        return GymEnvironment(
            environment["id"],
            max_episode_steps=environment["max_episode_steps"],
            seed=seed,
            kwargs=environment.get("kwargs"),
        )
    return Emulator(
        environment["rom"],
        [action["ale_id"] for action in manifest["actions"]],
        frame_skip=environment["frame_skip"],
        repeat_action_probability=environment["repeat_action_probability"],
        max_episode_steps=environment["max_episode_steps"],
        seed=seed,
    )


def environment_name(manifest: dict[str, Any]) -> str:
    """Return what an environment is called: its id, its factory, or the file of what was recorded in it."""
    environment = manifest["environment"]
    return str(next(environment[kind] for kind in ("id", "factory", "recording") if kind in environment))


def is_playable(manifest: Mapping[str, Any]) -> bool:
    """Return whether there is an environment, and not only recorded observations."""
    return "recording" not in manifest["environment"]


def play(player: Player, seed: int) -> Iterator[tuple[float, Arrays]]:
    """Play one episode; yield each decision's reward and the observations it led to, by name.

    A screen is overwritten by the next step: copy it to keep it.
    """
    environment = make_environment(player.manifest, seed)
    player.reset()
    while not environment.done:
        yield environment.step(player.act(environment.observations)), environment.observations
