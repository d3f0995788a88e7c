"""Hold every exported program against the trained policy: the same values, the same decisions, the same episode.

Open loop, the programs see the recorded observations, and every output is compared. In closed loop every program plays
an environment of its own for a full episode: actions and states must stay identical, or, where the action is a vector,
each must be what the policy would have done there. The programs that explore must have the same values, and draw their
actions as often and as independently as the policy does. The report is written first; then the stage fails if anything
in it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.common import episodes, params, runtimes
from stages.common.episodes import Episode
from stages.common.errors import UserError, run
from stages.common.files import write_json
from stages.common.processes import processes
from stages.parity.closed_loop import Trace, compare_episodes, play_by_name
from stages.parity.draws import Actions, draw_by_name, judge, pick_by_name
from stages.parity.open_loop import DRIFT_STEPS, OpenLoop, check_by_name

MIN_OBSERVATIONS = 2000
MAX_FAILURES = 100  # in the report


@dataclass
class Draws:
    """How a program that explores draws; its least likely test, held to a share of the error rate."""

    draws: int
    tests: int
    least_p: float
    failures: list[str]


def judge_draws(
    drawn: dict[str, Actions], first: list[dict[str, Actions]], settings: params.ParityCheck
) -> dict[str, Draws]:
    """Hold every program's draws against those of the policy itself, ``eager_random``.

    ``random_error_rate`` is shared by all tests of all programs, so that it bounds the chance of any false alarm.
    """
    expected = drawn["eager_random"]
    findings = {
        name: list(judge(expected, drawn[name], (first[0][name], first[1][name]), settings.tolerance))
        for name in runtimes.RANDOM_PROGRAMS
    }
    level = settings.random_error_rate / sum(map(len, findings.values()))
    return {
        name: Draws(
            expected.size,
            len(found),
            float(np.min([finding.p for finding in found])),
            [f"{finding.what}: {finding.found} (p {finding.p:.1e})" for finding in found if not finding.p >= level],
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
            return numbers if numbers is not None and np.isfinite(numbers) else None


@dataclass
class Results:
    """What the programs did, by name; among them ``eager`` and ``eager_random``, the trained policy itself."""

    open_loop: dict[str, OpenLoop]
    episodes: dict[str, Trace]
    draws: dict[str, Actions]
    first_draws: list[dict[str, Actions]]


def run_programs(policy: str, recorded: list[Episode], settings: params.ParityCheck) -> Results:
    """Run all programs as the check needs it, in processes side by side."""
    steps = sum(len(episode.actions) for episode in recorded)
    exploring, calls = list(runtimes.RANDOM_PROGRAMS), settings.random_calls
    few = max(1, calls // 4)  # enough to see that two processes draw the same
    with processes(settings.processes) as executor, processes(2, one_task_each=True) as starting:
        checking = executor.submit(check_by_name, policy, [*runtimes.PROGRAMS, *exploring], settings)  # the longest
        picking = executor.submit(pick_by_name, policy, settings.random_situations)
        playing = {
            name: executor.submit(play_by_name, policy, name, settings) for name in ("eager", *runtimes.PROGRAMS)
        }
        situations = picking.result()
        drawing = {
            name: executor.submit(draw_by_name, policy, [name], situations, calls)
            for name in ("eager_random", *exploring)
        }
        starts = [starting.submit(draw_by_name, policy, exploring, situations, few) for _ in range(2)]
        print(f"parity_check {policy}  open loop: {steps} observations of {len(recorded)} episodes", flush=True)
        open_loop = checking.result()
        print(f"parity_check {policy}  closed loop: one episode in the raw environment", flush=True)
        traces = {name: trace.result() for name, trace in playing.items()}
        print(f"parity_check {policy}  draws of the programs that explore", flush=True)
        drawn = {name: actions.result()[name] for name, actions in drawing.items()}
        return Results(open_loop, traces, drawn, [start.result() for start in starts])


def parity_check(policy: str) -> None:
    settings = params.load().parity_check
    runtimes.read_bundle(policy)
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    observations = sum(len(episode.actions) for episode in recorded)
    if observations < MIN_OBSERVATIONS:
        raise UserError(
            f"data/{policy}/episodes.safetensors: holds {observations} observations, at least {MIN_OBSERVATIONS} "
            "are needed; raise record.greedy_episodes or record.epsilon_episodes in params.yaml"
        )
    results = run_programs(policy, recorded, settings)
    eager = results.episodes["eager"]
    closed_loop = {name: compare_episodes(results.episodes[name], eager, settings) for name in runtimes.PROGRAMS}
    draws = judge_draws(results.draws, results.first_draws, settings)

    report, failures = {}, []
    for name, result in results.open_loop.items():
        found = [f"{name}: {failure}" for failure in result.failures]
        entry: dict[str, Any] = {
            "observations": result.observations,
            "max_abs_difference": finite(result.max_abs_difference),
            "different_actions": result.different_actions if result.compares_actions else None,
            "ties": result.ties,
        }
        if result.compares_actions and result.state_drift:
            entry["state_drift"] = {"steps": DRIFT_STEPS, **finite(result.state_drift)}
        if name in closed_loop:
            loop = closed_loop[name]
            entry["closed_loop"] = {
                "identical": loop.identical,
                "max_action_difference": finite(loop.max_action_difference),
                "steps": loop.steps,
                "score": finite(loop.score),
            }
            found += [f"{name}: {loop.failure}"] if loop.failure else []
        if name in draws:
            random = draws[name]
            entry["draws"] = {"draws": random.draws, "tests": random.tests, "least_p": finite(random.least_p)}
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
