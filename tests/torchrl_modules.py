"""The smallest policy with each class of ``torchrl.modules`` that can be in one, and how it is exported.

A class that can be no part of a policy is in ``NO_PART``, with the reason; both together are all that TorchRL exports.
``docs/policies.md`` has the same as a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl import modules
from torchrl.data import Binary, Bounded, Categorical, OneHot, Unbounded
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
    "window": Unbounded((2, SIZE)),
    "mask": Binary(ACTIONS, dtype=torch.bool),
    "agents": Unbounded((AGENTS, SIZE)),
    "agents_pixels": Unbounded((AGENTS, 3, 12, 12)),
    "covariance": Unbounded((SIZE, SIZE)),
    "belief": Unbounded(8),
    "state": Unbounded(SIZE),
}


@dataclass(frozen=True)
class Case:
    """A policy and how it is exported.

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
    """Add a policy to the catalogue."""

    def enter(make):
        CASES.append(Case(names, make, how, reads, says, one_hot))
        return make

    return enter


def layer(network, reads=("observation",), writes=("action",)):
    return TensorDictModule(network, in_keys=list(reads), out_keys=list(writes))


def mlp(outputs, inputs=SIZE, **arguments):
    return modules.MLP(in_features=inputs, out_features=outputs, num_cells=[8], **arguments)


def actor(distribution, parameters, network, key="observation", **arguments):
    """Return a network's outputs as a distribution's parameters."""
    module = layer(network, [key], parameters)
    return modules.ProbabilisticActor(
        module, in_keys=parameters, distribution_class=distribution, return_log_prob=True, **arguments
    )


def loc_and_scale(outputs=NUMBERS):
    return nn.Sequential(mlp(2 * outputs), modules.NormalParamExtractor())


# Networks.


@case("ConvNet", "Conv3dNet", "SqueezeLayer", "Squeeze2dLayer", reads=("pixels", "video"))
def convolutions():
    sizes = {"num_cells": [4, NUMBERS], "kernel_sizes": [8, 5], "strides": 1}
    flat = modules.ConvNet(in_features=3, aggregator_class=modules.Squeeze2dLayer, aggregator_kwargs={}, **sizes)
    deep = modules.Conv3dNet(in_features=3, num_cells=[4], kernel_sizes=[3])
    squeeze = nn.Sequential(nn.Unflatten(-1, (NUMBERS, 1)), modules.SqueezeLayer((-1,)))
    return TensorDictSequential(
        layer(flat, ["pixels"], ["flat"]),
        layer(nn.Sequential(deep, nn.LazyLinear(8)), ["video"], ["deep"]),
        layer(mlp(NUMBERS, NUMBERS + 8), ["flat", "deep"], ["squeezed"]),
        layer(squeeze, ["squeezed"]),
    )


@case("DdpgCnnActor", reads=("large_pixels",))
def ddpg_on_pixels():
    mlp_kwargs = {"num_cells": [8, 8], "depth": 2}
    network = modules.DdpgCnnActor(NUMBERS, mlp_net_kwargs=mlp_kwargs)
    return layer(network, ["large_pixels"], ["action", "hidden"])


@case("DdpgMlpActor", "TanhModule", "AdditiveGaussianModule")
def ddpg():
    network = modules.DdpgMlpActor(NUMBERS, mlp_net_kwargs={"num_cells": [8, 8], "depth": 2})
    return TensorDictSequential(
        layer(network, writes=["raw"]),
        modules.TanhModule(in_keys=["raw"], out_keys=["action"], spec=BOX),
        modules.AdditiveGaussianModule(BOX, sigma_init=0.3, sigma_end=0.3),
    )


@case("DuelingCnnDQNet", "QValueModule", reads=("pixels",))
def dueling():
    convolutions = {"num_cells": [4], "kernel_sizes": [4], "strides": [4]}
    network = modules.DuelingCnnDQNet(ACTIONS, cnn_kwargs=convolutions, mlp_kwargs={"num_cells": [8], "depth": 1})
    return TensorDictSequential(layer(network, ["pixels"], ["action_value"]), modules.QValueModule(spec=CHOICE))


