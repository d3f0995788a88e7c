"""Golden decisions: recorded observations with what the policy makes of them, for a device to prove itself by."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.device.arrays import Arrays, Run
from policy_export.device.environments import make_environment
from policy_export.device.golden import GOLDEN, GOLDEN_MAGIC
from policy_export.device.manifest import value_names
from policy_export.device.player import Player
from policy_export.environments.episodes import Episode, replay
from policy_export.stage.files import replacing

SEGMENTS = 4  # stretches of an episode


def pick_steps(steps: int, count: int) -> list[range]:
    """Stretches of an episode, spread evenly over it.

    There are four, each with a quarter of ``count`` decisions, rounded down but not to none. Where the episode is
    shorter than ``count`` they are a quarter of the episode long, and of fewer than four decisions each is a stretch.
    """
    length = max(1, min(count, steps) // SEGMENTS)
    starts = np.linspace(0, steps - length, min(SEGMENTS, steps)).round().astype(int).tolist()
    return [range(start, start + length) for start in dict.fromkeys(starts)]


def decide(
    run: Run, episode: Episode, facts: dict[str, Any], count: int
) -> Iterator[tuple[bool, npt.NDArray[Any], Arrays]]:
    """Decisions of a recorded episode: whether the memory is reset before it, the observation, and all outputs."""
    player, stretches = Player(run, facts), pick_steps(len(episode.actions), count)
    for step, observation in enumerate(replay(episode, make_environment(facts, episode.seed))):
        if step >= stretches[-1].stop:
            return
        if starts := any(step == stretch.start for stretch in stretches):
            player.reset()
        if any(step in stretch for stretch in stretches):
            yield starts, observation, player.step(observation[None])


def write_golden(path: Path, run: Run, episode: Episode, facts: dict[str, Any], *, count: int, tolerance: float) -> int:
    """Write golden decisions, in the format of ``native/src/golden.h``; returns how many.

    Args:
        run: a program that is known to decide as the policy.
        episode: what is observed; at the start of each stretch of it the memory is reset.
        facts: of the policy, as in its exported program.
        count: of the decisions.
        tolerance: largest difference of a value.
    """
    names = value_names(facts)
    decisions = []
    for starts, observation, outputs in decide(run, episode, facts, count):
        answers = [np.ascontiguousarray(outputs[name]).tobytes() for name in names]
        decisions.append((bytes([starts]), observation.tobytes(), outputs["action"].tobytes(), b"".join(answers)))
    sizes = [len(part) for part in decisions[0][1:]]
    header = struct.pack(GOLDEN, facts["policy"].encode(), len(decisions), *sizes, tolerance)
    with replacing(path) as temporary:
        temporary.write_bytes(GOLDEN_MAGIC + header + b"".join(map(b"".join, decisions)))
    return len(decisions)
