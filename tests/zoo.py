"""Policies as users of TorchRL write them, with its own modules: one factory a kind."""

from __future__ import annotations

import warnings

import torch
from tensordict.nn import (
    AddStateIndependentNormalScale,
    CompositeDistribution,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torch.distributions import Beta, Independent, TanhTransform
from torch.nn.utils import prune
from torchrl.data import OneHot, Unbounded
from torchrl.envs import GrayScale, ObservationNorm, Resize, TensorDictPrimer, ToTensorImage
from torchrl.modules import (
    MLP,
    AdditiveGaussianModule,
    ConsistentDropoutModule,
    ConvNet,
    DdpgMlpActor,
    DistributionalQValueActor,
    DuelingCnnDQNet,
    EGreedyModule,
    GRUModule,
    IndependentNormal,
    LSTMModule,
    NoisyLinear,
    OneHotCategorical,
    OrnsteinUhlenbeckProcessModule,
    ProbabilisticActor,
    QValueActor,
    QValueModule,
    TanhModule,
    TanhNormal,
    TruncatedNormal,
)
from torchrl.modules.models.exploration import gSDEModule


def perceptron(inputs, outputs):
    return MLP(in_features=inputs, out_features=outputs, num_cells=[32])


def q_actor(network, actions):
    """Return a policy that computes values of all actions, and takes the best or, sometimes, any other."""
    explore = EGreedyModule(actions, eps_init=0.3, eps_end=0.3)
    return TensorDictSequential(QValueActor(network, in_keys=["observation"], spec=actions), explore)


def feed_forward(observations, actions):
    return q_actor(perceptron(observations["observation"].shape[-1], actions.n), actions)


def c51(observations, actions):
    network = MLP(in_features=observations["observation"].shape[-1], out_features=(21, actions.n), num_cells=[32])
    return TensorDictSequential(
        DistributionalQValueActor(network, spec=actions, support=torch.linspace(-10, 10, 21), in_keys=["observation"]),
        EGreedyModule(actions, eps_init=0.3, eps_end=0.3),
    )


def one_hot(observations, actions):
    """Return a policy with TorchRL's default encoding of an action, also where it explores."""
    network = perceptron(observations["observation"].shape[-1], actions.n)
    explore = EGreedyModule(OneHot(actions.n), eps_init=0.3, eps_end=0.3)
    return TensorDictSequential(QValueActor(network, in_keys=["observation"], action_space="one_hot"), explore)


def one_hot_actor(observations, actions):
    network = perceptron(observations["observation"].shape[-1], actions.n)
    logits = TensorDictModule(network, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(logits, in_keys=["logits"], distribution_class=OneHotCategorical, return_log_prob=True)


def dueling(_observations, actions):
    """Return a policy on stacked frames, with layers that find their sizes by themselves."""
    convolutions = {"num_cells": [8, 16], "kernel_sizes": [8, 4], "strides": [4, 2]}
    network = DuelingCnnDQNet(actions.n, cnn_kwargs=convolutions, mlp_kwargs={"num_cells": [32], "depth": 1})
    value = TensorDictModule(network, in_keys=["pixels"], out_keys=["action_value"])
    return TensorDictSequential(value, QValueModule(spec=actions), EGreedyModule(actions, eps_init=0.3, eps_end=0.3))


def td3(observations, actions):
    network = perceptron(observations["observation"].shape[-1], actions.shape[-1])
    return TensorDictSequential(
        TensorDictModule(network, in_keys=["observation"], out_keys=["param"]),
        TanhModule(in_keys=["param"], out_keys=["action"], spec=actions),
        AdditiveGaussianModule(actions, sigma_init=0.3, sigma_end=0.3),
    )


def ddpg(_observations, actions):
    """Return a policy with noise that continues from step to step."""
    network = DdpgMlpActor(actions.shape[-1], mlp_net_kwargs={"num_cells": [32, 32], "depth": 2})
    return TensorDictSequential(
        TensorDictModule(network, in_keys=["observation"], out_keys=["param"]),
        TanhModule(in_keys=["param"], out_keys=["action"], spec=actions),
        OrnsteinUhlenbeckProcessModule(actions, eps_init=1.0, eps_end=1.0, annealing_num_steps=1, sigma=0.8),
    )


def sac(observations, actions):
    network = perceptron(observations["observation"].shape[-1], 2 * actions.shape[-1])
    extract = NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=0.1)
    return ProbabilisticActor(
        TensorDictModule(nn.Sequential(network, extract), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=actions,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": actions.space.low, "high": actions.space.high},
        return_log_prob=True,
    )


def free_log_std(observations, actions):
    """Return a policy with a deviation that is a weight of its own, and an action that is clipped at its bounds."""
    size = actions.shape[-1]
    network = nn.Sequential(
        perceptron(observations["observation"].shape[-1], size), AddStateIndependentNormalScale(size)
    )
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=actions,
        safe=True,
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )


def gsde(observations, actions):
    """Return a policy with noise that depends on the state, drawn once per episode."""
    size, outputs = observations["observation"].shape[-1], actions.shape[-1]
    noise = TensorDictModule(
        gSDEModule(outputs, size, transform=TanhTransform()),  # which keeps actions within their bounds
        in_keys=["loc", "observation", "_eps_gSDE"],
        out_keys=["loc", "scale", "action", "_eps_gSDE"],
    )
    loc = TensorDictModule(perceptron(size, outputs), in_keys=["observation"], out_keys=["loc"])
    return TensorDictSequential(loc, noise)


def two_layer_gru(observations, actions):
    memory = GRUModule(
        observations["observation"].shape[-1], 16, num_layers=2, in_key="observation", out_key="features"
    )
    return TensorDictSequential(memory, *head(16, actions))


def lstm_with_dropout(observations, actions):
    size = observations["observation"].shape[-1]
    memory = LSTMModule(size, 16, num_layers=2, dropout=0.3, in_key="observation", out_key="features")
    return TensorDictSequential(memory, *head(16, actions))


def head(features, actions):
    values = TensorDictModule(nn.Linear(features, actions.n), in_keys=["features"], out_keys=["action_value"])
    return values, QValueModule(spec=actions), EGreedyModule(actions, eps_init=0.3, eps_end=0.3)


class Window(nn.Module):
    """A transformer over the last observations, this one included."""

    def __init__(self, size, length):
        super().__init__()
        self.embed = nn.Linear(size, 16)
        layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, dropout=0.1, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 1)
        self.size, self.length = size, length

    def forward(self, observation, window, is_init):
        window = torch.where(is_init[..., None], 0.0, window)
        window = torch.cat([window[:, 1:], observation[:, None]], 1)
        return self.encode(self.embed(window))[:, -1], window


