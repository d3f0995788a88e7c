"""Show programs what was recorded, and compare every output with eager's.

Each deterministic program has its own memory and sees everything. One that explores, whose values were made from the
same policy, sees every ``EXPLORING_STRIDE``-th step, with eager's memory: what it makes of it is compared as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from play import Arrays, Player, make_environment, read_manifest
from stages.common import episodes, params, runtimes
from stages.common.decisions import VALUES, describe, is_choice
from stages.common.episodes import Episode
from stages.common.errors import UserError
from stages.common.runtimes import Run

EXPLORING_STRIDE = 4
LEFT_OVER = 7  # every number of the memory that a program is given at the start, to be ignored
DRIFT_STEPS = 100  # of an episode, for which the largest difference of a state is reported


@dataclass
class OpenLoop:
    """What one program did differently from eager on the recorded observations."""

    compares_actions: bool
    tolerance: float
    states: set[str]
    observations: int = 0
    max_abs_difference: dict[str, float] = field(default_factory=dict)
    state_drift: dict[str, list[float]] = field(default_factory=dict)
    different_actions: int = 0
    ties: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def compare(self, where: list[tuple[int, int]], eager: Arrays, outputs: Arrays) -> None:
        """Compare a batch of outputs; ``where`` tells each row's seed and step."""
        self.observations += len(where)
        if set(outputs) != set(eager):
            raise UserError(f"outputs are {sorted(outputs)}, expected {sorted(eager)}")
        for name, expected in eager.items():
            found = outputs[name]
            if found.shape != expected.shape or found.dtype != expected.dtype:
                kinds = [f"{array.dtype}{list(array.shape)}" for array in (found, expected)]
                raise UserError(f"output {name} is {kinds[0]}, expected {kinds[1]}")
            if name == "action" and (is_choice(expected) or not self.compares_actions):
                continue
            difference = np.abs(found - expected).reshape(len(where), -1).max(1)
            difference[np.isnan(difference)] = np.inf
            largest = float(difference.max())
            self.max_abs_difference[name] = max(self.max_abs_difference.get(name, 0.0), largest)
            if name in self.states:
                drift = self.state_drift.setdefault(name, [])
                drift += [0.0] * (where[0][1] // DRIFT_STEPS + 1 - len(drift))  # all rows are at the same step
                drift[-1] = max(drift[-1], largest)
            allowed = np.full(len(where), self.tolerance)
            if name in self.states:  # which may be large: an LSTM sums its cell's state up
                allowed *= np.maximum(1, np.abs(expected).reshape(len(where), -1).max(1))
            for row in np.flatnonzero(~(difference <= allowed)).tolist():
                self._fail(where[row], f"{name} differs by {difference[row]:.3g}", row, eager, outputs)
        if self.compares_actions and is_choice(eager["action"]):
            for row in np.flatnonzero(outputs["action"] != eager["action"]).tolist():
                self._judge_action(where[row], row, eager, outputs)

    def _judge_action(self, where: tuple[int, int], row: int, eager: Arrays, outputs: Arrays) -> None:
        """Another action is no fault only where its value is closer to eager's best than the programs' difference."""
        values = next((name for name in VALUES if name in eager), None)
        if values is None:
            self.different_actions += 1
            self._fail(where, "another action", row, eager, outputs)
            return
        taken, known = outputs["action"][row], eager[values][row]
        margin = float(known.max() - known[taken]) if 0 <= taken < len(known) else np.inf
        difference = float(np.abs(outputs[values][row] - known).max())
        if margin < difference <= self.tolerance:
            self.ties.append({"seed": where[0], "step": where[1], "margin": margin, "difference": difference})
        else:
            self.different_actions += 1
            self._fail(where, f"another action (eager's margin {margin:.3g})", row, eager, outputs)

    def _fail(self, where: tuple[int, int], what: str, row: int, eager: Arrays, outputs: Arrays) -> None:
        seen = f"{describe(outputs, row)}, eager {describe(eager, row)}"
        self.failures.append(f"episode with seed {where[0]}, step {where[1]}: {what}: {seen}")


def watch(recorded: list[Episode], manifest: dict[str, Any]) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
    """The episodes side by side, step after step: which of them still go on, and what those show."""
    replays = [episodes.replay(episode, make_environment(manifest, episode.seed)) for episode in recorded]
    while True:
        seen = [next(replay, None) for replay in replays]
        playing = [episode for episode, observation in enumerate(seen) if observation is not None]
        if not playing:
            return
        yield playing, np.stack([observation for observation in seen if observation is not None])


def check_open_loop(
    eager: Run,
    programs: dict[str, Run],
    recorded: list[Episode],
    manifest: dict[str, Any],
    settings: params.ParityCheck,
) -> dict[str, OpenLoop]:
    """Show all programs what was recorded, the episodes side by side.

    Raises:
        UserError: a program's outputs are not those of eager, or an episode does not replay.
    """
    states = {state["output"] for state in manifest["states"]}
    results = {name: OpenLoop(name in runtimes.PROGRAMS, settings.tolerance, states) for name in programs}
    remembering = {name: run for name, run in programs.items() if name in runtimes.PROGRAMS}
    players = {name: Player(run, manifest, len(recorded)) for name, run in {"eager": eager, **remembering}.items()}
    for player in players.values():
        for name in player.states.values():
            player.feed[name][...] = LEFT_OVER
    playing = list(range(len(recorded)))
    for step, (still, observations) in enumerate(watch(recorded, manifest)):
        if still != playing:
            for player in players.values():
                player.keep([playing.index(episode) for episode in still])
            playing = still
        given = players["eager"].feed | {players["eager"].observation: observations}
        outputs = {name: player.step(observations) for name, player in players.items()}
        if step % EXPLORING_STRIDE == 0:
            outputs |= {name: run(given) for name, run in programs.items() if name not in remembering}
        expected = outputs.pop("eager")
        where = [(recorded[episode].seed, step) for episode in playing]
        for name, found in outputs.items():
            try:
                results[name].compare(where, expected, found)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    return results


def check_by_name(policy: str, programs: list[str], settings: params.ParityCheck) -> dict[str, OpenLoop]:
    """:func:`check_open_loop` of some of a policy's programs, by their names, with its recorded episodes."""
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    eager, *runs = (runtimes.load_by_name(policy, name, threads=1) for name in ("eager", *programs))
    manifest = read_manifest(Path("models", policy))
    return check_open_loop(eager, dict(zip(programs, runs, strict=True)), recorded, manifest, settings)
