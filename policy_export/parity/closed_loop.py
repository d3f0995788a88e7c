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
from policy_export.device.manifest import action_kinds, read_manifest
from policy_export.device.player import Player, pick_action
from policy_export.environments.episodes import hash_state
from policy_export.parity.comparison import (
    Batch,
    Comparison,
    Failure,
    Place,
    compare_action,
    decision,
    describe_tie,
    differing,
)
from policy_export.program.decisions import ONE_INDEX, Kinds, is_choice

MOST_DECISIONS = 100_000  # of all episodes together, beside the owner's function or the trained actor


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

    def actions(self, kinds: Kinds) -> list[Action]:
        """Return what was done at each step."""
        return [pick_action(self.decisions, list(kinds), step) for step in range(len(self.rewards))]


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
        kinds: of the actions.
    """

    def __init__(self, seed: int, guide: Trace | None, tolerance: float, kinds: Kinds) -> None:
        self.kinds = kinds
        self.seed, self.states, self.rewards = seed, list[int](), list[float]()
        self.decisions, self.reference, self.ties = list[Arrays](), list[Arrays](), list[dict[str, Any]]()
        self.guide, self.tolerance = guide, tolerance

    def choose(self, state: int, decided: Arrays) -> Action:
        """Return the action to take for a decision, one row; at a tie, eager's action replaces the program's."""
        step, guide = len(self.states), self.guide
        self.states.append(state)
        if guide is not None and step < len(guide.states) and state == guide.states[step]:
            own = decision(guide.decisions, step, self.kinds)
            if any(differing(decided[name], own[name]).any() for name in self.kinds):
                verdict = compare_action(decided, own, self.tolerance, self.kinds)
                if verdict is not None and verdict.tie:
                    self.ties.append(describe_tie(Place(self.seed, step), verdict))
                    decided |= {name: own[name] for name in self.kinds}
        self.decisions.append(decided)
        return pick_action(decided, list(self.kinds))

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
    guided, kinds = {guide.seed: guide for guide in guides}, action_kinds(player.manifest)
    logs = [Log(seed, guided.get(seed), tolerance, kinds) for seed in seeds]
    playing, kept = list(range(len(seeds))), set(player.states)
    while playing:
        shown = [player.read(environments[episode].observations) for episode in playing]
        observations = {name: np.stack([each[name] for each in shown]) for name in shown[0]}
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


def play_by_name(policy: str, program: str, settings: params.ParityCheck, *, replays: bool = True) -> list[Trace]:
    """Run :func:`play_episodes` with a policy's program, by its name.

    Actions that are vectors are not the same to the last bit, so that the episodes of two programs drift apart, and so
    do those of an environment that does not replay; for these, eager decides in the same states.
    """
    manifest = read_manifest(Path("models", policy))
    numbers = any(kind["kind"] == "vector" for kind in action_kinds(manifest).values())
    names = [program, "eager"] if numbers or not replays else [program]
    seeds = range(settings.seed, settings.seed + settings.episodes)
    players = [Player(runtimes.load_by_name(policy, name, threads=1), manifest, len(seeds)) for name in names]
    return play_episodes(players[0], seeds, *players[1:])


def follow_by_name(policy: str, program: str, guides: Sequence[Trace], settings: params.ParityCheck) -> list[Trace]:
    """Let a policy's program, by its name, play some of eager's episodes again, and follow them at ties."""
    manifest = read_manifest(Path("models", policy))
    player = Player(runtimes.load_by_name(policy, program, threads=1), manifest, len(guides))
    return play_episodes(player, [guide.seed for guide in guides], guides=guides, tolerance=settings.tolerance)


def find_tie(trace: Trace, eager: Trace, tolerance: float, kinds: Kinds = ONE_INDEX) -> dict[str, Any] | None:
    """Return the tie at which an episode first diverges from eager's, if it does so at a tie."""
    failure = first_difference(trace, eager, kinds) if trace.reference is None else None
    if failure is None:
        return None
    step = failure.place.step
    if trace.states[step] != eager.states[step]:
        return None
    verdict = compare_action(failure.found, failure.expected, tolerance, kinds)
    return None if verdict is None or not verdict.tie else describe_tie(failure.place, verdict)


