"""Rollouts of a vectorised environment, for policies with and without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType

from policy_export.config.errors import ProfileError
from policy_export.program.driver import Driver


class Rollouts(Driver):
    """Consecutive rollouts.

    Args:
        env: of batch size ``(num_envs,)``.
        policy: explores where the mode of exploration says so.
        keep: entries of a decision that a rollout holds, in addition to what the policy reads.
        value: returns a decision's value, ``(num_envs, 1)``; none where a rollout holds the next entries instead.

    Raises:
        ProfileError: the policy writes its memory in place, which overwrites what learning needs.
    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        keep: Sequence[NestedKey],
        value: Callable[[TensorDictBase], torch.Tensor] | None,
    ) -> None:
        super().__init__(env, policy, ExplorationType.RANDOM)
        if in_place := [key for key, place in self.states.items() if key == place]:
            raise ProfileError(f"the policy writes its memory in place ({in_place}): only algorithm 'none' takes that")
        self.keep, self.value = keep, value
        self.scores = torch.zeros(env.batch_size)

    @torch.no_grad()
    def collect(self, steps: int) -> tuple[TensorDictBase, list[float]]:
        """Collect ``steps`` steps of every environment, and the scores of the episodes that ended.

        Returns:
            entries ``(num_envs, steps)``: what the policy reads and ``keep``; ``reward``, ``done`` and ``terminated``,
            each ``(num_envs, steps, 1)``; and either ``next_value``, the value of what follows the step, or, under
            ``next``, what the policy reads there.
        """
        rows, finished = [], []
        decision = self.decide(self.entries, self.memory)
        for _ in range(steps):
            row = decision.select(*self.policy.in_keys, *self.keep)
            outcome, after = self.act(decision)
            done = outcome["done"][:, 0]
            self.scores += outcome["reward"][:, 0]
            finished += self.scores[done].tolist()
            self.scores[done] = 0
            decision = self.decide(self.entries, self.memory)
            row.update(outcome.select("reward", "done", "terminated").to(self.device))
            if self.value is None:
                row["next"] = outcome.select(*self.observations).to(self.device).update(after)
            else:
                row["next_value"] = self._value(decision, outcome, after)
            rows.append(row)
        return torch.stack(rows, 1), finished

    @property
    def saved(self) -> dict[str, Any]:
        """Return what the next rollout begins with."""
        return {"entries": self.entries.to_dict(), "memory": self.memory.to_dict(), "scores": self.scores}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on where other rollouts were, whose ``saved`` this is."""
        self.entries = TensorDict(saved["entries"], self.env.batch_size)
        self.memory = TensorDict(saved["memory"], self.env.batch_size).to(self.device)
        self.scores = saved["scores"]

    def _value(self, following: TensorDictBase, outcome: TensorDictBase, after: TensorDictBase) -> torch.Tensor:
        assert self.value is not None
        value = self.value(following)
        if not outcome["truncated"].any():
            return value
        # What follows is a new episode's; what counts is where the old one was.
        return torch.where(outcome["truncated"].to(self.device), self.value(self.decide(outcome, after)), value)
