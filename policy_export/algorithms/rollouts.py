"""Rollouts of a vectorised environment, for policies with and without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType

from policy_export.config.errors import ProfileError
from policy_export.environments.preprocess import IS_INIT
from policy_export.program.memory import find_memory, state_spec


class Driver:
    """A policy that acts in an environment, with its memory.

    Args:
        env: of batch size ``(num_envs,)``.
        policy: reads the environment's entries, its own states and ``is_init``; writes ``action`` and the next states.
        exploration_type: the mode of exploration in which the policy will be called.

    Raises:
        ProfileError: the policy's memory does not start with zeros.
    """

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, exploration_type: ExplorationType) -> None:
        self.env, self.policy = env, policy
        found = find_memory(policy, env.observation_spec[0].cpu().update(state_spec(policy)), exploration_type)
        if found.restarts:
            raise ProfileError(f"the policy starts {found.in_place} otherwise than with zeros, which cannot be trained")
        self.observations, self.states = found.observations, found.written
        self.device = next((tensor.device for tensor in policy.parameters()), torch.device("cpu"))
        self.entries = env.reset()
        self.memory = found.spec.expand(*env.batch_size, *found.spec.shape).zero().to(self.device)
        if self.states:
            self.memory[IS_INIT] = torch.ones(*env.batch_size, 1, dtype=torch.bool, device=self.device)

    def decide(self, entries: TensorDictBase, memory: TensorDictBase) -> TensorDictBase:
        """Return all entries that the policy reads and writes."""
        return self.policy(entries.select(*self.observations).to(self.device).update(memory))

    def act(self, decision: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Take a decision's actions; where an episode ends, the environment and the memory start again.

        Returns:
            the entries after the step, including the last ones of an episode, and the memory that belongs to them.
        """
        stepped, self.entries = self.env.step_and_maybe_reset(self.entries.set("action", decision["action"].cpu()))
        outcome, after, done = stepped["next"], self.memory, stepped["next", "done"].to(self.device)
        if self.states:
            after = TensorDict({key: decision[place] for key, place in self.states.items()}, self.env.batch_size)
            self.memory = after.apply(lambda state: state.masked_fill(done.view(-1, *[1] * (state.ndim - 1)), 0))
            after[IS_INIT], self.memory[IS_INIT] = torch.zeros_like(done), done
        return outcome, after


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

    def _value(self, following: TensorDictBase, outcome: TensorDictBase, after: TensorDictBase) -> torch.Tensor:
        assert self.value is not None
        value = self.value(following)
        if not outcome["truncated"].any():
            return value
        # What follows is a new episode's; what counts is where the old one was.
        return torch.where(outcome["truncated"].to(self.device), self.value(self.decide(outcome, after)), value)
