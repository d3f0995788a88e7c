"""Let a program play full episodes, each in an environment of its own, and compare them with eager's.

Where a program diverges from eager by an action that rounding explains, it plays that episode again, and at such ties
takes eager's action, so that everything that follows is compared too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.device.arrays import Action, Arrays
from policy_export.device.environments import make_environment
from policy_export.device.manifest import read_manifest
from policy_export.device.player import Player
from policy_export.environments.episodes import hash_state
from policy_export.parity.comparison import Failure, Place, compare_action, decision, describe_tie, differ, differing


@dataclass(frozen=True)
class Trace:
    """An episode, step by step.

    Attributes:
        seed: of the environment.
        decisions: action and values, ``(steps, ...)`` each; at a tie, the action is eager's, which was taken.
        reference: what eager would have decided in the same states, where it was asked.
        states: ``(steps,)`` uint64, hashes of the environment's state in which the decisions were taken.
        rewards: ``(steps,)`` float64, what the decisions gave.
        ties: where eager's episode was followed, and the program would have taken another action.
    """

    seed: int
    decisions: Arrays
    reference: Arrays | None
    states: npt.NDArray[np.uint64]
    rewards: npt.NDArray[np.float64]
    ties: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ClosedLoop:
    """Comparison of one program's episodes with eager's, or with what eager would have done in them.

    Attributes:
        episodes: their number.
        steps: in all of them.
        mean_score: of an episode.
        identical: episodes in which all decisions are the same, without a tie.
        max_action_difference: of vectors.
        ties: other actions that rounding explains; the episode went on with eager's.
        failures: in every episode, the first decision that differs for another reason.
    """

    episodes: int
    steps: int
    mean_score: float
    identical: int = 0
    max_action_difference: float | None = None
    ties: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Log:
    """An episode while it is played.

    Args:
        seed: of the environment.
        guide: eager's episode with this seed, where its action is to be taken at a tie.
        tolerance: largest difference of a value.
    """

    def __init__(self, seed: int, guide: Trace | None, tolerance: float) -> None:
        self.seed, self.states, self.rewards = seed, list[int](), list[float]()
        self.decisions, self.reference, self.ties = list[Arrays](), list[Arrays](), list[dict[str, Any]]()
        self.guide, self.tolerance = guide, tolerance

    def choose(self, state: int, decided: Arrays) -> Action:
        """Return the action to take for a decision, one row; at a tie, eager's action replaces the program's."""
        step, guide = len(self.states), self.guide
        self.states.append(state)
        if guide is not None and step < len(guide.states) and state == guide.states[step]:
            own = decision(guide.decisions, step)
            if differing(decided["action"], own["action"]).any():
                verdict = compare_action(decided, own, self.tolerance)
                if verdict is not None and verdict.tie:
                    self.ties.append(describe_tie(Place(self.seed, step), verdict))
                    decided["action"] = own["action"]
        self.decisions.append(decided)
        action: Action = decided["action"][0]
        return action

    def finish(self) -> Trace:
        decisions, reference = (
            {name: np.concatenate([outputs[name] for outputs in rows]) for name in rows[0]} if rows else None
            for rows in (self.decisions, self.reference)
        )
        assert decisions is not None
        return Trace(
            self.seed, decisions, reference, np.array(self.states, np.uint64), np.array(self.rewards), self.ties
        )


def play_episodes(
    player: Player,
    seeds: Sequence[int],
    eager: Player | None = None,
    *,
    guides: Sequence[Trace] = (),
    tolerance: float = 0.0,
) -> list[Trace]:
    """Play one episode to its end for each seed, side by side, each in its own environment.

    Args:
        player: of as many episodes as there are seeds.
        seeds: of the environments.
        eager: the policy itself, to decide in the same states.
        guides: eager's episodes with some of these seeds, to be followed at ties.
        tolerance: largest difference of a value at a tie.
    """
    environments = [make_environment(player.manifest, seed) for seed in seeds]
    guided = {guide.seed: guide for guide in guides}
    logs = [Log(seed, guided.get(seed), tolerance) for seed in seeds]
    playing, kept = list(range(len(seeds))), set(player.states)
    while playing:
        observations = np.stack([environments[episode].observation for episode in playing])
        outputs, reference = player.step(observations), None if eager is None else eager.step(observations)
        for row, episode in enumerate(playing):
            environment, log = environments[episode], logs[episode]
            decided, other = (
                {name: array[[row]] for name, array in made.items() if name not in kept}
                for made in (outputs, reference or {})
            )
            if other:
                log.reference.append(other)
            log.rewards.append(environment.step(log.choose(hash_state(environment), decided)))
        still = [row for row, episode in enumerate(playing) if not environments[episode].done]
        if len(still) < len(playing):
            playing = [playing[row] for row in still]
            for each in (player, eager):
                if each is not None:
                    each.keep(still)
    return [log.finish() for log in logs]


def play_by_name(policy: str, program: str, settings: params.ParityCheck) -> list[Trace]:
    """Run :func:`play_episodes` with a policy's program, by its name.

    Actions that are vectors are not the same to the last bit, so that the episodes of two programs drift apart; for
    these, eager decides in the same states.
    """
    manifest = read_manifest(Path("models", policy))
    names = [program, "eager"] if isinstance(manifest["actions"], dict) else [program]
    seeds = range(settings.seed, settings.seed + settings.episodes)
    players = [Player(runtimes.load_by_name(policy, name, threads=1), manifest, len(seeds)) for name in names]
    return play_episodes(players[0], seeds, *players[1:])


def follow_by_name(policy: str, program: str, guides: Sequence[Trace], settings: params.ParityCheck) -> list[Trace]:
    """Let a policy's program, by its name, play some of eager's episodes again, and follow them at ties."""
    manifest = read_manifest(Path("models", policy))
    player = Player(runtimes.load_by_name(policy, program, threads=1), manifest, len(guides))
    return play_episodes(player, [guide.seed for guide in guides], guides=guides, tolerance=settings.tolerance)


def find_tie(trace: Trace, eager: Trace, tolerance: float) -> dict[str, Any] | None:
    """Return the tie at which an episode first diverges from eager's, if it does so at a tie."""
    failure = first_difference(trace, eager) if trace.reference is None else None
    if failure is None:
        return None
    step = failure.place.step
    if trace.states[step] != eager.states[step] or not differing(failure.found["action"], failure.expected["action"]):
        return None
    verdict = compare_action(failure.found, failure.expected, tolerance)
    return None if verdict is None or not verdict.tie else describe_tie(failure.place, verdict)