class Remembering(TensorDictModule):
    """A user's own module that declares the shape of its memory as TorchRL's modules do."""

    def __init__(self, module, key, shape, **keys):
        super().__init__(module, **keys)
        self.key, self.shape = key, shape

    def make_tensordict_primer(self):
        return TensorDictPrimer({self.key: Unbounded(self.shape)}, expand_specs=True)


def transformer(observations, actions):
    size, length = observations["observation"].shape[-1], 4
    memory = Remembering(
        Window(size, length),
        "window",
        (length, size),
        in_keys=["observation", "window", "is_init"],
        out_keys=["features", ("next", "window")],
    )
    return TensorDictSequential(memory, *head(16, actions))


class Trace(nn.Module):
    def forward(self, observation, trace):
        trace = 0.9 * trace + observation
        return trace, trace


def trace(observations, actions):
    """Return a policy with a memory that is overwritten in place."""
    size = observations["observation"].shape[-1]
    keys = {"in_keys": ["observation", "trace"], "out_keys": ["features", "trace"]}
    return TensorDictSequential(Remembering(Trace(), "trace", (size,), **keys), *head(size, actions))


class Depthwise(nn.Sequential):
    """A convolution for each channel, then one over all channels for each pixel, as in small networks for devices."""

    def __init__(self, channels, actions):
        super().__init__(
            nn.Conv2d(channels, 8, 5, 3),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
            nn.Conv2d(8, 16, 1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, actions),
        )


def depthwise(observations, actions):
    network = Depthwise(observations["pixels"].shape[0], actions.n)
    value = TensorDictModule(network, in_keys=["pixels"], out_keys=["action_value"])
    return TensorDictSequential(value, QValueModule(spec=actions), EGreedyModule(actions, eps_init=0.3, eps_end=0.3))


def antialiased(_observations, actions):
    """Return a policy with TorchRL's transforms and their defaults in it."""
    network = nn.Sequential(
        ConvNet(in_features=1, num_cells=[4, 8], kernel_sizes=[5, 3], strides=[3, 2]),
        nn.LazyLinear(actions.n),
    )
    keys = {"in_keys": ["pixels"]}
    return TensorDictSequential(
        ToTensorImage(in_keys=["observation"], out_keys=["pixels"]),
        GrayScale(**keys),
        Resize(40, 40, **keys),
        TensorDictModule(network, in_keys=["pixels"], out_keys=["action_value"]),
        QValueModule(spec=actions),
        EGreedyModule(actions, eps_init=0.3, eps_end=0.3),
    )


def observation_norm(observations, actions):
    size = observations["observation"].shape[-1]
    norm = ObservationNorm(
        loc=torch.linspace(-1, 1, size), scale=torch.full((size,), 2.0), in_keys=["observation"], standard_normal=True
    )
    return TensorDictSequential(norm, q_actor(perceptron(size, actions.n), actions))


def lazy(_observations, actions):
    return q_actor(nn.Sequential(nn.LazyLinear(32), nn.LayerNorm(32), nn.Tanh(), nn.LazyLinear(actions.n)), actions)


def dropout(observations, actions):
    size = observations["observation"].shape[-1]
    layers = nn.Linear(size, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, actions.n)
    return q_actor(nn.Sequential(*layers), actions)


