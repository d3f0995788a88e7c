"""Run the programs on recorded observations, and compare every output with eager's.

Each deterministic program has its own memory and sees everything. A program that explores, made from the same policy,
sees every ``EXPLORING_STRIDE``-th step, with eager's memory; its outputs are compared as well, with those of eager as
it explores, which changes weights with noise; among them are the probabilities by which it draws. Only the state of its
noise, where it has one, is its own, and what eager draws anew at every call, as a plan that the action follows, has no
other value to be compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from policy_export.backends import runtimes
from policy_export.backends.registry import RANDOM
from policy_export.config import params
from policy_export.device.arrays import Arrays, Run
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds, read_manifest
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode
from policy_export.parity.comparison import Batch, Comparison, Place
from policy_export.parity.exploration import exploring, without_noise
from policy_export.program.decisions import Kinds

EXPLORING_STRIDE = 8
OWNER = "owner"  # the user's own program, which has taken actions in the recorded observations
LEFT_OVER = 7  # every whole number of the memory that a program is given at the start, to be ignored; others are NaN


def watch(recorded: list[Episode], manifest: dict[str, Any]) -> Iterator[tuple[list[int], Arrays]]:
    """Yield, for each step, the episodes that have not ended and their observations by name."""
    replays = [episodes.observe(episode, manifest) for episode in recorded]
    while True:
        seen = [next(replay, None) for replay in replays]
        playing = [episode for episode, observation in enumerate(seen) if observation is not None]
        if not playing:
            return
        shown = [observed for observed in seen if observed is not None]
        yield playing, {name: np.stack([observed[name] for observed in shown]) for name in shown[0]}


def taken_by_owner(recorded: list[Episode]) -> bool:
    """Return whether the episodes are a user's recording, with the actions that the user's own program has taken."""
    first = recorded[0]
    return (
        first.observations is not None
        and not first.state_hashes.any()
        and isinstance(first.actions, np.ndarray)
        and first.actions.size > 0
    )


def owned(recorded: list[Episode], playing: list[int], step: int, expected: Arrays, kinds: Kinds) -> Arrays:
    """Return the actions that the user's own program has taken at a step of some episodes."""
    taken = np.stack([np.asarray(recorded[episode].action(step)) for episode in playing])
    return {name: taken.astype(expected[name].dtype) for name in kinds}


@contextmanager
def naming_program(name: str) -> Iterator[None]:
    """Add a program's name to the messages of its faults."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def decide(name: str, player: Player, observations: Arrays) -> Arrays:
    """Return a program's outputs for observations, computed with its memory.

    Raises:
        UserError: its outputs lack a next state.
    """
    try:
        return player.step(observations)
    except KeyError as error:
        raise UserError(f"{name}: has no output {error}") from None


def undrawn(explorer: Run, feed: Arrays, manifest: dict[str, Any], actions: set[str]) -> Arrays:
    """Return the actions of a policy that explores, and those of its outputs that are the same in two calls."""
    one, other = (without_noise(explorer(feed), manifest) for _ in range(2))
    return {
        name: array
        for name, array in one.items()
        if name in actions or np.array_equal(array, other[name], equal_nan=array.dtype.kind == "f")
    }


def check_open_loop(
    eager: Run,
    programs: dict[str, Run],
    recorded: list[Episode],
    manifest: dict[str, Any],
    settings: params.ParityCheck,
    *,
    explorer: Run | None = None,
) -> dict[str, Comparison]:
    """Run all programs on what was recorded, the episodes side by side.

    Args:
        eager: the policy without exploration.
        programs: by name.
        recorded: the episodes.
        manifest: names, dtypes and shapes of their inputs and outputs.
        settings: of the check.
        explorer: the policy as it explores; none where its values are those without exploration.

    Raises:
        UserError: a program's outputs are not those of eager, or an episode does not replay.
    """
    states = {state["output"] for state in manifest["states"]}
    kinds = action_kinds(manifest)
    compared = [*programs, *([OWNER] if taken_by_owner(recorded) else [])]
    results = {name: Comparison(not name.endswith(RANDOM), settings.tolerance, states, kinds) for name in compared}
    remembering = {name: run for name, run in programs.items() if not name.endswith(RANDOM)}
    players = {name: Player(run, manifest, len(recorded)) for name, run in {"eager": eager, **remembering}.items()}
    for player in players.values():
        for name in player.states.values():
            player.feed[name][...] = np.nan if player.feed[name].dtype.kind == "f" else LEFT_OVER
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
        inputs = {name: player.feed | player.read(observations) for name, player in players.items()}
        outputs = {name: decide(name, player, observations) for name, player in players.items()}
        for name, player in explorers.items() if step % EXPLORING_STRIDE == 0 else ():
            player.feed |= inputs["eager"]
            inputs[name], outputs[name] = player.feed.copy(), decide(name, player, observations)
        expected = outputs.pop("eager")
        explored = next((inputs[name] for name in explorers if name in inputs), None)
        known = undrawn(explorer, explored, manifest, set(kinds)) if explorer and explored else expected
        if OWNER in results:
            inputs[OWNER], outputs[OWNER] = inputs["eager"], expected | owned(recorded, playing, step, expected, kinds)
        places = [Place(recorded[episode].seed, step) for episode in playing]
        for name, found in outputs.items():
            with naming_program(name):
                if name in explorers:
                    own = without_noise(found, manifest)
                    shared = {output: array for output, array in own.items() if output in known}
                    results[name].compare(Batch(places, known, shared, inputs[name]))
                else:
                    results[name].compare(Batch(places, expected, found, inputs[name]))
    return results


def check_by_name(policy: str, programs: list[str], settings: params.ParityCheck) -> dict[str, Comparison]:
    """Run :func:`check_open_loop` for some of a policy's programs, by their names, with its recorded episodes."""
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    eager, explorer, *runs = (
        runtimes.load_by_name(policy, name, threads=1)
        for name in (runtimes.EAGER, f"{runtimes.EAGER}{RANDOM}", *programs)
    )
    manifest = read_manifest(Path("models", policy))
    return check_open_loop(
        eager, dict(zip(programs, runs, strict=True)), recorded, manifest, settings, explorer=explorer
    )
