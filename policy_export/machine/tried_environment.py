"""Whether a policy can play in its environment, found out with one decision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policy_export.config.errors import ProfileError, under
from policy_export.config.profile import Env, FactoryEnv, Made, Profile, RecordedEnv, env_key
from policy_export.device.arrays import Arrays
from policy_export.device.environments import Environment, make_environment
from policy_export.device.errors import UserError, one_line
from policy_export.device.player import Player
from policy_export.device.torchrl_env import flat_name
from policy_export.environments.actions import recorded_actions
from policy_export.environments.env import environment_facts, make_bare_env
from policy_export.environments.recorded import load_recording
from policy_export.program.calls import wrap
from policy_export.program.driver import Driver
from policy_export.program.owner import Owner, load_reference
from policy_export.program.policy import Agent
from policy_export.program.step import make_step


def check_trainable(profile: Profile, agent: Agent) -> None:
    """Check that an algorithm can train a policy.

    Raises:
        ProfileError: the policy has several actions, or one for each agent.
    """
    if agent.given != ["action"]:
        raise ProfileError(
            f"train.algorithm: {profile.train.algorithm!r}: trains policies with the one action 'action', this one "
            f"writes {agent.given}: train it elsewhere, and give algorithm none"
        )


def check_recording(env: RecordedEnv, least: int) -> None:
    """Check that a recording is long enough for the check, before anything is made.

    Raises:
        ProfileError: it has fewer observations than ``least``.
    """
    _, actions, episodes = load_recording(env)
    for name, array in actions.items():
        taken, spec = torch.from_numpy(array), recorded_actions(env)[name]
        if taken.shape[1:] != spec.shape or not spec.expand(len(taken), *spec.shape).is_in(taken.to(spec.dtype)):
            raise ProfileError(
                f"{env_key(env)}: {name!r} is {array.dtype}{list(array.shape)} from {array.min()} to {array.max()}, "
                f"env.actions says {env.model_dump()['actions']}"
            )
    steps = sum(map(len, episodes))
    if steps < least:
        raise ProfileError(
            f"{env_key(env)}: holds {steps} observations, parity_check.min_observations asks for {least}: record more, "
            "or lower it in params.yaml"
        )


def try_reference(reference: str | Made, agent: Agent, shown: Arrays) -> None:
    """Ask a profile's reference about one observation.

    Raises:
        ProfileError: it is not there, fails, or gives no action of the policy's.
    """
    step = make_step(agent, ExplorationType.DETERMINISTIC)
    outputs = {spec["name"]: spec for spec in step.signature.as_dict()["outputs"]}
    name, predict = load_reference(reference)
    owner = Owner(name, predict, outputs, [flat_name(key) for key in agent.actions])
    owner.decide({name: array for name, array in shown.items() if name in step.inputs}, begins=True)


def try_environments(env: Env, agent: Agent, training: EnvBase) -> Environment:
    """Play one decision in the environment of a device, and in that of the training; return the former.

    Raises:
        ProfileError: one of them fails, or does not show what the policy reads.
    """
    if isinstance(env, FactoryEnv):
        one, other = (make_bare_env(env) for _ in range(2))
        if one is other:
            raise ProfileError(f"{env_key(env)}: makes the same environment again, must make a new one at every call")
    facts = environment_facts(env)
    step = make_step(agent, ExplorationType.DETERMINISTIC)
    manifest = facts | step.signature.as_dict()
    with under(env_key(env)):
        played = make_environment(manifest, 0)
        player = Player(wrap(step), manifest)
        shown = player.read(played.observations)
        check_shown(shown, manifest)
        played.step(player.act(shown))
        check_shown(player.read(played.observations), manifest)
    with telling_training(env), torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        driver = Driver(training, agent.actor, ExplorationType.DETERMINISTIC, agent.given)
        driver.act(driver.decide(driver.entries, driver.memory))  # random actions may be none that it allows now
    return played


@contextlib.contextmanager
def telling_training(env: Env) -> Iterator[None]:
    """Tell a failure of a training environment in one line.

    Raises:
        ProfileError: whatever is raised inside.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # an environment or a transform may fail in any way
        reason = f"{type(error).__name__}: {one_line(error)}"
        if "spec" in reason and "mismatch" in reason:
            reason += "; transforms work on batches here: a spec that one writes has the batch's sizes first"
        raise ProfileError(f"{env_key(env)}: its training environment fails: {reason}") from error


def check_shown(shown: Arrays, manifest: dict[str, Any]) -> None:
    """Compare observations with what the policy reads.

    Raises:
        UserError: one has another dtype or shape, or holds what is no number.
    """
    for spec in manifest["inputs"]:
        if (array := shown.get(spec["name"])) is None:
            continue
        if str(array.dtype) != spec["dtype"] or list(array.shape) != spec["shape"][1:]:
            raise UserError(
                f"shows {spec['name']} as {array.dtype}{list(array.shape)}, the policy reads "
                f"{spec['dtype']}{spec['shape'][1:]}"
            )
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise UserError(f"shows {spec['name']} with what is no number (nan)")