def part_at_ties(
    traces: Sequence[Trace], eager: Sequence[Trace], tolerance: float, kinds: Kinds = ONE_INDEX
) -> list[Trace]:
    """Return eager's episodes from which a program's diverge at a tie: these are to be followed."""
    return [own for trace, own in zip(traces, eager, strict=True) if find_tie(trace, own, tolerance, kinds) is not None]


def compare_episodes(
    traces: Sequence[Trace],
    eager: Sequence[Trace],
    tolerance: float,
    followed: Sequence[Trace] = (),
    kinds: Kinds = ONE_INDEX,
) -> ClosedLoop:
    """Compare a program's episodes with eager's own: as long as the decisions are the same, so are the states.

    Vectors are compared with what eager decided in the same states.

    Args:
        traces: of the program.
        eager: of the policy, with the same seeds.
        tolerance: largest difference of a number.
        followed: of the program, again, of those that :func:`part_at_ties` found. An episode that diverges at a tie
            and was not followed is a failure.
        kinds: of the actions.
    """
    again = {trace.seed: trace for trace in followed}
    played = [again.get(trace.seed, trace) for trace in traces]
    scores = [float(trace.rewards.sum()) for trace in played]
    result = ClosedLoop(len(traces), sum(len(trace.rewards) for trace in played), float(np.mean(scores)))
    for first, trace, own in zip(traces, played, eager, strict=True):
        if trace.reference is not None:
            _compare_with_reference(result, trace, trace.reference, tolerance, kinds)
            continue
        # Rounding may differ when fewer episodes are played side by side, so the tie at which one parted counts anyway.
        ties = {tie["step"]: tie for tie in trace.ties}
        if trace is not first and (tie := find_tie(first, own, tolerance, kinds)) is not None:
            ties[tie["step"]] = tie
        result.ties += [ties[step] for step in sorted(ties)]
        failure = first_difference(trace, own, kinds)
        if failure is not None:
            result.failures.append(failure)
        elif not ties:
            result.identical += 1
    return result


def _compare_with_reference(
    result: ClosedLoop, trace: Trace, reference: Arrays, tolerance: float, kinds: Kinds
) -> None:
    """Add an episode in which eager has decided in the same states."""
    steps = range(len(trace.rewards))
    comparison = Comparison(compares_actions=True, tolerance=tolerance, states=set(), kinds=kinds)
    actions = [{name: decided[name] for name in decided if name in kinds} for decided in (reference, trace.decisions)]
    if any(is_choice(actions[0][name]) for name in kinds):  # what they were chosen by tells a tie
        actions = [reference, trace.decisions]
    comparison.compare(Batch([Place(trace.seed, step) for step in steps], actions[0], actions[1], {}))
    numbers = [comparison.max_abs_difference[name] for name in kinds if name in comparison.differences]
    if numbers:
        result.max_action_difference = max(result.max_action_difference or 0.0, *numbers)
    result.ties += comparison.ties
    result.identical += int(not any(differing(actions[1][name], actions[0][name]).any() for name in kinds))
    if comparison.failures:
        result.failures.append(min(comparison.failures, key=lambda failure: failure.place.step))


def first_difference(trace: Trace, eager: Trace, kinds: Kinds = ONE_INDEX) -> Failure | None:
    """Return the first step in which two episodes with the same seed differ."""
    steps = min(len(trace.rewards), len(eager.rewards))
    compared = {
        "state": (trace.states, eager.states),
        **{name: (trace.decisions[name], eager.decisions[name]) for name in kinds},
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
    found, expected = (decision(each.decisions, step, kinds) for each in (trace, eager))
    return Failure(Place(trace.seed, step), what, found, expected)
