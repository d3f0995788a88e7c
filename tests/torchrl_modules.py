"""The smallest policy of each class of ``torchrl.modules`` that can be a part of one, and what becomes of it.

A class that can be no part of a policy is in ``NO_PART``, with the reason; both together are all that TorchRL exports.
``docs/policies.md`` has the same as a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict.nn import CompositeDistribution, ProbabilisticTensorDictModule, TensorDictModule, TensorDictSequential
from tensordict.nn import NormalParamExtractor as Extractor
from torch import nn
from torchrl import modules
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    Unbounded,
)
from torchrl.envs import TensorDictPrimer
from torchrl.modules.models.exploration import LazygSDEModule, gSDEModule

SIZE, ACTIONS, NUMBERS, AGENTS = 4, 3, 2, 2
AS_IT_IS, TWIN, MEMORY, BOTH, REFUSED = "as it is", "twin", "memory", "twin, memory", "refused"
BOX = Bounded(-1.0, 1.0, (NUMBERS,))
CHOICE = Categorical(ACTIONS)
SPECS = {
    "observation": Unbounded(SIZE),
    "pixels": Unbounded((3, 12, 12)),
    "large_pixels": Unbounded((3, 64, 64)),
    "video": Unbounded((3, 5, 7, 7)),
    "mask": Binary(ACTIONS, dtype=torch.bool),
    "agents": Unbounded((AGENTS, SIZE)),
    "agents_pixels": Unbounded((AGENTS, 3, 12, 12)),
    "covariance": Unbounded((SIZE, SIZE)),
    "belief": Unbounded(8),
    "state": Unbounded(SIZE),
}


@dataclass(frozen=True)
class Case:
    """A policy and what becomes of it.

    Attributes:
        names: of the classes that it is made of.
        make: the policy.
        how: ``AS_IT_IS``, by a ``TWIN``, with ``MEMORY``, with ``BOTH``, or ``REFUSED``.
        reads: keys of its observations.
        says: what a refusal says, in part.
        one_hot: whether it writes one-hot actions.
    """

    names: tuple[str, ...]
    make: Callable[[], TensorDictModule]
    how: str
    reads: tuple[str, ...]
    says: str
    one_hot: bool

    @property
    def id(self) -> str:
        return self.make.__name__


CASES: list[Case] = []


def case(*names, how=AS_IT_IS, reads=("observation",), says="", one_hot=False):
    """Enter a policy into the catalogue."""

    def enter(make):
        CASES.append(Case(names, make, how, reads, says, one_hot))
        return make

    return enter


def layer(network, reads=("observation",), writes=("action",)):
    return TensorDictModule(network, in_keys=list(reads), out_keys=list(writes))


def mlp(outputs, inputs=SIZE, **arguments):
    return modules.MLP(in_features=inputs, out_features=outputs, num_cells=[8], **arguments)


def actor(distribution, parameters, network, key="observation", **arguments):
    """A network's outputs as a distribution's parameters."""
    module = layer(network, [key], parameters)
    return modules.ProbabilisticActor(
        module, in_keys=parameters, distribution_class=distribution, return_log_prob=True, **arguments
    )


def loc_and_scale(outputs=NUMBERS):
    return nn.Sequential(mlp(2 * outputs), Extractor())


# Networks.


@case("MLP", "Actor")
def multi_layer_perceptron():
    return modules.Actor(mlp(NUMBERS), in_keys=["observation"], spec=BOX)


@case("ConvNet", "SqueezeLayer", "Squeeze2dLayer", reads=("pixels",))
def convolutions():
    sizes = {"num_cells": [4, NUMBERS], "kernel_sizes": [8, 5], "strides": 1}
    return layer(
        nn.Sequential(
            modules.ConvNet(in_features=3, aggregator_class=modules.Squeeze2dLayer, aggregator_kwargs={}, **sizes),
            nn.Unflatten(-1, (NUMBERS, 1)),
            modules.SqueezeLayer((-1,)),
        ),
        ["pixels"],
    )


@case("Conv3dNet", reads=("video",))
def convolutions_of_video():
    network = modules.Conv3dNet(in_features=3, num_cells=[4], kernel_sizes=[3])
    return layer(nn.Sequential(network, nn.LazyLinear(NUMBERS)), ["video"])


@case("DdpgCnnActor", reads=("large_pixels",))
def ddpg_on_pixels():
    mlp_kwargs = {"num_cells": [8, 8], "depth": 2}
    network = modules.DdpgCnnActor(NUMBERS, mlp_net_kwargs=mlp_kwargs)
    return layer(network, ["large_pixels"], ["action", "hidden"])


@case("DdpgMlpActor", "TanhModule")
def ddpg():
    network = modules.DdpgMlpActor(NUMBERS, mlp_net_kwargs={"num_cells": [8, 8], "depth": 2})
    return TensorDictSequential(
        layer(network, writes=["raw"]), modules.TanhModule(in_keys=["raw"], out_keys=["action"], spec=BOX)
    )


@case("DuelingCnnDQNet", "QValueModule", reads=("pixels",))
def dueling():
    convolutions = {"num_cells": [4], "kernel_sizes": [4], "strides": [4]}
    network = modules.DuelingCnnDQNet(ACTIONS, cnn_kwargs=convolutions, mlp_kwargs={"num_cells": [8], "depth": 1})
    return TensorDictSequential(layer(network, ["pixels"], ["action_value"]), modules.QValueModule(spec=CHOICE))


@case("BatchRenorm1d")
def batch_renormalisation():
    return layer(nn.Sequential(nn.Linear(SIZE, 8), modules.BatchRenorm1d(8), nn.Linear(8, NUMBERS)))


@case("NoisyLinear", "NoisyLazyLinear", "reset_noise")
def noisy_weights():
    network = nn.Sequential(modules.NoisyLazyLinear(8), nn.ReLU(), modules.NoisyLinear(8, ACTIONS))
    return modules.QValueActor(network.apply(modules.reset_noise), in_keys=["observation"], spec=CHOICE)


@case("ConsistentDropout")
def consistent_dropout():
    return layer(nn.Sequential(nn.Linear(SIZE, 8), modules.ConsistentDropout(0.5), nn.Linear(8, NUMBERS)))


@case("ConsistentDropoutModule")
def consistent_dropout_module():
    return TensorDictSequential(
        layer(nn.Linear(SIZE, 8), writes=["hidden"]),
        modules.ConsistentDropoutModule(0.5, in_keys="hidden", input_shape=(8,)),
        layer(nn.Linear(8, NUMBERS), ["hidden"]),
    )


@case("RBFController", reads=("observation", "covariance"))
def radial_basis_functions():
    controller = modules.RBFController(SIZE, NUMBERS, max_action=1.0, n_basis=3)
    return layer(controller, ["observation", "covariance"], ["action", "action_covariance", "cross_covariance"])


@case("MultiAgentNetBase", "MultiAgentMLP", reads=("agents",))
def agents_of_their_own():
    network = modules.MultiAgentMLP(SIZE, NUMBERS, AGENTS, centralized=False, share_params=False, depth=1, num_cells=8)
    return layer(network, ["agents"])


@case("MultiAgentMLP", reads=("agents",))
def agents_that_share():
    network = modules.MultiAgentMLP(SIZE, NUMBERS, AGENTS, centralized=False, share_params=True, depth=1, num_cells=8)
    return layer(network, ["agents"])


@case("MultiAgentConvNet", reads=("agents_pixels",))
def agents_that_see():
    sizes = {"num_cells": [4], "kernel_sizes": [4], "strides": [4]}
    network = modules.MultiAgentConvNet(n_agents=AGENTS, centralized=False, share_params=True, **sizes)
    return layer(nn.Sequential(network, nn.LazyLinear(NUMBERS)), ["agents_pixels"])


@case("DreamerActor", reads=("state", "belief"))
def dreamer():
    network = modules.DreamerActor(NUMBERS, depth=1, num_cells=8)
    head = layer(network, ["state", "belief"], ["loc", "scale"])
    return modules.ProbabilisticActor(head, in_keys=["loc", "scale"], distribution_class=modules.TanhNormal)


@case("DreamerV3DiscreteActor", reads=("state", "belief"), one_hot=True)
def dreamer_v3():
    return modules.DreamerV3DiscreteActor(SIZE + 8, ACTIONS, depth=1, num_cells=8)


@case("DreamerV3MLP", reads=("state", "belief"))
def dreamer_v3_perceptron():
    return layer(modules.DreamerV3MLP(SIZE + 8, NUMBERS, depth=1, num_cells=8), ["belief", "state"])


@case("DreamerV3ImageEncoder", reads=("large_pixels",))
def dreamer_v3_encoder():
    return layer(nn.Sequential(modules.DreamerV3ImageEncoder(), nn.LazyLinear(NUMBERS)), ["large_pixels"])


@case("ObsEncoder", reads=("large_pixels",))
def dreamer_encoder():
    return layer(nn.Sequential(modules.ObsEncoder(channels=4), nn.LazyLinear(NUMBERS)), ["large_pixels"])


@case("DreamerV3BlockGRUCell", reads=("observation", "belief"))
def dreamer_v3_cell():
    cell = modules.DreamerV3BlockGRUCell(SIZE, 8, num_blocks=2)
    return TensorDictSequential(
        layer(cell, ["observation", "belief"], ["hidden"]), layer(nn.Linear(8, NUMBERS), ["hidden"])
    )


@case("GRUCell", reads=("observation", "belief"))
def gru_cell():
    return TensorDictSequential(
        layer(modules.GRUCell(SIZE, 8), ["observation", "belief"], ["hidden"]), layer(nn.Linear(8, NUMBERS), ["hidden"])
    )


@case("LSTMCell", reads=("observation", "belief"))
def lstm_cell():
    class Cell(modules.LSTMCell):
        def forward(self, observation, belief):
            return super().forward(observation, (belief, belief))

    return TensorDictSequential(
        layer(Cell(SIZE, 8), ["observation", "belief"], ["hidden", "cell"]), layer(nn.Linear(8, NUMBERS), ["hidden"])
    )


@case("GRU", reads=("video",))
def gru_over_a_window():
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = modules.GRU(7, 8, batch_first=True), nn.Linear(8, NUMBERS)

        def forward(self, video):
            return self.head(self.gru(video[:, 0, 0])[0][:, -1])

    return layer(Window(), ["video"])


@case("LSTM", reads=("video",))
def lstm_over_a_window():
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = modules.LSTM(7, 8, batch_first=True), nn.Linear(8, NUMBERS)

        def forward(self, video):
            return self.head(self.lstm(video[:, 0, 0])[0][:, -1])

    return layer(Window(), ["video"])


# TensorDict modules.


@case("QValueActor", "EGreedyModule", how=TWIN)
def epsilon_greedy():
    explore = modules.EGreedyModule(CHOICE, eps_init=0.5, eps_end=0.5)
    return TensorDictSequential(modules.QValueActor(mlp(ACTIONS), in_keys=["observation"], spec=CHOICE), explore)


@case("QValueHook", one_hot=True)
def hook():
    module = layer(mlp(ACTIONS), writes=["action_value"])
    network = nn.Sequential(mlp(ACTIONS))
    network.register_forward_hook(modules.QValueHook("one_hot"))
    del module
    return layer(network, writes=["action", "action_value", "chosen_action_value"])


@case("DistributionalQValueHook", one_hot=True)
def distributional_hook():
    network = nn.Sequential(mlp((5, ACTIONS)), nn.LogSoftmax(-2))
    network.register_forward_hook(modules.DistributionalQValueHook("one_hot", torch.linspace(-1, 1, 5)))
    return layer(network, writes=["action", "action_value"])


@case("DistributionalDQNnet", "DistributionalQValueModule", "DistributionalQValueActor")
def distributional():
    return modules.DistributionalQValueActor(
        mlp((5, ACTIONS)), in_keys=["observation"], spec=CHOICE, support=torch.linspace(-1, 1, 5)
    )


@case("DiffusionActor")
def diffusion():
    network = nn.Sequential(nn.Linear(NUMBERS + SIZE + 1, 8), nn.SiLU(), nn.Linear(8, NUMBERS))
    return modules.DiffusionActor(NUMBERS, score_network=network, num_steps=3, spec=BOX)


@case("AdditiveGaussianModule")
def gaussian_noise():
    noise = modules.AdditiveGaussianModule(BOX, sigma_init=0.3, sigma_end=0.3)
    return TensorDictSequential(layer(mlp(NUMBERS)), noise)


@case("OrnsteinUhlenbeckProcessModule", how=MEMORY)
def ornstein_uhlenbeck():
    noise = modules.OrnsteinUhlenbeckProcessModule(BOX, eps_init=1.0, eps_end=1.0, sigma=0.8)
    return TensorDictSequential(layer(mlp(NUMBERS)), noise)


@case("LSTMModule", how=BOTH)
def lstm():
    memory = modules.LSTMModule(SIZE, 8, in_key="observation", out_key="hidden")
    return TensorDictSequential(memory, layer(nn.Linear(8, NUMBERS), ["hidden"]))


@case("GRUModule", how=BOTH)
def gru():
    memory = modules.GRUModule(SIZE, 8, in_key="observation", out_key="hidden")
    return TensorDictSequential(memory, layer(nn.Linear(8, NUMBERS), ["hidden"]))


@case("gSDEModule", how=MEMORY)
def state_dependent_noise():
    return state_dependent(gSDEModule(NUMBERS, SIZE))


@case("LazygSDEModule", how=MEMORY)
def lazy_state_dependent_noise():
    return state_dependent(LazygSDEModule())


def state_dependent(noise):
    keys = ["loc", "observation", "_eps_gSDE"], ["loc", "scale", "action", "_eps_gSDE"]
    return TensorDictSequential(layer(mlp(NUMBERS), writes=["loc"]), layer(noise, *keys))


@case("VmapModule", reads=("agents",))
def vmap():
    return modules.VmapModule(layer(mlp(NUMBERS), ["agents"]), 0)


@case("ActorValueOperator", "ValueOperator", "SafeModule", "SafeSequential")
def actor_and_value():
    common = modules.SafeModule(mlp(8), in_keys=["observation"], out_keys=["hidden"])
    policy = actor(modules.TanhNormal, ["loc", "scale"], nn.Sequential(mlp(2 * NUMBERS, 8), Extractor()), "hidden")
    value = modules.ValueOperator(mlp(1, 8), in_keys=["hidden"])
    return modules.ActorValueOperator(common, policy, value)


@case("ActorCriticOperator")
def actor_and_critic():
    common = modules.SafeModule(mlp(8), in_keys=["observation"], out_keys=["hidden"])
    policy = modules.SafeModule(mlp(NUMBERS, 8), in_keys=["hidden"], out_keys=["action"])
    critic = modules.ValueOperator(mlp(1, 8 + NUMBERS), in_keys=["hidden", "action"])
    return modules.ActorCriticOperator(common, policy, critic)


@case("ActorCriticWrapper")
def actor_beside_critic():
    policy = modules.SafeModule(mlp(NUMBERS), in_keys=["observation"], out_keys=["action"])
    return modules.ActorCriticWrapper(policy, modules.ValueOperator(mlp(1), in_keys=["observation"]))


@case("SafeProbabilisticModule", "SafeProbabilisticTensorDictSequential")
def safe_probabilistic():
    return modules.SafeProbabilisticTensorDictSequential(
        layer(loc_and_scale(), writes=["loc", "scale"]),
        modules.SafeProbabilisticModule(
            ["loc", "scale"], ["action"], BOX, safe=True, distribution_class=modules.IndependentNormal
        ),
    )


@case("MultiStepActorWrapper", how=BOTH)
def chunks_of_actions():
    chunk = layer(nn.Sequential(mlp(4 * NUMBERS), nn.Unflatten(-1, (4, NUMBERS))))
    return modules.MultiStepActorWrapper(chunk, n_steps=4, replan_interval=2)


@case("DreamerV3SeededPolicy", how=REFUSED, reads=("state", "belief"), says="the same random seed")
def seeded():
    return modules.DreamerV3SeededPolicy(dreamer_v3(), seed=7)


@case(
    "RSSMPriorV3",
    "RSSMPosteriorV3",
    "RSSMStateEstimatorV3",
    how=REFUSED,
    says="draws random numbers",
)
def dreamer_v3_state():
    prior = modules.RSSMPriorV3(
        action_shape=(NUMBERS,), action_dim=NUMBERS, hidden_dim=8, rnn_hidden_dim=8, num_categoricals=2, num_classes=4
    )
    posterior = modules.RSSMPosteriorV3(
        hidden_dim=8, rnn_hidden_dim=8, obs_embed_dim=SIZE, num_categoricals=2, num_classes=4
    )

    class Estimator(modules.RSSMStateEstimatorV3):
        def make_tensordict_primer(self):
            shapes = {"state": 8, "belief": 8, "previous_action": NUMBERS}
            return TensorDictPrimer({key: Unbounded(size) for key, size in shapes.items()}, expand_specs=True)

    keys = ["state", "belief", "previous_action", "observation", "is_init"]
    return TensorDictSequential(
        Estimator(prior, posterior, in_keys=keys),
        layer(mlp(NUMBERS, 16), ["state", "belief"]),
        layer(nn.Identity(), ["action"], ["previous_action"]),
    )


# Distributions.


@case("ProbabilisticActor", "TanhNormal", "NormalParamExtractor")
def tanh_normal():
    network = nn.Sequential(mlp(2 * NUMBERS), modules.NormalParamExtractor())
    bounds = {"low": BOX.space.low, "high": BOX.space.high}
    return actor(modules.TanhNormal, ["loc", "scale"], network, spec=BOX, distribution_kwargs=bounds)


@case("IndependentNormal")
def independent_normal():
    return actor(modules.IndependentNormal, ["loc", "scale"], loc_and_scale(), spec=BOX, safe=True)


@case("TruncatedNormal")
def truncated_normal():
    return actor(modules.TruncatedNormal, ["loc", "scale"], loc_and_scale(), spec=BOX)


@case("Delta")
def delta():
    return actor(modules.Delta, ["param"], mlp(NUMBERS))


@case("TanhDelta")
def tanh_delta():
    return actor(modules.TanhDelta, ["param"], mlp(NUMBERS), spec=BOX)


@case("OneHotCategorical", one_hot=True)
def one_hot_categorical():
    return actor(modules.OneHotCategorical, ["logits"], mlp(ACTIONS))


@case("MaskedCategorical", reads=("observation", "mask"))
def masked_categorical():
    return masked(modules.MaskedCategorical)


@case("MaskedOneHotCategorical", reads=("observation", "mask"), one_hot=True)
def masked_one_hot_categorical():
    return masked(modules.MaskedOneHotCategorical)


def masked(distribution):
    return modules.ProbabilisticActor(
        layer(mlp(ACTIONS), writes=["logits"]), in_keys=["logits", "mask"], distribution_class=distribution
    )


@case("Ordinal")
def ordinal():
    return actor(modules.Ordinal, ["scores"], mlp(ACTIONS))


@case("OneHotOrdinal", one_hot=True)
def one_hot_ordinal():
    return actor(modules.OneHotOrdinal, ["scores"], mlp(ACTIONS))


@case("torch.distributions.Categorical")
def categorical():
    return actor(torch.distributions.Categorical, ["logits"], mlp(ACTIONS))


@case("safe=True with a OneHot spec", how=REFUSED, says="the deterministic program draws random numbers")
def safe_one_hot():
    return modules.QValueActor(mlp(ACTIONS), in_keys=["observation"], spec=OneHot(ACTIONS), safe=True)


NO_PART: dict[str, str] = {}
_ = CompositeDistribution, ProbabilisticTensorDictModule, Composite, MultiCategorical, MultiOneHot
