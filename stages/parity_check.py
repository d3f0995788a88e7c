"""Hold every exported program against the trained policy: the same values, the same decisions, the same episode.

Open loop, all programs see the recorded screens, each with its own memory, and every output is compared. In closed loop
every program plays its own emulator for a full episode, and actions and the console's memory must stay identical. The
The programs that explore must have the same values, and draw their actions as often and as independently as the policy
does. The report is written first; then the stage fails if anything in it did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.envs.utils import ExplorationType

from play import Arrays, Player, make_emulator
from stages.common import draws, episodes, params, runtimes
from stages.common.episodes import Episode, hash_ram
from stages.common.errors import UserError, run
from stages.common.files import write_json
from stages.common.program import VALUES, load_step
from stages.common.runtimes import Run

MIN_SCREENS = 2000
MAX_FAILURES = 100  # in the report


@dataclass
class OpenLoop:
    """What one program did differently from eager on the recorded screens."""

    compares_actions: bool
    tolerance: float
    screens: int = 0
    max_abs_difference: dict[str, float] = field(default_factory=dict)
    different_actions: int = 0
    ties: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def compare(self, where: list[tuple[int, int]], eager: Arrays, outputs: Arrays) -> None:
        """Compare a batch of outputs; ``where`` tells each row's seed and step."""
        self.screens += len(where)
        if set(outputs) != set(eager):
            raise UserError(f"outputs are {sorted(outputs)}, expected {sorted(eager)}")
        for name, expected in eager.items():
            found = outputs[name]
            if found.shape != expected.shape or found.dtype != expected.dtype:
                kinds = [f"{array.dtype}{list(array.shape)}" for array in (found, expected)]
                raise UserError(f"output {name} is {kinds[0]}, expected {kinds[1]}")
            if name == "action":
                continue
            difference = np.abs(found - expected).reshape(len(where), -1).max(1)
            difference[np.isnan(difference)] = np.inf
            self.max_abs_difference[name] = max(self.max_abs_difference.get(name, 0.0), float(difference.max()))
            for row in np.flatnonzero(difference > self.tolerance).tolist():
                self._fail(where[row], f"{name} differs by {difference[row]:.3g}", row, eager, outputs)
        if self.compares_actions:
            for row in np.flatnonzero(outputs["action"] != eager["action"]).tolist():
                self._judge_action(where[row], row, eager, outputs)

    def _judge_action(self, where: tuple[int, int], row: int, eager: Arrays, outputs: Arrays) -> None:
        """Another action is no fault only where eager's two best values are closer than the programs' difference."""
        values = next(eager[name][row] for name in VALUES if name in eager)
        found = next(outputs[name][row] for name in VALUES if name in eager)
        second, best = np.sort(values)[-2:]
        margin, difference = float(best - second), float(np.abs(found - values).max())
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


def check_open_loop(
    eager: Run, programs: dict[str, Run], recorded: list[Episode], manifest: dict[str, Any], tolerance: float
) -> dict[str, OpenLoop]:
    """Show all programs the recorded screens, the episodes side by side, each program with its own memory."""
    results = {name: OpenLoop(name in runtimes.PROGRAMS, tolerance) for name in programs}
    players = {name: Player(run, manifest, len(recorded)) for name, run in {"eager": eager, **programs}.items()}
    rows = [
        (episode, enumerate(episodes.replay(episode, make_emulator(manifest, episode.seed)))) for episode in recorded
    ]
    while rows:
        seen = [next(screens, None) for _, screens in rows]
        playing = [index for index, screen in enumerate(seen) if screen is not None]
        if len(playing) < len(rows):
            rows = [rows[index] for index in playing]
            for player in players.values():
                player.keep(playing)
        if not rows:
            break
        shown = [item for item in seen if item is not None]
        where = [(episode.seed, step) for (episode, _), (step, _) in zip(rows, shown, strict=True)]
        screens = np.stack([screen for _, screen in shown])
        expected = players["eager"].step(screens)
        for name, result in results.items():
            try:
                result.compare(where, expected, players[name].step(screens))
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    return results


