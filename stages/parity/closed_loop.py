"""Let a program play full episodes, each in an environment of its own, and compare them with eager's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from play import Arrays, Player, make_environment, read_manifest
from stages.common import params, runtimes
from stages.common.episodes import hash_state
from stages.parity.comparison import Failure, Place, decision, differ


@dataclass(frozen=True)
class Trace:
    """An episode, step by step.

    Attributes:
        seed: of the environment.
        decisions: action and values, ``(steps, ...)`` each.
        beside: what eager would have decided in the same states, where it was asked.
        states: ``(steps,)`` uint64, hashes of the environment's state in which the decisions were taken.
        rewards: ``(steps,)`` float64, what the decisions gave.
    """

    seed: int
    decisions: Arrays
    beside: Arrays | None
    states: npt.NDArray[np.uint64]
    rewards: npt.NDArray[np.float64]


@dataclass
class ClosedLoop:
    """How one program's episodes compare with eager's, or with what eager would have done in them."""

    episodes: int
    steps: int
    mean_score: float
    identical: int = 0  # episodes
    max_action_difference: float | None = None
    failures: list[Failure] = field(default_factory=list)


class Log:
    """One episode while it is played."""

    def __init__(self, seed: int) -> None:
        self.seed, self.states, self.rewards = seed, list[int](), list[float]()
        self.decisions, self.beside = list[Arrays](), list[Arrays]()

    def finish(self) -> Trace:
        decisions, beside = (
            {name: np.concatenate([outputs[name] for outputs in rows]) for name in rows[0]} if rows else None
            for rows in (self.decisions, self.beside)
        )
        assert decisions is not None
        return Trace(self.seed, decisions, beside, np.array(self.states, np.uint64), np.array(self.rewards))


def play_episodes(player: Player, seeds: Sequence[int], eager: Player | None = None) -> list[Trace]:
    """Play an episode with each seed to its end, side by side, in an environment each.

    Args:
        player: of as many episodes as there are seeds.
        seeds: of the environments.
        eager: the policy itself, to decide beside.
    """
    environments = [make_environment(player.manifest, seed) for seed in seeds]
    logs, playing, kept = [Log(seed) for seed in seeds], list(range(len(seeds))), set(player.states)
    while playing:
        observations = np.stack([environments[episode].observation for episode in playing])
        outputs, beside = player.step(observations), None if eager is None else eager.step(observations)
        for row, episode in enumerate(playing):
            environment, log = environments[episode], logs[episode]
            for rows, decided in ((log.decisions, outputs), (log.beside, beside)):
                if decided is not None:
                    rows.append({name: array[[row]] for name, array in decided.items() if name not in kept})
            log.states.append(hash_state(environment))
            log.rewards.append(environment.step(outputs["action"][row]))
        still = [row for row, episode in enumerate(playing) if not environments[episode].done]
        if len(still) < len(playing):
            playing = [playing[row] for row in still]
            for each in (player, eager):
                if each is not None:
                    each.keep(still)
    return [log.finish() for log in logs]


def play_by_name(policy: str, program: str, settings: params.ParityCheck) -> list[Trace]:
    """:func:`play_episodes` with a policy's program, by its name.

    Actions that are vectors are not the same to the last bit, and so the episodes of two programs drift apart: there
    eager decides beside.
    """
    manifest = read_manifest(Path("models", policy))
    names = [program, "eager"] if isinstance(manifest["actions"], dict) else [program]
    seeds = range(settings.seed, settings.seed + settings.episodes)
    players = [Player(runtimes.load_by_name(policy, name, threads=1), manifest, len(seeds)) for name in names]
    return play_episodes(players[0], seeds, *players[1:])


def compare_episodes(traces: Sequence[Trace], eager: Sequence[Trace], tolerance: float) -> ClosedLoop:
    """Compare a program's episodes with eager's own: as long as the decisions are the same, so are the states.

    Vectors are compared with what eager decided beside.
    """
    scores = [float(trace.rewards.sum()) for trace in traces]
    result = ClosedLoop(len(traces), sum(len(trace.rewards) for trace in traces), float(np.mean(scores)))
    for trace, own in zip(traces, eager, strict=True):
        if trace.beside is not None:
            difference = differ(trace.decisions["action"], trace.beside["action"])
            result.max_action_difference = max(result.max_action_difference or 0.0, float(difference.max()))
            result.identical += int(not difference.any())
            off = np.flatnonzero(~(difference <= tolerance))
            if len(off):
                step = int(off[0])
                what = f"the action differs by {difference[step]:.3g}"
                found, expected = decision(trace.decisions, step), decision(trace.beside, step)
                result.failures.append(Failure(Place(trace.seed, step), what, found, expected))
            continue
        failure = first_difference(trace, own)
        if failure is None:
            result.identical += 1
        else:
            result.failures.append(failure)
    return result


def first_difference(trace: Trace, eager: Trace) -> Failure | None:
    """The first step in which an episode with the same seed is another one."""
    steps = min(len(trace.rewards), len(eager.rewards))
    compared = {
        "state": (trace.states, eager.states),
        "action": (trace.decisions["action"], eager.decisions["action"]),
        "reward": (trace.rewards, eager.rewards),
    }
    different = {name: np.flatnonzero(ones[:steps] != others[:steps]) for name, (ones, others) in compared.items()}
    differences = [(int(at[0]), f"the {name} differs") for name, at in different.items() if len(at)]
    if len(trace.rewards) != len(eager.rewards):
        what = f"the episode ends after {len(trace.rewards)} steps, eager's after {len(eager.rewards)}"
        differences.append((steps - 1, what))
    if not differences:
        return None
    step, what = min(differences, key=lambda difference: difference[0])
    found, expected = decision(trace.decisions, step), decision(eager.decisions, step)
    return Failure(Place(trace.seed, step), what, found, expected)
