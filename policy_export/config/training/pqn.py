"""Settings of PQN."""

from __future__ import annotations

from typing import Literal

from policy_export.config.section import Count, Probability
from policy_export.config.training.base import EpsilonLearning


class Pqn(EpsilonLearning):
    algorithm: Literal["pqn"]
    epochs: Count
    minibatch_size: Count
    lambda_: Probability


SETTINGS = Pqn
