"""Weights that another program has trained: named in the profile, loaded into what the factory makes."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import save_file
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite
from torchrl.modules import QValueModule

from policy_export.config.profile import Profile, check, named_files
from policy_export.device.errors import UserError
from policy_export.program.policy import make_agent
from policy_export.program.weights import read_weights, save_weights


def values(_observations, actions):
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    chosen_by = TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"])
    return TensorDictSequential(chosen_by, QValueModule(spec=Composite(action=actions)))


def twins(observations, actions):
    policy = values(observations, actions)
    other = TensorDictModule(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), ["observation"], ["other"])
    return TensorDictSequential(other, policy)


def own(observations, actions, *, checkpoint: str):
    policy = values(observations, actions)
    policy[0].module.load_state_dict(torch.load(checkpoint, weights_only=True))
    return policy


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Give the weights of another program, in whose folder the test runs."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).state_dict()


def profile_of(checkpoint, factory="values"):
    return check(
        Profile,
        {
            "env": {"id": "CartPole-v1", "max_episode_steps": 30},
            "preprocess": None,
            "policy": {"factory": f"test_checkpoints:{factory}", "checkpoint": checkpoint},
            "train": {"algorithm": "none", "device": "cpu", "seed": 0, "eval_episodes": 2},
        },
    )


def weights_of(checkpoint, factory="values"):
    return (
        make_agent("mine", profile_of(checkpoint, factory)).actor[-2 if factory == "values" else 0].module.state_dict()
    )


def renamed(tensors, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("saved", "checkpoint"),
    [
        (lambda weights: weights, "theirs.pt"),
        (lambda weights: renamed(weights, "module.0.module."), "theirs.pt"),
        (lambda weights: {"model": weights, "step": 3}, {"file": "theirs.pt", "entry": "model"}),
        (lambda weights: {"a": {"b": weights}}, {"file": "theirs.pt", "entry": "a.b"}),
        (
            lambda weights: renamed(weights, "actor.") | {"critic.weight": torch.zeros(3)},
            {"file": "theirs.pt", "prefix": "actor."},
        ),
        (
            lambda weights: (
                {"l1.weight": weights["0.weight"], "l1.bias": weights["0.bias"], "log_std": torch.zeros(2)}
                | {"out.weight": weights["2.weight"], "out.bias": weights["2.bias"]}
            ),
            {"file": "theirs.pt", "keys": {"l1.": "0.", "out.": "2.", "log_std": None}},
        ),
    ],
    ids=["names of a module", "names of all", "entry", "entry of an entry", "prefix", "keys"],
)
def test_weights_are_those_of_the_file(trained, saved, checkpoint):
    torch.save(saved(trained), "theirs.pt")
    found = weights_of(checkpoint)
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())


def test_safetensors_are_read(trained):
    save_file(trained, "theirs.safetensors")
    found = weights_of("theirs.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())


def test_factory_that_takes_a_checkpoint_loads_it(trained):
    torch.save(trained, "theirs.pt")
    found = weights_of("theirs.pt", "own")
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())


def test_file_is_a_dependency(trained):
    torch.save(trained, "theirs.pt")
    for checkpoint in ("theirs.pt", {"file": "theirs.pt", "prefix": "actor."}):
        assert [str(path) for path in named_files(profile_of(checkpoint))] == ["theirs.pt"]


def test_what_was_trained_here_takes_its_place(trained, tmp_path):
    """Check that the file is not read again once there are weights, which a training may have changed."""
    torch.save(trained, "theirs.pt")
    agent = make_agent("mine", profile_of("theirs.pt"))
    save_weights(tmp_path / "policy.safetensors", "mine", agent.actor, agent.statistics)
    (tmp_path / "theirs.pt").unlink()
    _, statistics = read_weights(tmp_path / "policy.safetensors", "mine")
    assert make_agent("mine", profile_of("theirs.pt"), statistics)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_dtype_are_saved(dtype, tmp_path):
    network = nn.Linear(3, 2, dtype=dtype)
    network.register_buffer("scale", torch.tensor(2.0, dtype=dtype))
    save_weights(tmp_path / "policy.safetensors", "mine", network)
    found, _ = read_weights(tmp_path / "policy.safetensors", "mine")
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


PLACE = "params.yaml: policies.mine: policy.checkpoint"


@pytest.mark.parametrize(
    ("saved", "checkpoint", "lines"),
    [
        (lambda _: None, "nosuch.pt", [f"{PLACE}: 'nosuch.pt': no such file"]),
        (
            lambda weights: weights,
            {"file": "theirs.pt", "prefx": "a"},
            [f"{PLACE}.prefx: 'a': unknown key; known here: "],
        ),
        (
            lambda _: {"step": 3},
            "theirs.pt",
            [f"{PLACE}: 'theirs.pt': holds no tensors by name, but 'step'; entry says"],
        ),
        (
            lambda _: argparse.Namespace(),
            "theirs.pt",
            [f"{PLACE}: 'theirs.pt': holds Python objects, which are not safe to load: save module.state_dict()"],
        ),
        (
            lambda weights: {"model": weights},
            {"file": "theirs.pt", "entry": "policy"},
            [f"{PLACE}: 'theirs.pt': has no entry 'policy', only 'model'"],
        ),
        (
            lambda weights: weights,
            {"file": "theirs.pt", "prefix": "actor."},
            [f"{PLACE}: 'theirs.pt': no name begins with prefix 'actor.'; it has 0.weight, 0.bias, 2.weight, 2.bias"],
        ),
        (
            lambda weights: weights,
            {"file": "theirs.pt", "keys": {"l1.": "0."}},
            [f"{PLACE}: 'theirs.pt': no name begins with 'l1.', which keys has; it has 0.weight, 0.bias, "],
        ),
        (
            lambda weights: weights,
            {"file": "theirs.pt", "keys": {"0.": "2."}},
            [f"{PLACE}: 'theirs.pt': keys gives two weights the name '2.weight'"],
        ),
        (
            lambda weights: {"0.weight": weights["0.weight"][:, :3], "1.bias": weights["0.bias"]},
            "theirs.pt",
            [
                f"{PLACE}: 'theirs.pt': does not fit the policy that the factory makes",
                f"{PLACE}: 'theirs.pt': module.0.module.0.weight: missing, expected float32[8, 4]",
                f"{PLACE}: 'theirs.pt': module.0.module.0.bias: missing, expected float32[8]",
                f"{PLACE}: 'theirs.pt': module.0.module.2.weight: missing, expected float32[2, 8]",
                f"{PLACE}: 'theirs.pt': module.0.module.2.bias: missing, expected float32[2]",
                f"{PLACE}: 'theirs.pt': 0.weight: superfluous, found float32[8, 3]",
                f"{PLACE}: 'theirs.pt': 1.bias: superfluous, found float32[8]",
            ],
        ),
        (
            lambda weights: weights | {"0.weight": weights["0.weight"][:, :3].clone()},
            "theirs.pt",
            [
                f"{PLACE}: 'theirs.pt': does not fit the policy that the factory makes",
                f"{PLACE}: 'theirs.pt': 0.weight: found float32[8, 3], expected float32[8, 4]",
            ],
        ),
    ],
)
def test_what_does_not_fit_is_told(trained, saved, checkpoint, lines):
    torch.save(saved(trained), "theirs.pt")
    with pytest.raises(UserError) as caught:
        make_agent("mine", profile_of(checkpoint))
    found = str(caught.value).splitlines()
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_two_modules_that_fit_alike(trained):
    torch.save(trained, "theirs.pt")
    with pytest.raises(UserError, match=r"fits module.0.module and module.1.module.0.module alike: give keys"):
        make_agent("mine", profile_of("theirs.pt", "twins"))
