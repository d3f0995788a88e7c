"""Run the programs on recorded observations, and compare every output with eager's.

Each deterministic program has its own memory and sees everything. A program that explores, made from the same policy,
sees every ``EXPLORING_STRIDE``-th step, with eager's memory; its outputs are compared as well. Only the state of its
noise, where it has one, is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.backends import runtimes
from policy_export.backends.registry import RANDOM
from policy_export.config import params
from policy_export.device.arrays import Arrays, Run
from policy_export.device.environments import make_environment
from policy_export.device.errors import UserError
from policy_export.device.manifest import read_manifest
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode
from policy_export.parity.comparison import Batch, Comparison, Place
from policy_export.parity.exploration import exploring, without_noise

EXPLORING_STRIDE = 8
LEFT_OVER = 7  # every number of the memory that a program is given at the start, to be ignored


def watch(recorded: list[Episode], manifest: dict[str, Any]) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
    """Yield, for each step, the episodes that have not ended and their observations."""
    replays = [episodes.replay(episode, make_environment(manifest, episode.seed)) for episode in recorded]
    while True:
        seen = [next(replay, None) for replay in replays]
        playing = [episode for episode, observation in enumerate(seen) if observation is not None]
        if not playing:
            return
        yield playing, np.stack([observation for observation in seen if observation is not None])


def decide(name: str, player: Player, observations: npt.NDArray[Any]) -> Arrays:
    """Return a program's outputs for observations, computed with its memory.

    Raises:
        UserError: its outputs lack a next state.
    """
    try:
        return player.step(observations)
    except KeyError as error:
        raise UserError(f"{name}: has no output {error}") from None


def check_open_loop(
    eager: Run,
    programs: dict[str, Run],
    recorded: list[Episode],
    manifest: dict[str, Any],
    settings: params.ParityCheck,
) -> dict[str, Comparison]:
    """Run all programs on what was recorded, the episodes side by side.

    Raises:
        UserError: a program's outputs are not those of eager, or an episode does not replay.
    """
    states = {state["output"] for state in manifest["states"]}
    results = {name: Comparison(not name.endswith(RANDOM), settings.tolerance, states) for name in programs}
    remembering = {name: run for name, run in programs.items() if not name.endswith(RANDOM)}
    players = {name: Player(run, manifest, len(recorded)) for name, run in {"eager": eager, **remembering}.items()}
    for player in players.values():
        for name in player.states.values():
            player.feed[name][...] = LEFT_OVER
    explorers = {
        name: Player(run, exploring(manifest), len(recorded))
        for name, run in programs.items()
        if name not in remembering
    }
    playing = list(range(len(recorded)))
    for step, (still, observations) in enumerate(watch(recorded, manifest)):
        if still != playing:
            for player in (*players.values(), *explorers.values()):
                player.keep([playing.index(episode) for episode in still])
            playing = still
        inputs = {name: player.feed | {player.observation: observations} for name, player in players.items()}
        outputs = {name: decide(name, player, observations) for name, player in players.items()}
        for name, player in explorers.items() if step % EXPLORING_STRIDE == 0 else ():
            player.feed |= inputs["eager"]
            inputs[name], outputs[name] = player.feed.copy(), decide(name, player, observations)
        expected = outputs.pop("eager")
        places = [Place(recorded[episode].seed, step) for episode in playing]
        for name, found in outputs.items():
            try:
                compared = without_noise(found, manifest) if name in explorers else found
                results[name].compare(Batch(places, expected, compared, inputs[name]))
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    return results


def check_by_name(policy: str, programs: list[str], settings: params.ParityCheck) -> dict[str, Comparison]:
    """Run :func:`check_open_loop` for some of a policy's programs, by their names, with its recorded episodes."""
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    eager, *runs = (runtimes.load_by_name(policy, name, threads=1) for name in ("eager", *programs))
    manifest = read_manifest(Path("models", policy))
    return check_open_loop(eager, dict(zip(programs, runs, strict=True)), recorded, manifest, settings)
