"""An actor of Stable-Baselines3's SAC, with the statistics of VecNormalize and the scale of the action."""

import pickle
from pathlib import Path

import torch
from stable_baselines3 import SAC
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal


class Actor(nn.Module):
    def __init__(self, actor, normalize):
        super().__init__()
        self.latent, self.mean, self.log_std = actor.latent_pi, actor.mu, actor.log_std
        self.clip, scale = normalize.clip_obs, (normalize.obs_rms.var + normalize.epsilon) ** 0.5
        self.register_buffer("loc", torch.as_tensor(normalize.obs_rms.mean).float())
        self.register_buffer("scale", torch.as_tensor(scale).float())

    def forward(self, observation):
        latent = self.latent(((observation - self.loc) / self.scale).clamp(-self.clip, self.clip))
        return self.mean(latent), self.log_std(latent).clamp(-20, 2).exp()


def load(model, statistics):
    # A pickle, as VecNormalize.save writes it, runs what is in it: only one's own.
    return SAC.load(model, device="cpu"), pickle.loads(Path(statistics).read_bytes())


def make_policy(observation_spec, action_spec, *, model: str, statistics: str):
    trained, normalize = load(model, statistics)
    moves = TensorDictModule(Actor(trained.policy.actor, normalize), ["observation"], ["loc", "scale"])
    bounds = {"low": action_spec.space.low, "high": action_spec.space.high}
    return ProbabilisticActor(moves, ["loc", "scale"], distribution_class=TanhNormal, distribution_kwargs=bounds)


def make_predict(model: str, statistics: str):
    trained, normalize = load(model, statistics)
    return lambda observation: trained.predict(normalize.normalize_obs(observation), deterministic=True)[0]
