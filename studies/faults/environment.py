"""Faults that eager PyTorch has as well: what an environment's transforms do is lost between environment and program.

The policies are small and not trained: what is compared is the same policy's decisions, in its training environment and
as it would be exported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.envs import ActionScaling, CatFrames, EnvBase, GymEnv, ObservationNorm, Transform, TransformedEnv
from torchrl.envs.utils import ExplorationType

from policy_export.config import params
from policy_export.config.profile import Profile
from policy_export.environments.env import environment_facts
from policy_export.environments.transforms import Acted, History, Observed
from policy_export.parity.training_environment import check_training_environment
from policy_export.program.calls import wrap
from policy_export.program.policy import find_env, make_agent
from policy_export.program.step import make_step

TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "normaliser": lambda: ObservationNorm(loc=0.2, scale=0.5, in_keys=["observation"], standard_normal=True),
    "scale": ActionScaling,
    "history": lambda: CatFrames(3, -1, in_keys=["observation"]),
}


def pendulum(transform: str) -> EnvBase:
    """Return the pendulum behind one of ``TRANSFORMS``."""
    return TransformedEnv(GymEnv("Pendulum-v1"), TRANSFORMS[transform]())


class Reversed(nn.Module):
    """A history whose newest frame comes first."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history, self.in_keys, self.out_keys = history, history.in_keys, history.out_keys

    def forward(self, entries: Any) -> Any:
        entries, (stack, _) = self.history(entries), self.out_keys
        entries[stack] = entries[stack].unflatten(-1, (self.history.older + 1, -1)).flip(-2).flatten(-2)
        return entries


def without(kind: type[nn.Module]) -> Callable[[list[nn.Module]], list[nn.Module]]:
    return lambda modules: [module for module in modules if not isinstance(module, kind)]


def turned(modules: list[nn.Module]) -> list[nn.Module]:
    return [Reversed(module) if isinstance(module, History) else module for module in modules]


# By name: the transform, and how the exported policy loses it.
ENVIRONMENT_FAULTS: dict[str, tuple[str, Callable[[list[nn.Module]], list[nn.Module]]]] = {
    "normaliser lost": ("normaliser", without(Observed)),
    "action's scale lost": ("scale", without(Acted)),
    "history reversed": ("history", turned),
}


def find(name: str, seed: int, *, faulty: bool = True) -> str | None:
    """Return what the check finds first in one of ``ENVIRONMENT_FAULTS``, or in the policy without the fault."""
    transform, lose = ENVIRONMENT_FAULTS[name]
    profile = Profile.model_validate(
        {
            "env": {"factory": f"{__name__}:pendulum", "transform": transform, "max_episode_steps": 30},
            "preprocess": None,
            "policy": {"factory": "policy_export.policies.actor:make_policy", "conv": [], "hidden": [16]},
            "train": {"algorithm": "none", "seed": 0, "eval_episodes": 1},
        }
    )
    torch.manual_seed(seed)
    agent = make_agent("pendulum", profile)
    agent.policy.eval().requires_grad_(requires_grad=False)
    whole = TensorDictSequential(*(lose(list(agent.policy)) if faulty else list(agent.policy)))
    step = make_step(dataclasses.replace(agent, policy=whole), ExplorationType.DETERMINISTIC)
    manifest = environment_facts(find_env(profile)) | {"policy": "pendulum"} | step.signature.as_dict()
    settings = params.load().parity_check.model_copy(update={"episodes": 2, "seed": seed})
    compared = check_training_environment(profile, agent, wrap(step), manifest, settings)
    return f"in the training environment, {compared.failures[0]}" if compared.failures else None
