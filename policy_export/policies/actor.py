"""A policy that samples its action from a categorical distribution or, for a vector, from a squashed normal one."""

from __future__ import annotations

from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl import data
from torchrl.data import Composite, TensorSpec
from torchrl.modules import ProbabilisticActor, TanhNormal

from policy_export.config.section import Convolution, Count
from policy_export.policies.networks import make_network, only_observation


def make_policy(
    observation_spec: Composite, action_spec: TensorSpec, *, conv: list[Convolution], hidden: list[Count]
) -> ProbabilisticActor:
    """Make a policy from the one observation to the parameters of a distribution and ``action``.

    ``logits`` ``(*batch, actions)`` float32 and ``action`` ``(*batch,)`` int64 for discrete actions;
    else ``loc`` and ``scale`` of the normal distribution before the squashing and ``action``, each ``(*batch, k)``
    float32. Under ``DETERMINISTIC`` the action is the mode of the categorical distribution, or the squashed ``loc``.

    Args:
        observation_spec: of the one observation, without batch.
        action_spec: categorical, or bounded of shape ``(k,)``.
        conv: as for :func:`~policy_export.policies.networks.make_network`.
        hidden: the same.
    """
    key, observation = only_observation(observation_spec)
    if isinstance(action_spec, data.Categorical):
        network, _ = make_network(observation, conv, hidden, action_spec.n)
        return ProbabilisticActor(
            TensorDictModule(network, in_keys=[key], out_keys=["logits"]),
            in_keys=["logits"],
            distribution_class=Categorical,
            distribution_kwargs={"validate_args": False},
            return_log_prob=True,
        )
    (size,) = action_spec.shape
    network, _ = make_network(observation, conv, hidden, 2 * size)
    return ProbabilisticActor(
        TensorDictModule(nn.Sequential(network, NormalParamExtractor()), in_keys=[key], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": action_spec.space.low, "high": action_spec.space.high},
        return_log_prob=True,
    )
