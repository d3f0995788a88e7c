"""Whether a policy can be built and exported, found out before anything is trained.

A policy is built in a process of its own, the only one that imports PyTorch. It is built again only after something
that it is made of has changed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from policy_export.config import params
from policy_export.config.errors import naming
from policy_export.config.profile import Profile, RecordedEnv, load_profile
from policy_export.config.training import Untrained
from policy_export.device.errors import UserError
from policy_export.device.gymnasium_env import GymEnvironment
from policy_export.program.failures import in_one_line
from policy_export.program.made import way_out
from policy_export.stage.processes import processes
from policy_export.stage.sources import module_file

if TYPE_CHECKING:
    from policy_export.program.policy import Agent

LIBRARIES = ("torch", "torchrl", "tensordict", "gymnasium", "ale-py")


def digest(profile: Profile, sources: tuple[dict[str, str], ...], programs: Mapping[str, bool]) -> str:
    """Return the SHA-256 of what decides how a trial ends: profile, programs, sources, and libraries' versions."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    content = json.dumps([profile.model_dump(), dict(programs), sources, versions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def try_policy(name: str, programs: Mapping[str, bool]) -> list[str]:
    """Build an untrained policy, its environments (here and on a device) and what trains it; export the policy.

    Args:
        name: the policy's name.
        programs: for each program that there is, whether the policy has it.

    Returns:
        the project's modules that the environment is made of; its id does not have to name them.

    Raises:
        UserError: one of them cannot be built.
    """
    # Only here, as who starts the process does not need PyTorch.
    from policy_export.environments.recorded import load_recording
    from policy_export.machine.tried_environment import (
        check_recording,
        check_trainable,
        telling_training,
        try_environments,
        try_reference,
    )
    from policy_export.program.policy import environment_of, find_env, make_agent

    profile = load_profile(name)
    with naming(name), in_one_line(name, "machine"):
        agent = make_agent(name, profile)
        try_programs(profile, agent, programs)
        known = find_env(profile)
        if isinstance(known, RecordedEnv):
            check_recording(known, params.load().parity_check.min_observations)
            if profile.reference is not None:
                observations, _, _ = load_recording(known)
                try_reference(profile.reference, agent, {name: array[0] for name, array in observations.items()})
            return []
        with telling_training(known):
            env = environment_of(profile, agent, 1, 0)
        if not isinstance(profile.train, Untrained):
            check_trainable(profile, agent)
            algorithm = importlib.import_module(f"policy_export.algorithms.{profile.train.algorithm}")
            algorithm.Learner(agent.actor, profile.train, env.observation_spec[0])
        played = try_environments(known, agent, env)
        if profile.reference is not None:
            try_reference(profile.reference, agent, played.observations)
    return own_modules(played.env) if isinstance(played, GymEnvironment) else []


def try_programs(profile: Profile, agent: Agent, wanted: Mapping[str, bool]) -> None:
    """Export an untrained policy, and let each of its back ends that can refuse it now do so, before anything is made.

    Raises:
        UserError: it does not export, or a back end refuses it; the message says how to continue without it.
    """
    from torchrl.envs.utils import ExplorationType

    from policy_export.backends.registry import backends
    from policy_export.program.archive import EXPORTS
    from policy_export.program.export import export
    from policy_export.program.meaning import check_names
    from policy_export.program.step import make_step

    agent.policy.eval().requires_grad_(requires_grad=False)
    steps = {exploration: make_step(agent, ExplorationType[exploration]) for exploration in EXPORTS.values()}
    exported = {exploration: export(step) for exploration, step in steps.items()}
    signature = steps["DETERMINISTIC"].signature
    check_names(profile, signature)
    inputs = signature.as_dict()["inputs"]
    for backend in backends().values():
        if backend.refuse is None or not wanted[backend.name]:
            continue
        try:
            backend.refuse(exported["DETERMINISTIC"], inputs)
        except UserError as error:
            raise type(error)(f"{error}{way_out(wanted, backend.name)}") from error.__cause__


def own_modules(env: Any) -> list[str]:
    """Return the modules of this project that a gymnasium environment is made of, including its wrappers."""
    entry_points = [env.spec.entry_point, *(wrapper.entry_point for wrapper in env.spec.additional_wrappers)]
    names = {point.partition(":")[0] if isinstance(point, str) else point.__module__ for point in entry_points}
    layer = env
    while layer is not env.unwrapped:
        names.add(type(layer).__module__)
        layer = layer.env
    return sorted(name for name in {*names, type(layer).__module__} if module_file(name) is not None)


def try_policies(names: Iterable[str], programs: Mapping[str, Mapping[str, bool]]) -> dict[str, list[str]]:
    """Try some policies in parallel, and return what :func:`try_policy` returns for each.

    Raises:
        UserError: some cannot be built; the mistakes of all of them.
    """
    found, mistakes = {}, []
    if not (wanted := list(names)):
        return {}
    with processes(min(len(wanted), len(os.sched_getaffinity(0))), one_task_each=True) as executor:
        trials = {name: executor.submit(try_policy, name, programs[name]) for name in wanted}
        for name, trial in trials.items():
            try:
                found[name] = trial.result()
            except UserError as error:
                mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return found