@case("NoisyLinear", "NoisyLazyLinear", "BatchRenorm1d", "QValueActor")
def noisy_weights():
    network = nn.Sequential(
        modules.NoisyLazyLinear(8), modules.BatchRenorm1d(8), nn.ReLU(), modules.NoisyLinear(8, ACTIONS)
    )
    return modules.QValueActor(network, in_keys=["observation"], spec=CHOICE)


@case("ConsistentDropout", "ConsistentDropoutModule")
def consistent_dropout():
    return TensorDictSequential(
        layer(nn.Sequential(nn.Linear(SIZE, 8), modules.ConsistentDropout(0.5)), writes=["hidden"]),
        modules.ConsistentDropoutModule(0.5, in_keys="hidden", input_shape=(8,)),
        layer(nn.Linear(8, NUMBERS), ["hidden"]),
    )


@case("RBFController", how=REFUSED, says="linalg_solve", reads=("observation", "covariance"))
def radial_basis_functions():
    controller = modules.RBFController(SIZE, NUMBERS, max_action=1.0, n_basis=3)
    return layer(controller, ["observation", "covariance"], ["action", "action_covariance", "cross_covariance"])


@case("MultiAgentNetBase", "MultiAgentMLP", "MultiAgentConvNet", reads=("agents", "agents_pixels"))
def agents():
    """Return a policy of several agents, with weights of their own and with shared ones."""
    how = {"n_agents": AGENTS, "centralized": False}
    seeing = modules.MultiAgentConvNet(share_params=True, num_cells=[4], kernel_sizes=[4], strides=[4], **how)
    own = {"depth": 1, "num_cells": 8, "share_params": False}
    return TensorDictSequential(
        layer(nn.Sequential(seeing, nn.LazyLinear(8)), ["agents_pixels"], ["hidden"]),
        layer(modules.MultiAgentMLP(SIZE + 8, NUMBERS, **own, **how), ["agents", "hidden"]),
    )


@case("DreamerActor", reads=("state", "belief"))
def dreamer():
    network = modules.DreamerActor(NUMBERS, depth=1, num_cells=8)
    head = layer(network, ["state", "belief"], ["loc", "scale"])
    return modules.ProbabilisticActor(head, in_keys=["loc", "scale"], distribution_class=modules.TanhNormal)


@case("DreamerV3DiscreteActor", reads=("state", "belief"), one_hot=True)
def dreamer_v3():
    return modules.DreamerV3DiscreteActor(SIZE + 8, ACTIONS, depth=1, num_cells=8)


@case("ObsEncoder", "DreamerV3ImageEncoder", "DreamerV3MLP", reads=("large_pixels",))
def dreamer_encoders():
    return TensorDictSequential(
        layer(nn.Sequential(modules.ObsEncoder(channels=2), nn.LazyLinear(8)), ["large_pixels"], ["first"]),
        layer(nn.Sequential(modules.DreamerV3ImageEncoder(depth=2), nn.LazyLinear(8)), ["large_pixels"], ["second"]),
        layer(modules.DreamerV3MLP(16, NUMBERS, depth=1, num_cells=8), ["first", "second"]),
    )


@case("GRUCell", "LSTMCell", "DreamerV3BlockGRUCell", reads=("observation", "belief"))
def cells():
    return TensorDictSequential(
        layer(modules.DreamerV3BlockGRUCell(SIZE, 8, num_blocks=2), ["observation", "belief"], ["first"]),
        layer(modules.GRUCell(8, 8), ["first", "belief"], ["second"]),
        layer(LstmStep(8, 8), ["second", "belief"], ["third"]),
        layer(nn.Linear(8, NUMBERS), ["third"]),
    )


class LstmStep(nn.Module):
    def __init__(self, inputs, size):
        super().__init__()
        self.cell = modules.LSTMCell(inputs, size)

    def forward(self, value, state):
        return self.cell(value, (state, state))[0]


