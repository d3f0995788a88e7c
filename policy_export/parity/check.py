"""Compare every exported program with the trained policy: the same values, the same decisions, the same episodes.

In open loop the programs see the recorded observations, and every output is compared. Some of these rows are shown
alone, in other batches and in another order, among odd ones. In closed loop every program plays full episodes in
environments of its own: actions and states must stay identical, except for ties within rounding, after which an episode
goes on with the policy's action; or, where the action is a vector or the environment does not replay, each must be what
the policy would have done there. And the policy must do with what the environment shows what the trained actor does in
its training environment, with all transforms.
The programs that explore must have the same values, and sample their actions as often and as independently as the
policy does. The report is written first; then the stage fails if anything in it failed.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_export.backends import registry, runtimes
from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.environments import is_playable
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds, read_manifest, sha256
from policy_export.device.verdict import VERDICT
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode
from policy_export.parity import report
from policy_export.parity.batch_invariance import ROWS, check_batch_invariance_by_name
from policy_export.parity.closed_loop import (
    ClosedLoop,
    Trace,
    compare_episodes,
    follow_by_name,
    part_at_ties,
    play_by_name,
)
from policy_export.parity.comparison import Comparison
from policy_export.parity.exploration import noise_states
from policy_export.parity.facts import check_facts
from policy_export.parity.open_loop import OWNER, check_by_name
from policy_export.parity.recorded_inputs import pick_by_name
from policy_export.parity.reference import Referenced, check_reference_by_name
from policy_export.parity.samples import Sampled, Samples, act_by_name, check_samples, sample_by_name
from policy_export.program.failures import in_one_line
from policy_export.program.made import versions_of
from policy_export.stage.files import write_json
from policy_export.stage.metrics import write_metrics
from policy_export.stage.processes import processes

MAX_FAILURES = 20  # in the report, of one program
NO_CLOSED_LOOP = "closed loop was not possible: there is no environment, only what was recorded in one"


@dataclass
class Results:
    """What the programs did, by name; among them ``eager`` and ``eager_random``, the trained policy itself.

    ``followed`` are the episodes that diverged from eager's at a tie, played again; ``acted`` has the actions of the
    programs whose noise has a state, and is empty where none has. ``episodes`` is empty, and ``training`` is none,
    where there is no environment; ``referenced`` is none where the profile has no reference.
    """

    open_loop: dict[str, Comparison]
    batch_invariance: dict[str, Comparison]
    episodes: dict[str, list[Trace]]
    followed: dict[str, list[Trace]]
    samples: dict[str, Samples]
    first_samples: list[dict[str, Samples]]
    acted: dict[str, Sampled]
    training: Comparison | None
    referenced: Referenced | None


def check_training_environment_by_name(policy: str, settings: params.ParityCheck) -> Comparison:
    """Compare the policy, by its name, with the trained actor in its training environment."""
    # Only here, as who starts the process does not need PyTorch.
    import torch
    from torchrl.envs.utils import ExplorationType

    from policy_export.parity.training_environment import check_training_environment
    from policy_export.program.calls import wrap
    from policy_export.program.step import load_agent, make_step

    torch.set_num_threads(1)
    profile, manifest = load_profile(policy), read_manifest(Path("models", policy))
    agent = load_agent(policy, profile)
    with in_one_line(policy, "parity_check"):
        eager = wrap(make_step(agent, ExplorationType.DETERMINISTIC))
        return check_training_environment(profile, agent, eager, manifest, settings)


def run_programs(
    policy: str, manifest: dict[str, Any], recorded: list[Episode], settings: params.ParityCheck
) -> Results:
    """Run all programs as the check needs it, in processes side by side, and report the progress.

    Raises:
        UserError: a file says of itself what is not so.
    """
    deterministic, exploring = list(registry.deterministic(manifest)), list(registry.exploring(manifest))
    observations, kinds = sum(map(len, recorded)), action_kinds(manifest)
    playable, replays = is_playable(manifest), recorded[0].observations is None
    has_reference = load_profile(policy).reference is not None
    with processes(settings.processes) as executor, processes(2, one_task_each=True, fresh=True) as starting:
        if mistakes := executor.submit(check_facts, policy).result():  # all else relies on what the files say
            raise UserError("\n".join(mistakes))
        print(f"parity_check {policy}  what the files say of themselves is so", flush=True)
        # Any memory will do; that of the fastest program takes a second, eager's many.
        picking = executor.submit(pick_by_name, policy, registry.quickest(manifest), ROWS)
        opening = executor.submit(check_by_name, policy, deterministic + exploring, settings)
        playing = {
            name: executor.submit(play_by_name, policy, name, settings, replays=replays)
            for name in (("eager", *deterministic) if playable else ())
        }
        training = executor.submit(check_training_environment_by_name, policy, settings) if playable else None
        referring = executor.submit(check_reference_by_name, policy, settings) if has_reference else None
        recorded_inputs = picking.result()
        checking = executor.submit(check_batch_invariance_by_name, policy, deterministic, recorded_inputs, settings)
        few_inputs = recorded_inputs.spread(settings.random_inputs).inputs
        sampling = {
            name: executor.submit(sample_by_name, policy, [name], few_inputs, settings.random_calls)
            for name in ("eager_random", *exploring)
        }
        acting = {
            name: executor.submit(act_by_name, policy, name, few_inputs)
            for name in (("eager_random", *exploring) if noise_states(manifest) else ())
        }
        starts = [
            starting.submit(sample_by_name, policy, exploring, few_inputs, settings.random_calls) for _ in range(2)
        ]
        tasks: dict[Future[Any], str] = {
            opening: f"open loop, {observations} observations",
            **{task: f"closed loop, {settings.episodes} episodes of {name}" for name, task in playing.items()},
            checking: "batches and odd inputs",
            **({training: "the policy in its training environment"} if training is not None else {}),
            **({referring: "the profile's reference"} if referring is not None else {}),
            **{task: f"samples of {name}" for name, task in sampling.items()},
            **{task: f"noise of {name}" for name, task in acting.items()},
            **dict.fromkeys(starts, "samples after a start"),
        }
        for done, task in enumerate(as_completed(tasks), 1):
            try:
                task.result()
            except UserError:
                raise
            except Exception:
                opening.result()  # it tells why, if a program has other outputs than the policy
                raise
            print(f"parity_check {policy}  {done:>2}/{len(tasks)}  {tasks[task]}", flush=True)
        played = {name: task.result() for name, task in playing.items()}
        following = {
            name: executor.submit(follow_by_name, policy, name, guides, settings)
            for name in (deterministic if playable else ())
            if (guides := part_at_ties(played[name], played["eager"], settings.tolerance, kinds))
        }
        for name, task in following.items():
            print(f"parity_check {policy}  {len(task.result())} episodes of {name} again, past their ties", flush=True)
        return Results(
            opening.result(),
            checking.result(),
            played,
            {name: task.result() for name, task in following.items()},
            {name: task.result()[name] for name, task in sampling.items()},
            [task.result() for task in starts],
            {name: task.result() for name, task in acting.items()},
            None if training is None else training.result(),
            None if referring is None else referring.result(),
        )


def explain_failures(
    policy: str, manifest: dict[str, Any], recorded: list[Episode], results: Results, closed_loop: dict[str, ClosedLoop]
) -> dict[str, dict[str, Any]]:
    """Return what is known about the first decision in which each deterministic program failed, if there is one."""
    from policy_export.parity.divergence import explain

    settings = params.load().parity_check
    replays, kinds = recorded[0].observations is None, action_kinds(manifest)
    shown = {episode.seed: [episode.action(step) for step in range(len(episode))] for episode in recorded}
    own = {trace.seed: trace.actions(kinds) for trace in results.episodes.get("eager", ())}
    explaining = {}
    with processes(settings.processes) as executor:
        for name, rows in results.batch_invariance.items():
            if failures := [*results.open_loop[name].failures, *rows.failures]:
                failure, seed = failures[0], failures[0].place.seed
                actions = (shown[seed], shown[seed]) if replays else None
            elif name in closed_loop and closed_loop[name].failures:
                failure = closed_loop[name].failures[0]
                traces = [*results.episodes[name], *results.followed.get(name, [])]
                played = {trace.seed: trace for trace in traces}[failure.place.seed]  # the last time
                actions = (played.actions(kinds), own[failure.place.seed]) if replays else None
            else:
                continue
            explaining[name] = executor.submit(explain, policy, name, failure, actions, settings.tolerance)
        return {name: task.result() for name, task in explaining.items()}


def describe_checked(policy: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the hashes of the files that were checked, and the versions of the libraries that ran them."""
    files = registry.deterministic(manifest) | registry.exploring(manifest)
    libraries = {library for name in manifest["programs"] for library in registry.backends()[name].run_by}
    return {
        "programs": {name: {"file": file, "sha256": manifest["files"][file]["sha256"]} for name, file in files.items()},
        "weights_sha256": manifest["files"][runtimes.WEIGHTS]["sha256"],
        "manifest_sha256": sha256(Path("models", policy, "manifest.json")),
        "revision": manifest["revision"],
        "versions": versions_of(sorted({"torch", "tensordict", "torchrl", *libraries})),
    }


