"""A recurrent actor of rsl_rl, with its empirical normaliser, and a state of (layers, units) for each robot."""

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer


class Actor(nn.Module):
    def __init__(self, observations, actions, units, layers, hidden):
        super().__init__()
        self.obs_normalizer, self.rnn = nn.Module(), nn.Module()
        for name in ("_mean", "_var", "_std"):
            self.obs_normalizer.register_buffer(name, torch.zeros(1, observations))
        self.rnn.rnn = nn.LSTM(observations, units, layers)
        sizes = [units, *hidden]
        inner = [part for pair in zip(sizes, hidden, strict=False) for part in (nn.Linear(*pair), nn.ELU())]
        self.mlp = nn.Sequential(*inner, nn.Linear(sizes[-1], actions))

    def forward(self, policy, hidden, cell):
        seen = (policy - self.obs_normalizer._mean) / (self.obs_normalizer._std + 0.01)
        state = hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous()  # rows last, as PyTorch has it
        latent, (hidden, cell) = self.rnn.rnn(seen[None], state)
        return self.mlp(latent[0]), hidden.transpose(0, 1), cell.transpose(0, 1)


class Recurrent(TensorDictModule):
    def make_tensordict_primer(self):
        rnn = self.module.rnn.rnn
        shape = (rnn.num_layers, rnn.hidden_size)
        return TensorDictPrimer(hidden=Unbounded(shape), cell=Unbounded(shape))


def make_policy(observation_spec, action_spec, *, units: int, layers: int, hidden: list[int]):
    actor = Actor(observation_spec["policy"].shape[-1], action_spec.shape[-1], units, layers, hidden)
    keys = ["hidden", "cell"]
    return Recurrent(actor, ["policy", *keys], ["action", *(("next", key) for key in keys)])
