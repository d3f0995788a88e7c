"""Hold every exported program against the trained policy: the same values, the same decisions, the same episode.

Open loop, all programs see the recorded observations, each with its own memory, and every output is compared. In closed
loop every program plays an environment of its own for a full episode: actions and states must stay identical, or, where
the action is a vector, each must be what the policy would have done there. The programs that explore must have the same
values, and draw their actions as often and as independently as the policy does. The report is written first; then the
stage fails if anything in it did.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchrl.envs.utils import ExplorationType

from play import Arrays, Player, make_environment
from stages.common import draws, episodes, params, runtimes
from stages.common.episodes import Episode, hash_state
from stages.common.errors import UserError, run
from stages.common.files import write_json
from stages.common.profile import load_profile
from stages.common.program import VALUES, load_step
from stages.common.runtimes import Run

MIN_OBSERVATIONS = 2000
DRIFT_STEPS = 100  # of an episode, for which the largest difference of a state is reported
MAX_FAILURES = 100  # in the report


def is_choice(actions: npt.NDArray[Any]) -> bool:
    """Whether actions are indices, which are the same or are not, rather than vectors."""
    return bool(np.issubdtype(actions.dtype, np.integer))


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
        """Another action is no fault only where eager's two best values are closer than the programs' difference."""
        values = next((name for name in VALUES if name in eager), None)
        if values is None:
            self.different_actions += 1
            self._fail(where, "another action", row, eager, outputs)
            return
        second, best = np.sort(eager[values][row])[-2:]
        margin, difference = float(best - second), float(np.abs(outputs[values][row] - eager[values][row]).max())
        if margin < difference <= self.tolerance:
            self.ties.append({"seed": where[0], "step": where[1], "margin": margin, "difference": difference})
        else:
            self.different_actions += 1
            self._fail(where, f"another action (eager's margin {margin:.3g})", row, eager, outputs)

    def _fail(self, where: tuple[int, int], what: str, row: int, eager: Arrays, outputs: Arrays) -> None:
        seen = f"{describe(outputs, row)}, eager {describe(eager, row)}"
        self.failures.append(f"episode with seed {where[0]}, step {where[1]}: {what}: {seen}")


def describe(outputs: Arrays, row: int = 0) -> str:
    """A row's action and the values it was chosen by."""
    values = [f"{name} {np.round(outputs[name][row], 6).tolist()}" for name in VALUES if name in outputs]
    return ", ".join([f"action {outputs['action'][row]}", *values])


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
) -> tuple[dict[str, OpenLoop], Arrays]:
    """Show all programs what was recorded, the episodes side by side, each program with its own memory.

    Returns:
        what each program did, and the inputs of ``random_situations`` decisions spread evenly over the first episode,
        one a row.
    """
    states = {state["output"] for state in manifest["states"]}
    results = {name: OpenLoop(name in runtimes.PROGRAMS, settings.tolerance, states) for name in programs}
    players = {name: Player(run, manifest, len(recorded)) for name, run in {"eager": eager, **programs}.items()}
    last, situations = len(recorded[0].actions) - 1, []
    wanted = set(np.linspace(0, last, settings.random_situations).round().astype(int).tolist())
    playing, shown = list(range(len(recorded))), watch(recorded, manifest)
    with ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as executor:
        upcoming = executor.submit(next, shown, None)
        for step in itertools.count():
            if (batch := upcoming.result()) is None:
                break
            upcoming = executor.submit(next, shown, None)  # the environments go on while the programs decide
            still, observations = batch
            if still != playing:
                for player in players.values():
                    player.keep([playing.index(episode) for episode in still])
                playing = still
            if playing[0] == 0 and step in wanted:
                feed = players["eager"].feed | {players["eager"].observation: observations}
                situations.append({name: array[:1] for name, array in feed.items()})
            decided = executor.map(Player.step, players.values(), itertools.repeat(observations))
            outputs = dict(zip(players, decided, strict=True))
            where = [(recorded[episode].seed, step) for episode in playing]
            for name, result in results.items():
                try:
                    result.compare(where, outputs["eager"], outputs[name])
                except UserError as error:
                    raise UserError(f"{name}: {error}") from None
    return results, {name: np.concatenate([inputs[name] for inputs in situations]) for name in situations[0]}


@dataclass
class ClosedLoop:
    """How one program's episode compares with eager's, or with what eager would have done in it."""

    identical: bool = True
    max_action_difference: float | None = None
    steps: int = 0
    score: float = 0
    failure: str | None = None


def check_closed_loop(
    eager: Run, programs: dict[str, Run], manifest: dict[str, Any], settings: params.ParityCheck
) -> dict[str, ClosedLoop]:
    """Let every program play a full episode in an environment of its own.

    As long as the decisions are eager's, so are the states, which is checked against eager's own episode. Vectors are
    not the same to the last bit, and so the episodes drift apart; there each must be close to what eager would have
    done in the program's state.
    """
    own = list(play_episode(Player(eager, manifest), settings.seed))
    return {name: play_beside(eager, run, manifest, settings, own) for name, run in programs.items()}


def play_episode(player: Player, seed: int) -> Iterator[tuple[Arrays, int]]:
    """Each decision of an episode, and the hash of the state after it."""
    environment = make_environment(player.manifest, seed)
    while not environment.done:
        outputs = player.step(environment.observation[None])
        environment.step(outputs["action"][0])
        yield outputs, hash_state(environment)


