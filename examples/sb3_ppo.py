"""A policy of Stable-Baselines3's PPO that chooses among some actions."""

from stable_baselines3 import PPO
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor


def make_policy(observation_spec, action_spec, *, model: str):
    policy = PPO.load(model, device="cpu").policy
    network = nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net)
    choice = TensorDictModule(network, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(choice, in_keys=["logits"], distribution_class=Categorical)


def make_predict(model: str):
    trained = PPO.load(model, device="cpu")
    return lambda observation: trained.predict(observation, deterministic=True)[0]
