"""PPO: TorchRL's clipped loss and generalised advantage estimation, with a critic that is not shipped.

Schulman et al., 2017, "Proximal Policy Optimization Algorithms".
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Composite
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from policy_export.algorithms.common import anneal_learning_rate, discount, ends, minibatches
from policy_export.config.errors import ProfileError
from policy_export.config.training.ppo import Ppo
from policy_export.policies.networks import make_network
from policy_export.program.memory import state_keys
from policy_export.program.policy import observation_keys


class Learner:
    """A policy that samples its actions, its critic, their optimiser, and how a rollout changes them.

    Attributes:
        behaviour: what collects rollouts: the policy, and the critic's value of where it acts.
        keep: entries of its decisions that learning needs.
        replays: whether it learns from earlier rollouts.

    Raises:
        ProfileError: the policy has states, does not sample its actions, or reads more than one observation.
    """

    keep = ("action", "action_log_prob", "state_value")
    exploration = None
    replays = False

    def __init__(self, actor: TensorDictModuleBase, train: Ppo, observation_spec: Composite) -> None:
        if states := state_keys(actor):
            raise ProfileError(f"train.algorithm: 'ppo' is for policies without memory, found {states}")
        if not isinstance(actor, ProbabilisticTensorDictSequential) or "action_log_prob" not in actor.out_keys:
            raise ProfileError(
                "train.algorithm: 'ppo' needs log-probabilities, so policy.factory must make a "
                f"policy that draws its action and writes 'action_log_prob', found one that writes {actor.out_keys}"
            )
        if len(keys := observation_keys(actor)) != 1:
            raise ProfileError(f"train.algorithm: 'ppo' is for policies that read one observation, found {keys}")
        (key,) = keys
        network, _ = make_network(observation_spec[key], train.critic.conv, train.critic.hidden, 1, "train.critic")
        critic = ValueOperator(network, in_keys=[key]).to(next(actor.parameters()).device)
        self.actor, self.behaviour, self.train = actor, TensorDictSequential(actor, critic), train
        self.loss = ClipPPOLoss(
            actor,
            critic,
            clip_epsilon=train.clip_epsilon,
            entropy_bonus=train.entropy_coeff > 0,  # else a sample would be drawn where there is no formula for it
            entropy_coeff=train.entropy_coeff,
            critic_coeff=train.critic_coeff,
            loss_critic_type="l2",
            normalize_advantage=True,
        )
        self.loss.set_keys(value_target="target")
        self.optimizer = torch.optim.Adam(self.behaviour.parameters(), lr=train.learning_rate, eps=1e-5, foreach=True)
        self.generator = torch.Generator().manual_seed(train.seed)

    @staticmethod
    def value(decision: TensorDictBase) -> torch.Tensor:
        """Return the critic's value, ``(*batch, 1)`` float32."""
        return decision["state_value"]

    def update(self, rollout: TensorDictBase, steps: int) -> float:
        """Learn from one rollout, collected up to ``steps`` of the training, and return the mean loss."""
        train = self.train
        done, terminated = ends(train, rollout)
        advantage, target = vec_generalized_advantage_estimate(
            discount(train, steps),
            train.lambda_,
            rollout["state_value"],
            rollout["next_value"],
            rollout["reward"],
            done,
            terminated,
        )
        samples = rollout.select(*self.actor.in_keys, "action", "action_log_prob", "state_value")
        samples = samples.set("advantage", advantage).set("target", target).flatten()
        anneal_learning_rate(self.optimizer, train, steps)
        losses = []
        for _ in range(train.epochs):
            for sample in minibatches(samples, train.minibatch_size, self.generator):
                parts = self.loss(sample)
                loss = sum(part for name, part in parts.items() if name.startswith("loss_"))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.behaviour.parameters(), train.max_grad_norm)
                self.optimizer.step()
                losses.append(loss.detach())
        return float(torch.stack(losses).mean())