def consistent_dropout(observations, actions):
    size = observations["observation"].shape[-1]
    return TensorDictSequential(
        TensorDictModule(nn.Linear(size, 16), in_keys=["observation"], out_keys=["features"]),
        ConsistentDropoutModule(0.3, in_keys="features", input_shape=(16,)),
        *head(16, actions),
    )


class Positive(nn.Module):
    """Gives the two concentrations of a beta distribution."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.network = perceptron(inputs, 2 * outputs)

    def forward(self, observation):
        return (nn.functional.softplus(self.network(observation)) + 0.5).chunk(2, -1)


class IndependentBeta(Independent):
    def __init__(self, concentration1, concentration0):
        super().__init__(Beta(concentration1, concentration0), 1)


def beta(observations, actions):
    """Return a policy whose actions are shares of what is allowed."""
    keys = ["concentration1", "concentration0"]
    low, high = actions.space.low, actions.space.high
    return TensorDictSequential(
        TensorDictModule(Positive(observations["observation"].shape[-1], actions.shape[-1]), ["observation"], keys),
        ProbabilisticTensorDictModule(keys, ["share"], distribution_class=IndependentBeta),
        TensorDictModule(lambda share: low + (high - low) * share, ["share"], ["action"]),
    )


def composite(observations, _actions):
    """Return a policy that draws two numbers, and adds them."""
    network = nn.Sequential(perceptron(observations["observation"].shape[-1], 4), NormalParamExtractor())
    shares = [("params", name, number) for name in ("coarse", "fine") for number in ("loc", "scale")]
    bounds = {name: {"low": torch.tensor([-1.0]), "high": torch.tensor([1.0])} for name in ("coarse", "fine")}
    return TensorDictSequential(
        TensorDictModule(network, ["observation"], ["all_loc", "all_scale"]),
        TensorDictModule(
            lambda loc, scale: (loc[..., :1], scale[..., :1], loc[..., 1:], scale[..., 1:]),
            ["all_loc", "all_scale"],
            shares,
        ),
        ProbabilisticTensorDictModule(
            ["params"],
            ["coarse", "fine"],
            distribution_class=CompositeDistribution,
            distribution_kwargs={
                "distribution_map": {"coarse": TruncatedNormal, "fine": TruncatedNormal},
                "extra_kwargs": bounds,
            },
        ),
        TensorDictModule(lambda coarse, fine: coarse + 0.1 * fine, ["coarse", "fine"], ["action"]),
    )


def old_norms(observations, actions):
    """Return a policy whose weights are made by hooks, as before PyTorch had parametrizations."""
    first, second = nn.Linear(observations["observation"].shape[-1], 16), nn.Linear(16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that they are old
        first, second = nn.utils.weight_norm(first), nn.utils.spectral_norm(second)
    last = prune.l1_unstructured(nn.Linear(16, actions.n), "weight", amount=0.3)
    return q_actor(nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last), actions)


class OverNumbers(nn.Module):
    """A transformer over the numbers of an observation."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, dropout=0.1, batch_first=True)
        self.embed, self.encode = nn.Linear(1, 8), nn.TransformerEncoder(layer, 2)


class Padded(OverNumbers):
    """The numbers below zero at the end of an observation are hidden."""

    def forward(self, observation):
        hidden = (observation > 0).flip(-1).cumsum(-1).flip(-1) == 0
        hidden[..., 0] = False
        return self.encode(self.embed(observation[..., None]), src_key_padding_mask=hidden).mean(-2)


def padded(_observations, actions):
    return TensorDictSequential(TensorDictModule(Padded(), ["observation"], ["features"]), *head(8, actions))


class Causal(OverNumbers):
    """Each number sees those before it."""

    def forward(self, observation):
        mask = nn.Transformer.generate_square_subsequent_mask(observation.shape[-1])
        return self.encode(self.embed(observation[..., None]), mask=mask)[..., -1, :]


def causal(_observations, actions):
    return TensorDictSequential(TensorDictModule(Causal(), ["observation"], ["features"]), *head(8, actions))


class Distances(nn.Module):
    """Chooses by how near an observation is to some that are learned."""

    def __init__(self, size, actions):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(actions, size))

    def forward(self, observation):
        return -torch.cdist(observation, self.centres)


def nearest(observations, actions):
    return q_actor(Distances(observations["observation"].shape[-1], actions.n), actions)


def orthogonal(observations, actions):
    """Return a policy whose weights are made by parametrizations, one of which few runtimes can compute."""
    first = nn.utils.parametrizations.orthogonal(nn.Linear(observations["observation"].shape[-1], 16))
    last = nn.utils.parametrizations.spectral_norm(nn.Linear(16, actions.n))
    return q_actor(nn.Sequential(first, nn.Tanh(), nn.BatchNorm1d(16), last), actions)


def noisy(observations, actions):
    size = observations["observation"].shape[-1]
    return q_actor(nn.Sequential(NoisyLinear(size, 32), nn.ReLU(), NoisyLinear(32, actions.n)), actions)
