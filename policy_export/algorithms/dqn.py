"""Deep Q-learning with replay and a slowly following target network, from TorchRL's own parts.

Mnih et al., 2015, "Human-level control through deep reinforcement learning"; n-step returns and double Q-learning as in
Hessel et al., 2018, "Rainbow". For policies without memory.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Composite, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.postprocs import MultiStep
from torchrl.modules import QValueModule
from torchrl.objectives import DQNLoss, SoftUpdate, ValueEstimators

from policy_export.algorithms.common import (
    EpsilonSchedule,
    anneal_learning_rate,
    discount,
    ends,
    index_actions,
    values_of,
)
from policy_export.config.errors import ProfileError
from policy_export.config.training.dqn import Dqn
from policy_export.program.memory import state_keys


def sum_rewards(samples: TensorDictBase, gamma: float, n_steps: int) -> TensorDictBase:
    """Turn ``(rows, steps)`` transitions into ones of up to ``n_steps`` steps, none of which goes beyond an end.

    TorchRL's ``MultiStep`` moves observations and rewards, but every transition keeps the ends of its first step: a
    return that ends on the way would continue with the value of what was seen there. Here the ends move as well.
    """
    summed = MultiStep(gamma, n_steps)(samples)
    steps = samples.shape[1]
    ahead = summed["steps_to_next_obs"].reshape(-1, steps)
    last = torch.arange(steps, device=ahead.device) + ahead - 1
    for end in ("done", "terminated"):
        summed["next", end] = samples["next", end].gather(1, last[..., None])
    return summed


def choose_by_index(values: TensorDictSequential) -> TensorDictSequential:
    """Return the same values, with the best action as an index, which is how replayed actions are kept here."""
    choices = [module for module in values.modules() if isinstance(module, QValueModule)]
    if choices and choices[-1].action_space == "categorical":
        return values
    return TensorDictSequential(values, QValueModule(action_space="categorical"))


class Learner:
    """A Q policy, its target network, the replay buffer, the optimiser, and how a rollout changes them.

    Attributes:
        behaviour: what collects rollouts: the policy itself.
        keep: entries of its decisions that learning needs.
        replays: whether it learns from earlier rollouts.
        value: none, as learning needs the next observations.

    Raises:
        ProfileError: the policy has states.
    """

    keep = ("action",)
    value = None
    replays = True

    def __init__(self, actor: TensorDictModuleBase, train: Dqn, _observation_spec: Composite) -> None:
        if states := state_keys(actor):
            raise ProfileError(f"train.algorithm: 'dqn' is for policies without memory, found {states}")
        self.behaviour, self.values, self.train = actor, values_of(actor), train
        self.exploration = EpsilonSchedule(actor, train)
        self.loss = DQNLoss(
            choose_by_index(self.values), action_space="categorical", delay_value=True, double_dqn=train.double
        )
        self.target_updater: SoftUpdate | None = None
        self.optimizer = torch.optim.Adam(self.values.parameters(), lr=train.learning_rate, foreach=True)
        self.generator = torch.Generator().manual_seed(train.seed)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(train.buffer_size),
            batch_size=train.batch_size,
            generator=self.generator,
        )

    def update(self, rollout: TensorDictBase, steps: int) -> float | None:
        """Store one rollout, collected up to ``steps`` of the training, learn, and return the mean loss.

        There is none before ``learning_starts``.
        """
        train, gamma = self.train, discount(self.train, steps)
        done, terminated = ends(train, rollout)
        if self.target_updater is None:  # from here on; a training that goes on has its weights by now
            self.target_updater = SoftUpdate(self.loss, tau=train.tau)
        samples = index_actions(rollout.select(*self.values.in_keys, "action", "next"))
        samples["next"].update({"reward": rollout["reward"], "done": done, "terminated": terminated})
        self.buffer.extend(sum_rewards(samples, gamma, train.n_steps).flatten())
        if len(self.buffer) < train.learning_starts:
            return None
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
        anneal_learning_rate(self.optimizer, train, steps)
        losses = []
        for _ in range(train.updates):
            loss = self.loss(self.buffer.sample().to(done.device))["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.values.parameters(), train.max_grad_norm)
            self.optimizer.step()
            self.target_updater.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())