def describe_references(
    policy: str, results: Results, owner: dict[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """Describe what the policy was compared with, besides its programs; return that, and the failures.

    Args:
        policy: its name.
        results: what everything did.
        owner: the report of the actions that the user's own program took, if they are known.
    """
    content: dict[str, Any] = {}
    failures: list[str] = []
    if owner is not None:  # which has taken actions, and nothing else
        content["owner"] = {key: owner[key] for key in ("observations", "different_actions", "ties", "passed")}
    if (referenced := results.referenced) is not None:
        content["reference"] = report.describe_reference(referenced)
        loops = {"open loop": referenced.open_loop, "closed loop": referenced.closed_loop}
        for loop, compared in loops.items():
            if compared is None:
                continue
            failures += [f"reference, {loop}: {failure}" for failure in compared.failures]
            told = f"{compared.observations} decisions, {compared.different_actions} other"
            print(f"parity_check {policy}  the reference {referenced.function} in {loop}: {told}", flush=True)
    if (training := results.training) is None:
        print(f"parity_check {policy}  {NO_CLOSED_LOOP}", flush=True)
        return content | {"closed_loop": NO_CLOSED_LOOP}, failures
    told = f"{training.observations} decisions, {training.different_actions} other"
    print(f"parity_check {policy}  the policy in its training environment: {told}", flush=True)
    content["training_environment"] = report.describe_decisions(training)
    return content, failures + [f"in the training environment, {failure}" for failure in training.failures]


def parity_check(policy: str) -> None:
    settings = params.load().parity_check
    manifest, _ = runtimes.read_model(policy)
    recorded = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    observations, kinds = sum(map(len, recorded)), action_kinds(manifest)
    if observations < settings.min_observations:
        raise UserError(
            f"data/{policy}/episodes.safetensors: holds {observations} observations, parity_check.min_observations "
            f"asks for {settings.min_observations}; record more of them"
        )
    folder = Path("results", policy)
    shutil.rmtree(folder / "divergence", ignore_errors=True)
    Path("models", policy, VERDICT).unlink(missing_ok=True)  # which is of the programs before
    results = run_programs(policy, manifest, recorded, settings)
    eager = results.episodes.get("eager", [])
    closed_loop = {
        name: compare_episodes(results.episodes[name], eager, settings.tolerance, results.followed.get(name, ()), kinds)
        for name in registry.deterministic(manifest)
        if name in results.episodes
    }
    samples = check_samples(results.samples, results.first_samples, settings, results.acted)

    programs: dict[str, Any] = {}
    found_in: dict[str, list[str]] = {}
    for name, open_loop in results.open_loop.items():
        entry = report.describe_open_loop(open_loop, len(recorded))
        found = [str(failure) for failure in open_loop.failures]
        if name in results.batch_invariance:
            rows = results.batch_invariance[name]
            entry["batch_invariance"] = report.describe_batch_invariance(rows)
            found += [str(failure) for failure in rows.failures]
        if name in closed_loop:
            entry["closed_loop"] = report.describe_closed_loop(closed_loop[name])
            found += [f"closed loop, {failure}" for failure in closed_loop[name].failures]
        if name in samples:
            entry["samples"] = report.describe_samples(samples[name])
            found += samples[name].failures
        programs[name] = entry | {"passed": not found}
        found_in[name] = [f"{name}: {failure}" for failure in found]
        verdict = "passed" if not found else "FAILED"
        differences = "  ".join(f"{key} {value:.1e}" for key, value in open_loop.max_abs_difference.items())
        print(f"parity_check {policy}  {name:<16}{verdict}  largest differences: {differences}", flush=True)
    beside, found_in["references"] = describe_references(policy, results, programs.pop(OWNER, None))
    failures = [failure for found in found_in.values() for failure in found]
    path = folder / "parity.json"
    content = {
        "passed": not failures,
        "checked": describe_checked(policy, manifest),
        "episodes": len(recorded),
        "programs": programs,
        **beside,
        "margins": report.describe_margins({name: results.open_loop[name] for name in programs}),
        "failures": [failure for found in found_in.values() for failure in found[:MAX_FAILURES]],
    }
    if failures:
        divergences = explain_failures(policy, manifest, recorded, results, closed_loop)
        for name, divergence in divergences.items():
            print(f"parity_check {policy}  {name:<16}first difference: {divergence['first_difference']}", flush=True)
        content["divergences"] = divergences
    write_json(path, report.finite(content | {"flip_rate_bound_is_of": report.ASSUMES}))
    write_metrics(policy, "parity_check", report.describe_metrics(content))
    write_json(Path("models", policy, VERDICT), report.describe_verdict(content, manifest, path))
    if failures:
        raise UserError(f"{failures[0]} ({len(failures)} failures; report: {path})")
