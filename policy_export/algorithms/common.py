"""What the algorithms have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.modules import EGreedyModule

from policy_export.config.errors import ProfileError
from policy_export.config.training.base import EpsilonLearning, Learning


def discount(train: Learning, steps: int) -> float:
    """Return the discount after ``steps`` of the training: its horizon, ``1 / (1 - gamma)`` steps, grows linearly.

    Near rewards are learned first, and sooner than with the long horizon from the start (François-Lavet et al., 2015,
    "How to Discount Deep Reinforcement Learning").
    """
    start, end = 1 / (1 - train.gamma_start), 1 / (1 - train.gamma)
    return 1 - 1 / (start + (end - start) * min(1.0, steps / train.total_steps))


def ends(train: Learning, rollout: TensorDictBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``done`` and ``terminated`` of a rollout's steps; a reward is an end too if the parameters say so."""
    done, terminated = rollout["done"], rollout["terminated"]
    if train.return_ends_at_reward:
        scored = rollout["reward"] != 0
        return done | scored, terminated | scored
    return done, terminated


def anneal_learning_rate(optimizer: torch.optim.Optimizer, train: Learning, steps: int) -> None:
    """Lower the learning rate linearly, to 0 at the end."""
    for group in optimizer.param_groups:
        group["lr"] = train.learning_rate * max(0.0, 1 - steps / train.total_steps)


def minibatches(samples: TensorDictBase, size: int, generator: torch.Generator) -> Iterator[TensorDictBase]:
    """Yield ``samples`` once, along their first dimension, in random order and in parts of ``size``."""
    order = torch.randperm(len(samples), generator=generator)
    yield from samples[order.to(samples["action"].device)].split(size)  # one copy: many small ones take far longer


class EpsilonSchedule:
    """The exploration of an epsilon-greedy policy in training: its epsilon falls linearly to the policy's own.

    Raises:
        ProfileError: epsilon would rise.
    """

    def __init__(self, policy: TensorDictModuleBase, train: EpsilonLearning) -> None:
        self.start, self.rollout = train.epsilon_start, train.num_envs * train.rollout_steps
        self.rollouts = max(1, train.epsilon_steps // self.rollout)
        explore = next((module for module in policy.modules() if isinstance(module, EGreedyModule)), None)
        self.end = 0.0 if explore is None else float(explore.eps_end)
        if explore is not None and self.end > self.start:
            raise ProfileError(f"policy.epsilon: {self.end:g}: must be at most train.epsilon_start ({self.start:g})")

    def apply(self, policy: TensorDictModuleBase, steps: int) -> float:
        """Set a policy's epsilon to what it is after ``steps`` of the training, and return it."""
        fallen = min(1.0, steps // self.rollout / self.rollouts)
        epsilon = self.start + (self.end - self.start) * fallen
        for module in policy.modules():
            if isinstance(module, EGreedyModule):
                module.eps.fill_(epsilon)
        return epsilon


def index_actions(rollout: TensorDictBase) -> TensorDictBase:
    """Return the rollout with ``action`` as an index, ``rollout.batch_size`` int64, even if the policy's is one-hot."""
    action = rollout["action"]
    return rollout.set("action", action.long().argmax(-1)) if action.ndim > rollout.ndim else rollout


def values_of(policy: TensorDictModuleBase) -> TensorDictSequential:
    """Return the part of a Q policy that writes ``action_value``, without choice and exploration.

    Raises:
        ProfileError: the policy has no such part.
    """
    if not isinstance(policy, TensorDictSequential) or "action_value" not in policy.out_keys:
        raise ProfileError(
            "train.algorithm: learns values, so policy.factory must make a TensorDictSequential that "
            f"writes 'action_value', found a {type(policy).__name__} that writes {policy.out_keys}"
        )
    return policy.select_subsequence(out_keys=["action_value"])
