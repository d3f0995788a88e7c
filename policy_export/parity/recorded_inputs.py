"""Decisions of a recorded episode, with the memory that the policy had there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from policy_export.backends import runtimes
from policy_export.device.arrays import Arrays, Run
from policy_export.device.manifest import read_manifest
from policy_export.device.player import Player
from policy_export.environments.episodes import Episode, load, observe
from policy_export.parity.comparison import Place


class RecordedInputs(NamedTuple):
    """Decisions: their places, and the program's inputs there, one row each."""

    places: list[Place]
    inputs: Arrays

    def spread(self, count: int) -> RecordedInputs:
        """Return ``count`` of them, spread evenly, or all if there are fewer."""
        rows = _spread(len(self.places), count)
        return RecordedInputs(
            [self.places[row] for row in rows], {name: array[rows] for name, array in self.inputs.items()}
        )


def _spread(total: int, count: int) -> list[int]:
    return sorted(set(np.linspace(0, total - 1, count).round().astype(int).tolist()))


def pick_recorded_inputs(run: Run, episode: Episode, manifest: dict[str, Any], count: int) -> RecordedInputs:
    """Return ``count`` decisions spread evenly over an episode, or all if it is shorter; the memory is ``run``'s."""
    wanted = _spread(len(episode), count)
    player, recorded_inputs = Player(run, manifest), []
    for step, shown in enumerate(observe(episode, manifest)):
        observations = {name: array[None] for name, array in player.read(shown).items()}
        if step in wanted:
            recorded_inputs.append(player.feed | observations)
        player.step(observations)
    inputs = {name: np.concatenate([inputs[name] for inputs in recorded_inputs]) for name in recorded_inputs[0]}
    return RecordedInputs([Place(episode.seed, step) for step in wanted], inputs)


def pick_by_name(policy: str, program: str, count: int) -> RecordedInputs:
    """Run :func:`pick_recorded_inputs` on the last of the policy's recorded episodes, with a program by its name."""
    recorded = load(Path("data", policy, "episodes.safetensors"), policy)[-1]
    return pick_recorded_inputs(
        runtimes.load_by_name(policy, program, 1), recorded, read_manifest(Path("models", policy)), count
    )