@case("GRU", "LSTM", "DreamerV3BlockGRU", reads=("window",))
def layers_over_a_window():
    first, second = modules.GRU(SIZE, 8, batch_first=True), modules.LSTM(8, 8, batch_first=True)
    third = modules.DreamerV3BlockGRU(8, 8, num_blocks=2)
    return layer(nn.Sequential(*map(Window, (first, second, third)), Last(), nn.Linear(8, NUMBERS)), ["window"])


class Window(nn.Module):
    """A recurrent layer's output for each of a window's observations."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, window):
        return self.rnn(window)[0]


class Last(nn.Module):
    def forward(self, window):
        return window[:, -1]


# TensorDict modules.


@case("EGreedyModule", how=TWIN)
def epsilon_greedy():
    explore = modules.EGreedyModule(CHOICE, eps_init=0.5, eps_end=0.5)
    return TensorDictSequential(modules.QValueActor(mlp(ACTIONS), in_keys=["observation"], spec=CHOICE), explore)


@case("QValueHook", one_hot=True)
def hook():
    network = nn.Sequential(mlp(ACTIONS))
    network.register_forward_hook(modules.QValueHook("one_hot"))
    return layer(network, writes=["action", "action_value", "chosen"])


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


@case("VmapModule", how=REFUSED, says="write the inner module for a batch", reads=("agents",))
def vmap():
    return modules.VmapModule(layer(mlp(NUMBERS), ["agents"]), 0)


@case(
    *("ActorValueOperator", "ValueOperator", "SafeModule", "SafeSequential"),
    *("ProbabilisticActor", "TanhNormal", "NormalParamExtractor"),
)
def actor_and_value():
    common = modules.SafeModule(mlp(8), in_keys=["observation"], out_keys=["hidden"])
    network = nn.Sequential(mlp(2 * NUMBERS, 8), modules.NormalParamExtractor())
    bounds = {"low": BOX.space.low, "high": BOX.space.high}
    policy = actor(modules.TanhNormal, ["loc", "scale"], network, "hidden", spec=BOX, distribution_kwargs=bounds)
    value = modules.ValueOperator(mlp(1, 8), in_keys=["hidden"])
    return modules.ActorValueOperator(common, policy, value)


@case("ActorCriticOperator")
def actor_and_critic():
    common = modules.SafeModule(mlp(8), in_keys=["observation"], out_keys=["hidden"])
    policy = modules.SafeModule(mlp(NUMBERS, 8), in_keys=["hidden"], out_keys=["action"])
    critic = modules.ValueOperator(mlp(1, 8 + NUMBERS), in_keys=["hidden", "action"])
    return modules.ActorCriticOperator(common, policy, critic)


@case("MLP", "Actor", "ActorCriticWrapper")
def actor_with_critic():
    policy = modules.Actor(mlp(NUMBERS), in_keys=["observation"], spec=BOX)
    return modules.ActorCriticWrapper(policy, modules.ValueOperator(mlp(1), in_keys=["observation"]))


@case("SafeProbabilisticModule", "SafeProbabilisticTensorDictSequential", "IndependentNormal")
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


@case("DreamerV3SeededPolicy", how=REFUSED, reads=("state", "belief"), says="write into themselves")
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


@case("RSSMPrior", "RSSMPosterior", how=REFUSED, says="draws random numbers", reads=("observation", "belief"))
def dreamer_state():
    sizes = {"hidden_dim": 8, "state_dim": 8, "rnn_hidden_dim": 8}
    posterior, prior = modules.RSSMPosterior(obs_embed_dim=SIZE, **sizes), modules.RSSMPrior(BOX, **sizes)
    return TensorDictSequential(
        layer(posterior, ["belief", "observation"], ["loc", "scale", "state"]),
        layer(mlp(NUMBERS, 8), ["state"]),
        layer(prior, ["state", "belief", "action"], ["loc", "scale", "next_state", "next_belief"]),
    )


# Distributions.


@case("TruncatedNormal", how=TWIN)
def truncated_normal():
    return actor(modules.TruncatedNormal, ["loc", "scale"], loc_and_scale(), spec=BOX)


@case("Delta")
def delta():
    return actor(modules.Delta, ["param"], mlp(NUMBERS))


@case("TanhDelta", how=TWIN)
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


@case("`safe=True` with a one-hot spec", how=REFUSED, says="the deterministic program draws random numbers")
def safe_one_hot():
    return modules.QValueActor(mlp(ACTIONS), in_keys=["observation"], spec=OneHot(ACTIONS), safe=True)


CRITIC = "a critic: it judges actions, and decides none"
WORLD = "a world model: it tells what follows an action"
TREE = "a score of a tree search"
PLANNER = "a planner: it searches for an action with a model of the environment"
TEXT = "it reads or writes text"
HISTORY = "it reads the returns to go, which no environment observes"
VALUES = "it scales what a loss learns"
FUNCTION = "a function or a constant"
WRAPPER = "deprecated: it only raises"
NO_PART = {
    "AdditiveGaussianWrapper": WRAPPER,
    "CEMPlanner": PLANNER,
    "ComposeValueTransform": VALUES,
    "CrossCriticGroupSpec": CRITIC,
    "CrossGroupCritic": CRITIC,
    "DTActor": HISTORY,
    "DdpgCnnQNet": CRITIC,
    "DdpgMlpQNet": CRITIC,
    "DecisionTransformer": HISTORY,
    "DecisionTransformerInferenceWrapper": HISTORY,
    "DreamerV3ImageDecoder": WORLD,
    "EGreedyWrapper": WRAPPER,
    "EXP3Score": TREE,
    "GPWorldModel": WORLD,
    "IdentityValueTransform": VALUES,
    "LLMMaskedCategorical": TEXT,
    "LMHeadActorValueOperator": TEXT,
    "LeRobotPolicyWrapper": TEXT,
    "MCTSScore": TREE,
    "MCTSScores": TREE,
    "MPCPlannerBase": PLANNER,
    "MPPIPlanner": PLANNER,
    "NormalParamWrapper": WRAPPER,
    "ObsDecoder": WORLD,
    "OnlineDTActor": HISTORY,
    "OrnsteinUhlenbeckProcessWrapper": WRAPPER,
    "PUCTScore": TREE,
    "PercentileValueNorm": VALUES,
    "PopArtValueNorm": VALUES,
    "QMixer": CRITIC,
    "RSSMRollout": WORLD,
    "RSSMRolloutV3": WORLD,
    "RandomPolicy": "no TensorDict module: it draws any action, whatever is observed",
    "RecurrentMatmulPrecision": FUNCTION,
    "RecurrentMatmulPrecisionUserMode": FUNCTION,
    "ReparamGradientStrategy": FUNCTION,
    "RunningValueNorm": VALUES,
    "SignedHyperbolicValueTransform": VALUES,
    "SymExpTwoHot": CRITIC,
    "SymLogValueTransform": VALUES,
    "TinyVLA": TEXT,
    "UCB1TunedScore": TREE,
    "UCBScore": TREE,
    "VDNMixer": CRITIC,
    "VLAWrapperBase": TEXT,
    "ValueNorm": VALUES,
    "ValueTransform": VALUES,
    "WorldModel": WORLD,
    "WorldModelWrapper": WORLD,
    "canonicalize_rnn_subset": FUNCTION,
    "distributions_maps": FUNCTION,
    "functional": FUNCTION,
    "get_env_transforms_from_module": FUNCTION,
    "get_primers_from_module": FUNCTION,
    "get_recurrent_matmul_precision": FUNCTION,
    "recurrent_mode": FUNCTION,
    "reset_noise": FUNCTION,
    "set_exploration_modules_spec_from_env": FUNCTION,
    "set_recurrent_matmul_precision": FUNCTION,
    "set_recurrent_mode": FUNCTION,
    "signed_hyperbolic": FUNCTION,
    "signed_parabolic": FUNCTION,
    "symexp": FUNCTION,
    "symlog": FUNCTION,
}
