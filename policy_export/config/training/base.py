"""What all learning algorithms have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from policy_export.config.section import Count, Device, Discount, Positive, Probability, Section


class Learning(Section):
    """The settings that every learning algorithm takes."""

    algorithm: str
    device: Device = "auto"
    seed: Annotated[int, Field(ge=0, lt=1000)]
    total_steps: Count
    num_envs: Count
    collectors: Count = 1
    rollout_steps: Count
    learning_rate: Positive
    max_grad_norm: Positive
    gamma_start: Discount
    gamma: Discount
    return_ends_at_reward: bool
    eval_episodes: Count


class EpsilonLearning(Learning):
    """The settings of algorithms in which the policy's chance of a random action falls, if it explores."""

    epsilon_start: Probability
    epsilon_steps: Count
