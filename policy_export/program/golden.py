"""Golden decisions are recorded observations with the policy's outputs, by which every program can test itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from policy_export.config import params
from policy_export.device.arrays import Arrays, Run
from policy_export.device.golden import GOLDEN, INPUT, OUTPUT, STARTS, STATE, TIE, TOLERANCE
from policy_export.device.manifest import action_kinds, action_names, observation_names, value_names
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode, observe
from policy_export.program.archive import load_program
from policy_export.program.calls import wrap
from policy_export.program.decisions import Kinds, is_choice, margins, reach, scale
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


def near_ties(outputs: Arrays, values: list[str], kinds: Kinds, tolerance: float) -> npt.NDArray[np.bool_]:
    """Return the rows in which two values of a choice are so close that rounding may swap them, ``(batch,)``."""
    rows = len(next(iter(outputs.values())))
    size = np.max([np.ones(rows), *(scale(outputs[name]).max(1) for name in values)], 0)
    close = np.zeros(rows, bool)
    for name, kind in kinds.items():
        if is_choice(outputs[name]) and (apart := margins(outputs, name, kind)) is not None:
            close |= apart <= 2 * tolerance * size
    return close


def absolute_tolerance(facts: dict[str, Any], tolerance: float) -> float:
    """Return by what a number below 1 may differ: ``tolerance``, or its share of the largest bound of a vector."""
    return tolerance * max(float(reach(kind).max()) for kind in action_kinds(facts).values())


def write_golden(path: Path, run: Run, episode: Episode, facts: dict[str, Any], *, count: int, tolerance: float) -> int:
    """Write golden decisions, as :mod:`policy_export.device.golden` describes them; returns how many.

    Args:
        path: of the file.
        run: a program that is known to decide as the policy does.
        episode: has the observations; the memory is reset at the start of each of its stretches.
        facts: of the policy, as in its exported program.
        count: of the decisions.
        tolerance: by what a number may differ, in shares of its size above 1; of vectors with bounds, of the largest.
    """
    kinds, tolerance = action_kinds(facts), absolute_tolerance(facts, tolerance)
    starts, shown, made = zip(*decide(run, episode, facts, count), strict=True)
    values, begins = value_names(facts), Player(run, facts).feed
    seen = {name: np.concatenate([row[name] for row in shown]) for name in observation_names(facts)}
    decided = {name: np.concatenate([row[name] for row in made]) for name in [*action_names(facts), *values]}
    tensors = {
        **{f"{INPUT}{name}": array for name, array in seen.items()},
        STARTS: np.array(starts)[:, None],
        **{f"{OUTPUT}{name}": array for name, array in decided.items()},
        **{f"{STATE}{state['input']}": begins[state["input"]] for state in facts["states"]},
        TIE: near_ties(decided, values, kinds, tolerance),
        TOLERANCE: np.array([tolerance]),
    }
    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary)
    return len(starts)


def record_golden(policy: str, settings: params.Golden) -> int:
    """Write the golden decisions of a policy, of the longest episode that was recorded of it; returns how many."""
    import torch

    source = Path("models", policy, "policy.pt2")
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    program, facts = load_program(source, policy)
    torch.set_num_threads(1)
    return write_golden(
        source.with_name(GOLDEN),
        wrap(program.module()),
        max(recorded, key=len),
        facts,
        count=settings.decisions,
        tolerance=settings.tolerance,
    )
