"""Let a program play a full episode in an environment of its own, and compare it with eager's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from play import Arrays, Player, make_environment, read_manifest
from stages.common import params, runtimes
from stages.common.decisions import describe
from stages.common.episodes import hash_state


@dataclass
class Trace:
    """An episode, step by step.

    Attributes:
        decisions: action and values, a row each.
        beside: what eager would have decided in the same states.
        states: hashes, after each step.
        rewards: of each step.
    """

    decisions: list[Arrays] = field(default_factory=list)
    beside: list[Arrays] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


@dataclass
class ClosedLoop:
    """How one program's episode compares with eager's, or with what eager would have done in it."""

    identical: bool = True
    max_action_difference: float | None = None
    steps: int = 0
    score: float = 0
    failure: str | None = None


def play_episode(player: Player, seed: int, eager: Player | None = None) -> Trace:
    """Play to the end; where a player of the policy itself is given, it decides beside."""
    trace, environment = Trace(), make_environment(player.manifest, seed)
    states = set(player.states)
    while not environment.done:
        observation = environment.observation[None]
        for other, decisions in ((player, trace.decisions), (eager, trace.beside)):
            if other is not None:
                outputs = other.step(observation)
                decisions.append({name: array for name, array in outputs.items() if name not in states})
        trace.rewards.append(environment.step(trace.decisions[-1]["action"][0]))
        trace.states.append(hash_state(environment))
    return trace


def play_by_name(policy: str, program: str, settings: params.ParityCheck) -> Trace:
    """:func:`play_episode` with a policy's program, by its name.

    Actions that are vectors are not the same to the last bit, and so the episodes of two programs drift apart: there
    eager decides beside.
    """
    manifest = read_manifest(Path("models", policy))
    names = [program, "eager"] if isinstance(manifest["actions"], dict) else [program]
    players = [Player(runtimes.load_by_name(policy, name, threads=1), manifest) for name in names]
    return play_episode(players[0], settings.seed, *players[1:])


def compare_episodes(trace: Trace, eager: Trace, settings: params.ParityCheck) -> ClosedLoop:
    """Compare a program's episode with eager's own: as long as the decisions are the same, so are the states.

    Vectors are compared with what eager decided beside.
    """
    result = ClosedLoop()
    for step, found in enumerate(trace.decisions):
        expected = (trace.beside or eager.decisions)[step]
        action, wanted = found["action"][0], expected["action"][0]
        result.steps += 1
        result.score += trace.rewards[step]
        what = None
        if trace.beside:
            difference = float(np.abs(action - wanted).max())
            result.identical &= difference == 0
            result.max_action_difference = max(result.max_action_difference or 0.0, difference)
            if not difference <= settings.tolerance:
                what = f"the action, by {difference:.3g},"
        elif action != wanted:
            what = "the action"
        elif trace.states[step] != eager.states[step]:
            what = "the state"
        if what is not None:
            seen = f"{describe(found)}, eager {describe(expected)}"
            result.failure = f"closed loop, seed {settings.seed}, step {step}: {what} differs: {seen}"
            result.identical = False
            break
    return result
