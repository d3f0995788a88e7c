"""A feed-forward Q policy: it computes values of all actions, and takes the best, or any with probability epsilon."""

from __future__ import annotations

from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical, Composite, TensorSpec
from torchrl.modules import EGreedyModule, QValueModule

from policy_export.config.section import Convolution, Count, Probability
from policy_export.policies.networks import make_network, make_values, number_of_actions, only_observation


def make_policy(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    conv: list[Convolution],
    hidden: list[Count],
    epsilon: Probability,
    dueling: bool = False,
) -> TensorDictSequential:
    """Make a policy that computes ``action_value`` ``(*batch, actions)`` float32 and ``action`` ``(*batch,)`` int64.

    Args:
        observation_spec: of the one observation, without batch.
        action_spec: categorical.
        conv: as for :func:`~policy_export.policies.networks.make_network`.
        hidden: the same.
        epsilon: chance of a random action under ``ExplorationType.RANDOM``.
        dueling: whether the last layer is learned as :class:`~policy_export.policies.networks.Dueling` has it.
    """
    key, observation = only_observation(observation_spec)
    num_actions = number_of_actions(action_spec)
    network, features = make_network(observation, conv, hidden, None)
    network.append(make_values(features, num_actions, dueling=dueling))
    return TensorDictSequential(
        TensorDictModule(network, in_keys=[key], out_keys=["action_value"]), *choose(num_actions, epsilon)
    )


def choose(num_actions: int, epsilon: float) -> list[nn.Module]:
    """Return modules from ``action_value`` to ``action``.

    Here epsilon is not a weight: it is not in the exploration's ``state_dict``.
    """
    spec = Categorical(num_actions)
    explore = EGreedyModule(spec, epsilon, epsilon, annealing_num_steps=1)
    for name, buffer in list(explore.named_buffers()):
        explore.register_buffer(name, buffer, persistent=False)
    return [QValueModule(spec=Composite(action=spec)), explore]
