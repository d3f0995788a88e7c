"""A feed-forward Q policy: values of all actions, the best of which is taken, or with chance epsilon any other."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical, Composite, TensorSpec
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import EGreedyModule, QValueModule

from stages.common.profile import Convolution, Count, Probability
from stages.policies.networks import make_network, number_of_actions, only_observation


class EpsilonGreedy(EGreedyModule):
    """TorchRL's epsilon-greedy exploration for a categorical action, written so that it exports.

    The library's own ``forward`` expands its spec to the batch at hand, which fixes the batch size of an exported
    program. Here epsilon is no weight: it is not in the module's ``state_dict``.
    """

    def __init__(self, num_actions: int, epsilon: float) -> None:
        super().__init__(Categorical(num_actions), epsilon, epsilon, annealing_num_steps=1)
        for name, buffer in list(self.named_buffers()):
            self.register_buffer(name, buffer, persistent=False)
        self.num_actions = num_actions

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if exploration_type() not in (ExplorationType.RANDOM, None):
            return tensordict
        greedy = tensordict[self.action_key]
        explores = torch.rand_like(greedy, dtype=torch.float32) < self.eps
        drawn = torch.randint_like(greedy, self.num_actions)
        return tensordict.set(self.action_key, torch.where(explores, drawn, greedy))


def make_policy(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    conv: list[Convolution],
    hidden: list[Count],
    epsilon: Probability,
) -> TensorDictSequential:
    """From the one observation to ``action_value`` ``(*batch, actions)`` float32 and ``action`` ``(*batch,)`` int64.

    Args:
        observation_spec: of the one observation, without batch.
        action_spec: categorical.
        conv: as for :func:`~stages.policies.networks.make_network`.
        hidden: the same.
        epsilon: chance of a random action under ``ExplorationType.RANDOM``.
    """
    key, observation = only_observation(observation_spec)
    num_actions = number_of_actions(action_spec)
    network, _ = make_network(observation, conv, hidden, num_actions)
    return TensorDictSequential(
        TensorDictModule(network, in_keys=[key], out_keys=["action_value"]), *choose(num_actions, epsilon)
    )


def choose(num_actions: int, epsilon: float) -> list[nn.Module]:
    """Modules from ``action_value`` to ``action``."""
    return [QValueModule(spec=Composite(action=Categorical(num_actions))), EpsilonGreedy(num_actions, epsilon)]