def part_at_ties(traces: Sequence[Trace], eager: Sequence[Trace], tolerance: float) -> list[Trace]:
    """Return eager's episodes from which a program's diverge at a tie: these are to be followed."""
    return [own for trace, own in zip(traces, eager, strict=True) if find_tie(trace, own, tolerance) is not None]


def compare_episodes(
    traces: Sequence[Trace], eager: Sequence[Trace], tolerance: float, followed: Sequence[Trace] = ()
) -> ClosedLoop:
    """Compare a program's episodes with eager's own: as long as the decisions are the same, so are the states.

    Vectors are compared with what eager decided in the same states.

    Args:
        traces: of the program.
        eager: of the policy, with the same seeds.
        tolerance: largest difference of a number.
        followed: of the program, again, of those that :func:`part_at_ties` found. An episode that diverges at a tie
            and was not followed is a failure.
    """
    again = {trace.seed: trace for trace in followed}
    played = [again.get(trace.seed, trace) for trace in traces]
    scores = [float(trace.rewards.sum()) for trace in played]
    result = ClosedLoop(len(traces), sum(len(trace.rewards) for trace in played), float(np.mean(scores)))
    for first, trace, own in zip(traces, played, eager, strict=True):
        if trace.reference is not None:
            difference = differ(trace.decisions["action"], trace.reference["action"])
            result.max_action_difference = max(result.max_action_difference or 0.0, float(difference.max()))
            result.identical += int(not difference.any())
            off = np.flatnonzero(~(difference <= tolerance))
            if len(off):
                step = int(off[0])
                what = f"the action differs by {difference[step]:.3g}"
                found, expected = decision(trace.decisions, step), decision(trace.reference, step)
                result.failures.append(Failure(Place(trace.seed, step), what, found, expected))
            continue
        # Rounding may differ when fewer episodes are played side by side, so the tie at which one parted counts anyway.
        ties = {tie["step"]: tie for tie in trace.ties}
        if trace is not first and (tie := find_tie(first, own, tolerance)) is not None:
            ties[tie["step"]] = tie
        result.ties += [ties[step] for step in sorted(ties)]
        failure = first_difference(trace, own)
        if failure is not None:
            result.failures.append(failure)
        elif not ties:
            result.identical += 1
    return result


def first_difference(trace: Trace, eager: Trace) -> Failure | None:
    """Return the first step in which two episodes with the same seed differ."""
    steps = min(len(trace.rewards), len(eager.rewards))
    compared = {
        "state": (trace.states, eager.states),
        "action": (trace.decisions["action"], eager.decisions["action"]),
        "reward": (trace.rewards, eager.rewards),
    }
    different = {
        name: np.flatnonzero(differing(ones[:steps], others[:steps])) for name, (ones, others) in compared.items()
    }
    differences = [(int(at[0]), f"the {name} differs") for name, at in different.items() if len(at)]
    if len(trace.rewards) != len(eager.rewards):
        what = f"the episode ends after {len(trace.rewards)} steps, eager's after {len(eager.rewards)}"
        differences.append((steps - 1, what))
    if not differences:
        return None
    step, what = min(differences, key=lambda difference: difference[0])
    found, expected = decision(trace.decisions, step), decision(eager.decisions, step)
    return Failure(Place(trace.seed, step), what, found, expected)
