"""Networks and the TensorDict modules around them.

A policy is one :class:`TensorDictSequential` from the environment's raw observation to the action. Everything a stage
needs to know about it (inputs, states, outputs) is read off its keys, so no stage knows which kind of policy it has.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical, Composite
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import EGreedyModule, QValueModule

from stages.common.errors import UserError
from stages.common.files import replacing
from stages.common.params import Policy, Preprocess, Profile
from stages.common.preprocess import PIXELS, program_modules


def make_network(policy: Policy, preprocess: Preprocess, num_outputs: int) -> nn.Sequential:
    """Convolutions, then fully connected layers; LayerNorm and ReLU after each but the last.

    ``(batch, frames, h, w)`` float32 becomes ``(batch, num_outputs)`` float32. The normalisation is what keeps
    Q-learning without a target network stable (Gallici et al., 2024, "Simplifying Deep Temporal Difference Learning").
    """
    layers: list[nn.Module] = []
    channels = preprocess.frames
    height, width = preprocess.size
    for (outputs, kernel, stride), (height, width) in zip(
        policy.conv, policy.feature_sizes(preprocess.size), strict=True
    ):
        layers += [nn.Conv2d(channels, outputs, kernel, stride), nn.LayerNorm([outputs, height, width]), nn.ReLU()]
        channels = outputs
    layers.append(nn.Flatten())
    sizes = [channels * height * width, *policy.hidden]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_outputs))


class EpsilonGreedy(EGreedyModule):
    """TorchRL's epsilon-greedy exploration for a categorical action, written so that it exports.

    The library's own ``forward`` expands its spec to the batch at hand, which fixes the batch size of an exported
    program. Annealing, buffers and the meaning of the exploration type are the library's.
    """

    def __init__(self, num_actions: int, epsilon_start: float, epsilon_end: float, annealing_steps: int = 1) -> None:
        super().__init__(Categorical(num_actions), epsilon_start, epsilon_end, annealing_steps)
        self.num_actions = num_actions

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if exploration_type() not in (ExplorationType.RANDOM, None):
            return tensordict
        greedy = tensordict[self.action_key]
        explores = torch.rand_like(greedy, dtype=torch.float32) < self.eps
        drawn = torch.randint_like(greedy, self.num_actions)
        return tensordict.set(self.action_key, torch.where(explores, drawn, greedy))


@dataclass(frozen=True)
class Agent:
    """One policy, in the shapes that the stages use.

    Attributes:
        network: what is trained and saved.
        actor: from the transformed environment's entries to ``action_value`` ``(batch, num_actions)`` float32 and the
            greedy ``action`` ``(batch,)`` int64; what training explores with.
        policy: from the raw observation, the state and ``is_init`` to the same and the next state. This is what is
            exported; it explores where TorchRL's exploration type is ``RANDOM``.
        input_spec: shape and dtype of every observation and state entry that ``policy`` reads, without batch.
        num_actions: how many there are to choose from.
    """

    network: nn.Module
    actor: TensorDictSequential
    policy: TensorDictSequential
    input_spec: Composite
    num_actions: int


def make_agent(profile: Profile, num_actions: int) -> Agent:
    network = make_network(profile.policy, profile.preprocess, num_actions)
    actor = TensorDictSequential(
        TensorDictModule(network, in_keys=[PIXELS], out_keys=["action_value"]),
        QValueModule(spec=Composite(action=Categorical(num_actions))),
    )
    epsilon = profile.policy.epsilon
    explore = EpsilonGreedy(num_actions, epsilon, epsilon)
    modules, input_spec = program_modules(profile.preprocess)
    policy = TensorDictSequential(*modules, actor, explore)
    return Agent(network, actor, policy, input_spec, num_actions)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, independent of how a file lays them out."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_weights(path: Path, policy: str, network: nn.Module) -> None:
    """Write a network's weights as safetensors, with the policy's name and a digest in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"header": json.dumps({"policy": policy, "sha256": _digest(tensors)})})


def load_weights(path: Path, policy: str, network: nn.Module) -> None:
    """Load what :func:`save_weights` wrote into ``network``.

    Raises:
        UserError: the file is missing, damaged, another policy's, or of a network with other shapes.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            header = json.loads((file.metadata() or {}).get("header", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        reason = "no such file; run `dvc repro`" if isinstance(error, FileNotFoundError) else f"damaged: {error}"
        raise UserError(f"{path}: {reason}") from None
    if header.get("policy") != policy:
        raise UserError(f"{path}: holds the policy {header.get('policy')!r}, expected {policy!r}")
    if header.get("sha256") != _digest(tensors):
        raise UserError(f"{path}: damaged: its weights do not match the digest in its header")
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise UserError(
            f"{path}: weights {found} do not fit the network of params.yaml, which has {expected}; train it again"
        )
    network.load_state_dict(tensors)
