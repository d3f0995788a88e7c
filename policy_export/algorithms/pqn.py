"""PQN: on-policy Q-learning with lambda returns, without replay and without target network.

Gallici et al., 2024, "Simplifying Deep Temporal Difference Learning". Policies with memory learn from whole rollouts,
each from the state that it was collected with.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import Composite
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value.functional import vec_td_lambda_return_estimate

from policy_export.algorithms.common import (
    EpsilonSchedule,
    anneal_learning_rate,
    discount,
    ends,
    index_actions,
    minibatches,
    values_of,
)
from policy_export.config.training.pqn import Pqn
from policy_export.program.memory import state_keys


class Learner:
    """A Q policy, its optimiser, and how a rollout changes them.

    Attributes:
        behaviour: what collects rollouts: the policy itself.
        keep: entries of its decisions that learning needs.
        replays: whether it learns from earlier rollouts.
    """

    keep = ("action",)
    replays = False

    def __init__(self, actor: TensorDictModuleBase, train: Pqn, _observation_spec: Composite) -> None:
        self.behaviour, self.values = actor, values_of(actor)
        self.train, self.recurrent = train, bool(state_keys(actor))
        self.exploration = EpsilonSchedule(actor, train)
        self.optimizer = torch.optim.RAdam(actor.parameters(), lr=train.learning_rate, foreach=True)
        self.generator = torch.Generator().manual_seed(train.seed)

    @staticmethod
    def value(decision: TensorDictBase) -> torch.Tensor:
        """Return the value of the greedy action, ``(*batch, 1)`` float32."""
        return decision["action_value"].amax(-1, keepdim=True)

    def update(self, rollout: TensorDictBase, steps: int) -> float:
        """Learn from one rollout, collected up to ``steps`` of the training, and return the mean loss."""
        train = self.train
        done, terminated = ends(train, rollout)
        target = vec_td_lambda_return_estimate(
            discount(train, steps), train.lambda_, rollout["next_value"], rollout["reward"], done, terminated
        )
        samples = index_actions(rollout.select(*self.values.in_keys, "action")).set("target", target)
        size = train.minibatch_size
        if self.recurrent:
            size = max(1, size // samples.shape[1])  # whole sequences
        else:
            samples = samples.flatten()
        anneal_learning_rate(self.optimizer, train, steps)
        losses = []
        with set_recurrent_mode(self.recurrent):
            for _ in range(train.epochs):
                for sample in minibatches(samples, size, self.generator):
                    value = self.values(sample.select(*self.values.in_keys))["action_value"]
                    chosen = value.gather(-1, sample["action"].unsqueeze(-1))
                    loss = 0.5 * nn.functional.mse_loss(chosen, sample["target"])
                    self.optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(self.values.parameters(), train.max_grad_norm)
                    self.optimizer.step()
                    losses.append(loss.detach())
        return float(torch.stack(losses).mean())
