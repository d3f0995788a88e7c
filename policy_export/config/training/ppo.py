"""Settings of PPO."""

from __future__ import annotations

from typing import Literal

from policy_export.config.section import Convolution, Count, NotNegative, Positive, Probability, Section
from policy_export.config.training.base import Learning


class Critic(Section):
    conv: list[Convolution]
    hidden: list[Count]


class Ppo(Learning):
    algorithm: Literal["ppo"]
    epochs: Count
    minibatch_size: Count
    lambda_: Probability
    clip_epsilon: Positive
    entropy_coeff: NotNegative
    critic_coeff: Positive
    critic: Critic


SETTINGS = Ppo
