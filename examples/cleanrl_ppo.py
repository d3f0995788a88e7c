"""An agent in one file, as CleanRL's scripts have it: actor, critic and deviation in one state_dict."""

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor


class Actor(nn.Module):
    def __init__(self, observations, actions, units=64):
        super().__init__()
        layers = [nn.Linear(observations, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh()]
        self.mean = nn.Sequential(*layers, nn.Linear(units, actions))
        self.log_std = nn.Parameter(torch.zeros(1, actions))

    def forward(self, observation):
        mean = self.mean(observation)
        return mean, self.log_std.exp().expand_as(mean)


def make_policy(observation_spec, action_spec):
    actor = Actor(observation_spec["observation"].shape[-1], action_spec.shape[-1])
    moves = TensorDictModule(actor, in_keys=["observation"], out_keys=["loc", "scale"])
    return ProbabilisticActor(moves, in_keys=["loc", "scale"], distribution_class=IndependentNormal)
