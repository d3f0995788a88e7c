"""Golden decisions: recorded observations with the policy's outputs, against which a device can test itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from policy_export.device.arrays import Arrays, Run
from policy_export.device.golden import GOLDEN, GOLDEN_MAGIC
from policy_export.device.manifest import action_names, observation_names, value_names
from policy_export.device.player import Player
from policy_export.environments.episodes import Episode, observe
from policy_export.stage.files import replacing

SEGMENTS = 4  # stretches of an episode


def pick_steps(steps: int, count: int) -> list[range]:
    """Return stretches of an episode, spread evenly over it.

    There are four, each with a quarter of ``count`` decisions, rounded down but at least one. If the episode is shorter
    than ``count``, each is a quarter of the episode long; with fewer than four decisions, each decision is a stretch.
    """
    length = max(1, min(count, steps) // SEGMENTS)
    starts = np.linspace(0, steps - length, min(SEGMENTS, steps)).round().astype(int).tolist()
    return [range(start, start + length) for start in dict.fromkeys(starts)]


def decide(run: Run, episode: Episode, facts: dict[str, Any], count: int) -> Iterator[tuple[bool, Arrays, Arrays]]:
    """Yield decisions of a recorded episode: whether the memory is reset before, the observations, and all outputs."""
    player, stretches = Player(run, facts), pick_steps(len(episode), count)
    for step, shown in enumerate(observe(episode, facts)):
        if step >= stretches[-1].stop:
            return
        if starts := any(step == stretch.start for stretch in stretches):
            player.reset()
        if any(step in stretch for stretch in stretches):
            observations = player.read({name: array[None] for name, array in shown.items()})
            yield starts, observations, player.step(observations)


def join(arrays: Arrays, names: list[str]) -> bytes:
    return b"".join(arrays[name].tobytes() for name in names)


def write_golden(path: Path, run: Run, episode: Episode, facts: dict[str, Any], *, count: int, tolerance: float) -> int:
    """Write golden decisions, in the format of ``native/src/golden.h``; returns how many.

    Args:
        run: a program that is known to decide as the policy does.
        episode: has the observations; the memory is reset at the start of each of its stretches.
        facts: of the policy, as in its exported program.
        count: of the decisions.
        tolerance: largest difference of a value.
    """
    inputs, actions, values = observation_names(facts), action_names(facts), value_names(facts)
    decisions = [
        (bytes([starts]), join(observations, inputs), join(outputs, actions), join(outputs, values))
        for starts, observations, outputs in decide(run, episode, facts, count)
    ]
    sizes = [len(part) for part in decisions[0][1:]]
    header = struct.pack(GOLDEN, facts["policy"].encode(), len(decisions), *sizes, tolerance)
    with replacing(path) as temporary:
        temporary.write_bytes(GOLDEN_MAGIC + header + b"".join(map(b"".join, decisions)))
    return len(decisions)
