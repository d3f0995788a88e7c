"""What every program of a policy says of itself, so that it cannot be taken for another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policy_export.config.profile import BESIDE, Profile
from policy_export.device.manifest import sha256
from policy_export.environments.env import environment_facts
from policy_export.program.policy import find_env
from policy_export.program.step import Step


def describe_policy(policy: str, profile: Profile) -> dict[str, Any]:
    """Return the facts of a trained policy that all its programs share.

    They are its name, weights, environment, actions, parameters, and what its owner says of its numbers.

    Raises:
        UserError: its weights are missing, or its environment cannot be made.
    """
    return {
        "policy": policy,
        "weights_sha256": sha256(Path("models", policy, "policy.safetensors")),
        **environment_facts(find_env(profile)),
        "parameters": profile.model_dump(exclude={"train", *BESIDE}),
        **profile.meaning,
    }


def describe_step(step: Step) -> dict[str, Any]:
    """Return the facts of one program: its exploration type and its signature."""
    return {"exploration_type": step.exploration_type.name, **step.signature.as_dict()}
