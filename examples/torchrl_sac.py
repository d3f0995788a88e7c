"""TorchRL's own SAC: an actor with its deviation, in an environment with VecNorm and the scale of the action."""

from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs import ActionScaling, Compose, GymEnv, RewardSum, TransformedEnv, VecNormV2
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal


def make_env(steps: int):
    env = TransformedEnv(
        GymEnv("Pendulum-v1"), Compose(VecNormV2(in_keys=["observation"]), ActionScaling(), RewardSum())
    )
    env.rollout(steps)  # or load the statistics of your training
    return env


def make_policy(observation_spec, action_spec):
    network = MLP(in_features=3, out_features=2, num_cells=[32, 32], activation_class=nn.ReLU)
    extractor = NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=1e-4)
    return ProbabilisticActor(
        TensorDictModule(nn.Sequential(network, extractor), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": action_spec.space.low, "high": action_spec.space.high},
        default_interaction_type=InteractionType.RANDOM,
    )
