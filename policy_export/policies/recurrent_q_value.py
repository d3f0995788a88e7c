"""A recurrent Q policy: one observation at a time, and a memory of earlier ones in an LSTM or GRU."""

from __future__ import annotations

from typing import Literal

from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite, TensorSpec
from torchrl.modules import GRUModule, LSTMModule

from policy_export.config.section import Convolution, Count, Probability
from policy_export.policies.networks import make_network, make_values, number_of_actions, only_observation
from policy_export.policies.q_value import choose

RECURRENT = {"lstm": (LSTMModule, ("hidden0", "hidden1")), "gru": (GRUModule, ("hidden0",))}


def make_policy(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    conv: list[Convolution],
    hidden: list[Count],
    rnn: Literal["lstm", "gru"],
    rnn_size: Count,
    epsilon: Probability,
    dueling: bool = False,
) -> TensorDictSequential:
    """Make a policy like the feed-forward one, with states ``hidden0`` (and for an LSTM ``hidden1``) and ``is_init``.

    Args:
        observation_spec: of the one observation, without batch.
        action_spec: categorical.
        conv: as for :func:`~policy_export.policies.networks.make_network`.
        hidden: the same.
        rnn: kind of the layer that remembers; its states are ``(*batch, 1, rnn_size)`` float32.
        rnn_size: its units.
        epsilon: chance of a random action under ``ExplorationType.RANDOM``.
        dueling: whether the last layer is learned as :class:`~policy_export.policies.networks.Dueling` has it.
    """
    key, observation = only_observation(observation_spec)
    num_actions = number_of_actions(action_spec)
    network, features = make_network(observation, conv, hidden, None)
    module, states = RECURRENT[rnn]
    memory = module(
        features,
        rnn_size,
        in_keys=["features", *states],
        out_keys=["features", *(("next", state) for state in states)],
    )
    head = nn.Sequential(nn.LayerNorm(rnn_size), make_values(rnn_size, num_actions, dueling=dueling))
    return TensorDictSequential(
        TensorDictModule(network, in_keys=[key], out_keys=["features"]),
        memory,
        TensorDictModule(head, in_keys=["features"], out_keys=["action_value"]),
        *choose(num_actions, epsilon),
    )
