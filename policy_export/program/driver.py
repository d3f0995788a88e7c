"""A policy that acts in a TorchRL environment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Composite
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType

from policy_export.config.errors import ProfileError
from policy_export.device.torchrl_env import array_specs, episode_ended
from policy_export.environments.preprocess import IS_INIT
from policy_export.environments.transforms import env_starts, one_row
from policy_export.program.memory import find_memory, state_spec, state_starts


class Driver:
    """A policy that acts in an environment, with its memory.

    Args:
        env: of batch size ``(num_envs,)``.
        policy: reads the environment's entries, its own states and ``is_init``; writes ``action`` and the next states.
        exploration_type: the mode of exploration in which the policy will be called.
        actions: keys of the policy's actions.

    Raises:
        ProfileError: the policy starts its memory otherwise.
    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        exploration_type: ExplorationType,
        actions: Sequence[NestedKey] = ("action",),
    ) -> None:
        self.env, self.policy, self.actions = env, policy, actions
        shown = Composite(array_specs(one_row(env, env.observation_spec)))
        starts = state_starts(policy) | env_starts(env)
        found = find_memory(policy, shown.cpu().update(state_spec(policy)), exploration_type, actions, starts)
        if found.restarts:
            raise ProfileError(f"the policy starts {found.in_place} otherwise than with zeros, which cannot be trained")
        self.observations, self.states = found.observations, found.written
        self.device = next((tensor.device for tensor in policy.parameters()), torch.device("cpu"))
        self.entries = env.reset()
        self.start = found.spec.expand(*env.batch_size, *found.spec.shape).zero().to(self.device)
        for key in self.states:
            self.start[key].fill_(starts.get(key) or 0)
        self.memory = self.start.clone()
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
        for key in self.actions:
            self.entries.set(key, decision[key].cpu())
        stepped, self.entries = self.env.step_and_maybe_reset(self.entries)
        outcome, after = stepped["next"], self.memory
        done = episode_ended(outcome, self.env.done_keys).unsqueeze(-1).to(self.device)
        if self.states:
            after = TensorDict({key: decision[place] for key, place in self.states.items()}, self.env.batch_size)
            self.memory = after.apply(
                lambda state, start: torch.where(done.view(-1, *[1] * (state.ndim - 1)), start, state), self.start
            )
            after[IS_INIT], self.memory[IS_INIT] = torch.zeros_like(done), done
        return outcome, after
