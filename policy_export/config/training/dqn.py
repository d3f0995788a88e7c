"""Settings of DQN with replay."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policy_export.config.section import Count, Index
from policy_export.config.training.base import EpsilonLearning


class Dqn(EpsilonLearning):
    algorithm: Literal["dqn"]
    buffer_size: Count
    batch_size: Count
    learning_starts: Index
    updates: Count
    n_steps: Count
    double: bool
    tau: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _starts(self) -> Self:
        for name in ("buffer_size", "total_steps"):
            if self.learning_starts >= getattr(self, name):
                raise ValueError(f"learning_starts is {self.learning_starts}, must be below {name}")
        return self


SETTINGS = Dqn