def play_beside(
    eager: Run, program: Run, manifest: dict[str, Any], settings: params.ParityCheck, own: list[tuple[Arrays, int]]
) -> ClosedLoop:
    """Let a program play its episode, up to the first decision that is not eager's; ``own`` is eager's episode."""
    result, environment = ClosedLoop(), make_environment(manifest, settings.seed)
    player, beside = Player(program, manifest), Player(eager, manifest)
    chooses = is_choice(own[0][0]["action"])
    while not environment.done and result.failure is None:
        observation = environment.observation[None]
        outputs = player.step(observation)
        expected = own[result.steps][0] if chooses else beside.step(observation)
        action, wanted = outputs["action"][0], expected["action"][0]
        result.score += environment.step(action)
        what = None
        if chooses:
            if action != wanted:
                what = "the action"
            elif hash_state(environment) != own[result.steps][1]:
                what = "the state"
            result.identical = what is None
        else:
            difference = float(np.abs(action - wanted).max())
            result.identical &= difference == 0
            result.max_action_difference = max(result.max_action_difference or 0.0, difference)
            if not difference <= settings.tolerance:
                what = f"the action, by {difference:.3g},"
        if what is not None:
            seen = f"{describe(outputs)}, eager {describe(expected)}"
            result.failure = f"closed loop, seed {settings.seed}, step {result.steps}: {what} differs: {seen}"
        result.steps += 1
    return result


@dataclass
class Draws:
    """How a program that explores draws; its least likely test, held to a share of the error rate."""

    draws: int
    tests: int
    least_p: float
    failures: list[str]


def check_draws(
    policy: str, explorer: Run, programs: dict[str, Run], situations: Arrays, settings: params.ParityCheck
) -> dict[str, Draws]:
    """Let every program that explores draw in the same situations as ``explorer``, the policy itself.

    ``random_error_rate`` is shared by all tests of all programs, so that it bounds the chance of any false alarm.
    """
    first, second = draws.draw_in_processes(policy, programs, situations, settings.random_calls)
    expected = draws.draw(explorer, situations, settings.random_calls)
    findings = {}
    for name, program in programs.items():
        drawn = draws.draw(program, situations, settings.random_calls)
        findings[name] = list(draws.judge(expected, drawn, (first[name], second[name]), settings.tolerance))
    level = settings.random_error_rate / sum(map(len, findings.values()))
    return {
        name: Draws(
            expected.size,
            len(found),
            min(finding.p for finding in found),
            [f"{finding.what}: {finding.found} (p {finding.p:.1e})" for finding in found if finding.p < level],
        )
        for name, found in findings.items()
    }


def finite(numbers: Any) -> Any:
    """Numbers as JSON has them: none for what is not finite, where outputs were no numbers."""
    match numbers:
        case dict():
            return {key: finite(value) for key, value in numbers.items()}
        case list():
            return [finite(value) for value in numbers]
        case _:
            return numbers if np.isfinite(numbers) else None


def parity_check(policy: str) -> None:
    settings = params.load().parity_check
    torch.set_num_threads(1)
    manifest, paths = runtimes.read_bundle(policy)
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    observations = sum(len(episode.actions) for episode in recorded)
    if observations < MIN_OBSERVATIONS:
        raise UserError(
            f"data/{policy}/episodes.safetensors: holds {observations} observations, at least {MIN_OBSERVATIONS} "
            "are needed; raise record.greedy_episodes or record.epsilon_episodes in params.yaml"
        )

    profile = load_profile(policy)
    eager = runtimes.wrap(load_step(policy, profile))
    explorer = runtimes.wrap(load_step(policy, profile, ExplorationType.RANDOM))
    programs = {name: runtimes.load(path, threads=1) for name, path in paths.items()}
    deterministic = {name: programs[name] for name in runtimes.PROGRAMS}
    exploring = {name: programs[name] for name in runtimes.RANDOM_PROGRAMS}
    print(f"parity_check {policy}  open loop: {observations} observations of {len(recorded)} episodes", flush=True)
    open_loop, situations = check_open_loop(eager, programs, recorded, manifest, settings)
    print(f"parity_check {policy}  closed loop: one episode in the raw environment", flush=True)
    closed_loop = check_closed_loop(eager, deterministic, manifest, settings)
    print(f"parity_check {policy}  draws of the programs that explore", flush=True)
    drawn = check_draws(policy, explorer, exploring, situations, settings)

    report, failures = {}, []
    for name, result in open_loop.items():
        found = [f"{name}: {failure}" for failure in result.failures]
        entry: dict[str, Any] = {
            "observations": result.observations,
            "max_abs_difference": finite(result.max_abs_difference),
            "different_actions": result.different_actions if result.compares_actions else None,
            "ties": result.ties,
        }
        if result.state_drift:
            entry["state_drift"] = {"steps": DRIFT_STEPS, **finite(result.state_drift)}
        if name in closed_loop:
            loop = closed_loop[name]
            entry["closed_loop"] = {
                "identical": loop.identical,
                "max_action_difference": loop.max_action_difference,
                "steps": loop.steps,
                "score": loop.score,
            }
            found += [f"{name}: {loop.failure}"] if loop.failure else []
        if name in drawn:
            random = drawn[name]
            entry["draws"] = {"draws": random.draws, "tests": random.tests, "least_p": random.least_p}
            found += [f"{name}: {failure}" for failure in random.failures]
        report[name] = entry | {"passed": not found}
        failures += found
        verdict = "passed" if not found else "FAILED"
        differences = "  ".join(f"{key} {value:.1e}" for key, value in result.max_abs_difference.items())
        print(f"parity_check {policy}  {name:<12}{verdict}  largest differences: {differences}", flush=True)
    path = Path("results", policy, "parity.json")
    write_json(path, {"passed": not failures, "programs": report, "failures": failures[:MAX_FAILURES]})
    if failures:
        raise UserError(f"{failures[0]} ({len(failures)} failures; report: {path})")


if __name__ == "__main__":
    run(parity_check, __doc__)
