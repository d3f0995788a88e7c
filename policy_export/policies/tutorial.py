"""The policy of TorchRL's tutorial "Exporting TorchRL modules": the Nature network on one screen of 84 by 84 pixels."""

from __future__ import annotations

from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite, TensorSpec
from torchrl.envs import Compose, GrayScale, Resize, ToTensorImage
from torchrl.modules import ConvNet, EGreedyModule, QValueModule


def make_policy(_observation_spec: Composite, action_spec: TensorSpec) -> TensorDictSequential:
    """Make a policy from raw ``observation`` to ``action_value`` ``(*batch, actions)`` float32 and ``action`` int64.

    The transforms, the lazy layers and the exploration are copied word for word from the tutorial, which calls the
    screen ``pixels``.

    Args:
        action_spec: categorical.
    """
    transforms = Compose(ToTensorImage(), Resize(84, interpolation="nearest"), GrayScale())
    network = ConvNet.default_atari_dqn(num_actions=action_spec.space.n)
    value = TensorDictModule(network, in_keys=["pixels"], out_keys=["action_value"])
    exploration = EGreedyModule(action_spec, annealing_num_steps=100_000, eps_init=0.5)
    policy = TensorDictSequential(value, QValueModule(spec=action_spec), exploration)
    screen = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["pixels"])
    return TensorDictSequential(screen, transforms, policy)
