from __future__ import annotations

import contextlib

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policy_export.device.errors import UserError
from policy_export.policies.networks import make_network
from policy_export.program.policy import make_agent
from policy_export.program.weights import load_weights, save_weights


def make_small(outputs=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, outputs))


@pytest.fixture
def network():
    return make_small()


@pytest.fixture
def path(tmp_path, network):
    path = tmp_path / "policy.safetensors"
    save_weights(path, "dqn", network)
    return path


def refuse(path, policy="dqn", network=None):
    """Return the error's lines; the network that should have been loaded into is as it was."""
    network = network or make_small(seed=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(path, policy, network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return "\n".join(line.removeprefix(f"{path}: ") for line in lines)


def test_weights_come_back(path, network):
    other = make_small(seed=1)
    load_weights(path, "dqn", other)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_same_weights_make_the_same_file(path, network):
    """Check that saving again gives the same bytes; otherwise every stage after the training would run again."""
    first = path.read_bytes()
    for _ in range(10):
        save_weights(path, "dqn", network)
        assert path.read_bytes() == first, "the header's order is not fixed"


def test_missing(path):
    path.unlink()
    assert "no such file" in refuse(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged" in refuse(path)


@pytest.mark.parametrize("position", [-1, -100, -200])
def test_one_flipped_bit_in_the_weights(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert "damaged" in refuse(path)


def test_any_damage_to_the_header(path, network):
    """Check that a flipped byte is refused, or changes nothing."""
    content = path.read_bytes()
    expected = network.state_dict()
    for position in range(8 + int.from_bytes(content[:8], "little")):
        damaged = bytearray(content)
        damaged[position] ^= 0x0F  # which makes I32 of F32
        path.write_bytes(damaged)
        other = make_small(seed=1)
        with contextlib.suppress(UserError):
            load_weights(path, "dqn", other)
            found = other.state_dict()
            assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), position


def test_other_policy(path):
    assert "'dqn', expected 'pong'" in refuse(path, policy="pong")


def test_file_without_our_header(path, network):
    from safetensors.torch import save_file

    save_file(network.state_dict(), path)
    refuse(path)


def test_other_shapes_are_told_and_nothing_else(path):
    assert refuse(path, network=make_small(outputs=6)).splitlines() == [
        "does not fit the network of params.yaml; train it again",
        "2.weight: found float32[3, 5], expected float32[6, 5]",
        "2.bias: found float32[3], expected float32[6]",
    ]


def test_weights_of_other_layers_are_told(path):
    network = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Identity(), nn.Linear(5, 3, dtype=torch.float64))
    assert refuse(path, network=network).splitlines()[1:] == [
        "3.weight: missing, expected float64[3, 5]",
        "3.bias: missing, expected float64[3]",
        "2.bias: superfluous, found float32[3]",
        "2.weight: superfluous, found float32[3, 5]",
    ]


def test_weights_of_another_dtype_are_told(path):
    assert "0.bias: found float32[5], expected float64[5]" in refuse(path, network=make_small().double())


@pytest.mark.parametrize(
    ("preprocess", "policy"),
    [
        ({}, {}),
        ({"frames": 4, "resize": "area", "size": [40, 160]}, {"conv": [[8, 5, 3]], "hidden": [16, 8]}),
        ({"resize": "area", "size": [20, 20]}, {"conv": []}),
        ({}, {"hidden": []}),
    ],
)
def test_network_of_any_layers(variant, preprocess, policy):
    profile = variant(preprocess=preprocess, policy=policy)
    size = [profile.preprocess.frames, *profile.preprocess.size]
    arguments = profile.policy.arguments
    network, _ = make_network(Unbounded(size), arguments["conv"], arguments["hidden"], num_outputs=6)
    assert network(torch.zeros(3, *size)).shape == (3, 6)
    sequences = torch.randn(2, 5, *size)
    torch.testing.assert_close(network(sequences), torch.stack([network(part) for part in sequences]))


def test_agent_is_greedy_and_its_policy_explores(variant):
    profile = variant(policy={"epsilon": 0.25})
    agent = make_agent("dqn", profile)
    frames = (profile.preprocess.frames, *profile.preprocess.size)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        decided = agent.actor(TensorDict(pixels=torch.randn(50, *frames), batch_size=[50]))
    assert torch.equal(decided["action"], decided["action_value"].argmax(-1))
    assert float(agent.actor[-1].eps) == pytest.approx(0.25)


def test_weights_that_share_memory_come_back(tmp_path):
    """Check this for tied layers; TorchRL's distributional actor also has a support that two modules share."""
    network = make_small(seed=0)
    network.add_module("again", next(network.children()))
    save_weights(tmp_path / "weights.safetensors", "dqn", network)
    other = make_small(seed=1)
    other.add_module("again", next(other.children()))
    load_weights(tmp_path / "weights.safetensors", "dqn", other)
    found = other.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in network.state_dict().items())