@dataclass
class ClosedLoop:
    """How far one program's episode stayed eager's."""

    identical: bool = True
    steps: int = 0
    score: int = 0
    failure: str | None = None


def check_closed_loop(
    eager: Run, programs: dict[str, Run], manifest: dict[str, Any], seed: int
) -> dict[str, ClosedLoop]:
    """Let every program play a full episode on an emulator of its own, in step with eager on its own."""
    results = {name: ClosedLoop() for name in programs}
    emulators = {name: make_emulator(manifest, seed) for name in ("eager", *programs)}
    players = {name: Player(run, manifest) for name, run in {"eager": eager, **programs}.items()}
    while not emulators["eager"].done:
        expected = players["eager"].step(emulators["eager"].screen[None])
        emulators["eager"].step(int(expected["action"][0]))
        for name, result in results.items():
            if not result.identical:
                continue
            outputs = players[name].step(emulators[name].screen[None])
            result.score += emulators[name].step(int(outputs["action"][0]))
            same = outputs["action"][0] == expected["action"][0]
            if not same or hash_ram(emulators[name]) != hash_ram(emulators["eager"]):
                result.identical = False
                what = "the console's memory" if same else "the action"
                result.failure = (
                    f"closed loop, seed {seed}, step {result.steps}: {what} differs: "
                    f"{describe(outputs)}, eager {describe(expected)}"
                )
            result.steps += 1
    return results


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
        findings[name] = list(draws.judge(expected, drawn, (first[name], second[name])))
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


def parity_check(policy: str) -> None:
    everything = params.load()
    settings = everything.parity_check
    torch.set_num_threads(1)
    manifest, paths = runtimes.read_bundle(policy)
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    screens = sum(len(episode.actions) for episode in recorded)
    if screens < MIN_SCREENS:
        raise UserError(
            f"data/{policy}/episodes.safetensors: holds {screens} screens, at least {MIN_SCREENS} are needed; "
            "raise record.greedy_episodes or record.epsilon_episodes in params.yaml"
        )

    profile = everything.profile(policy)
    eager = runtimes.wrap(load_step(policy, profile))
    explorer = runtimes.wrap(load_step(policy, profile, ExplorationType.RANDOM))
    programs = {name: runtimes.load(path, threads=1) for name, path in paths.items()}
    deterministic = {name: programs[name] for name in runtimes.PROGRAMS}
    exploring = {name: programs[name] for name in runtimes.RANDOM_PROGRAMS}
    print(f"parity_check {policy}  open loop: {screens} screens of {len(recorded)} episodes", flush=True)
    open_loop = check_open_loop(eager, programs, recorded, manifest, settings.tolerance)
    print(f"parity_check {policy}  closed loop: one episode on the raw emulator", flush=True)
    closed_loop = check_closed_loop(eager, deterministic, manifest, settings.seed)
    print(f"parity_check {policy}  draws of the programs that explore", flush=True)
    situations = draws.pick_situations(eager, manifest, recorded[0], settings.random_situations)
    drawn = check_draws(policy, explorer, exploring, situations, settings)

    report, failures = {}, []
    for name, result in open_loop.items():
        found = [f"{name}: {failure}" for failure in result.failures]
        entry: dict[str, Any] = {
            "screens": result.screens,
            # JSON has no infinity: no number where the outputs were none.
            "max_abs_difference": {
                key: value if np.isfinite(value) else None for key, value in result.max_abs_difference.items()
            },
            "different_actions": result.different_actions if result.compares_actions else None,
            "ties": result.ties,
        }
        if name in closed_loop:
            loop = closed_loop[name]
            entry["closed_loop"] = {"identical": loop.identical, "steps": loop.steps, "score": loop.score}
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
