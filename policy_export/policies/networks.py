"""The networks that the policies here are made of."""

from __future__ import annotations

import itertools

import torch
from tensordict import NestedKey
from torch import nn
from torch.nn.utils import parametrize
from torchrl.data import Categorical, Composite, TensorSpec

from policy_export.config.errors import ProfileError
from policy_export.config.section import Convolution


class Network(nn.Sequential):
    """Layers for observations of ``ndim`` dimensions behind any number of batch dimensions."""

    def __init__(self, layers: list[nn.Module], ndim: int) -> None:
        super().__init__(*layers)
        self.ndim = ndim

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        if observation.ndim <= self.ndim + 1:
            return super().forward(observation)
        batch = observation.shape[: -self.ndim]
        return super().forward(observation.flatten(0, -self.ndim - 1)).unflatten(0, batch)


def make_network(
    observation: TensorSpec, conv: list[Convolution], hidden: list[int], num_outputs: int | None, place: str = "policy"
) -> tuple[Network, int]:
    """Make convolutions, then fully connected layers, each with LayerNorm and ReLU, and a last layer without these.

    The normalisation keeps Q-learning without a target network stable (Gallici et al., 2024, "Simplifying Deep
    Temporal Difference Learning").

    Args:
        observation: spec of one float observation: images ``(channels, h, w)`` where there are convolutions.
        conv: ``[channels, kernel, stride]`` a convolution.
        hidden: units of the fully connected layers.
        num_outputs: units of the last layer; none if there is no such layer.
        place: where these parameters stand, for messages.

    Returns:
        the network, from ``(*batch, *observation.shape)`` to ``(*batch, outputs)`` float32, and its number of outputs.

    Raises:
        ProfileError: an image is too small, or the observation is not an image.
    """
    shape = tuple(observation.shape)
    layers: list[nn.Module] = []
    if conv:
        if len(shape) != len(("channels", "height", "width")):
            raise ProfileError(f"{place}.conv: {conv!r}: observations of shape {shape} are no images, must be []")
        channels, height, width = shape
        for outputs, kernel, stride in conv:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            if min(height, width) < 1:
                raise ProfileError(f"{place}.conv: {conv!r} leaves images of {(height, width)} of {shape[1:]}")
            layers += [nn.Conv2d(channels, outputs, kernel, stride), nn.LayerNorm([outputs, height, width]), nn.ReLU()]
            channels = outputs
        shape = (channels, height, width)
    if len(shape) > 1:
        layers.append(nn.Flatten())
    sizes = [int(torch.Size(shape).numel()), *hidden]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
    if num_outputs is not None:
        layers.append(nn.Linear(sizes[-1], num_outputs))
    return Network(layers, len(observation.shape)), num_outputs or sizes[-1]


class Dueling(nn.Module):
    """Parametrisation of a last layer whose output for an action is a state's value plus the action's advantage.

    What is learned of one action is then learned of the state, and so of all actions (Wang et al., 2016, "Dueling
    Network Architectures for Deep Reinforcement Learning"). Both parts are linear in the same features: their sum is
    one linear layer, which is all that a program has of it.
    """

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """Return weights ``(actions, ...)`` from those of the value and the advantages, ``(1 + actions, ...)``."""
        value, advantages = parts[:1], parts[1:]
        return value + advantages - advantages.mean(0, keepdim=True)

    def right_inverse(self, weights: torch.Tensor) -> torch.Tensor:
        return torch.cat([weights.mean(0, keepdim=True), weights])


def make_values(features: int, num_actions: int, *, dueling: bool) -> nn.Linear:
    """Make the last layer of a Q policy, from ``(*batch, features)`` to ``(*batch, num_actions)`` float32."""
    layer = nn.Linear(features, num_actions)
    for name in ("weight", "bias") if dueling else ():
        parametrize.register_parametrization(layer, name, Dueling(), unsafe=True)  # its input has a row more
    return layer


def only_observation(observation_spec: Composite) -> tuple[NestedKey, TensorSpec]:
    """Return key and spec of the only entry.

    Raises:
        ProfileError: there are more, or it is not of float32 numbers.
    """
    entries = list(observation_spec.items(include_nested=True, leaves_only=True))
    if len(entries) != 1:
        raise ProfileError(f"policy.factory: is for one observation, found {', '.join(str(key) for key, _ in entries)}")
    if (dtype := entries[0][1].dtype) != torch.float32:
        raise ProfileError(f"policy.factory: is for float32 observations, found {str(dtype).removeprefix('torch.')}")
    return entries[0]


def number_of_actions(action_spec: TensorSpec) -> int:
    """Return the number of actions to choose from.

    Raises:
        ProfileError: the action is not discrete.
    """
    if not isinstance(action_spec, Categorical):
        raise ProfileError(f"policy.factory: is for actions to choose from, found {tuple(action_spec.shape)} numbers")
    return int(action_spec.n)
