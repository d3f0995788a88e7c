from __future__ import annotations

import pytest
import torch
from torch import nn

from policy_export.device.errors import UserError
from policy_export.program.archive import load_program, save_program

FACTS = {"policy": "dqn", "environment": {"id": "ALE/Pong-v5"}, "gamma": 0.99}


class Double(nn.Module):
    def forward(self, x):
        return {"y": x * 2}


@pytest.fixture(scope="module")
def program():
    return torch.export.export(Double(), (), {"x": torch.ones(2)})


@pytest.fixture
def path(tmp_path, program):
    path = tmp_path / "policy.pt2"
    save_program(path, program, FACTS)
    return path


def refuse(path, policy="dqn"):
    with pytest.raises(UserError) as caught:
        load_program(path, policy)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    return line


def test_round_trip(path):
    program, facts = load_program(path, "dqn")
    assert facts == FACTS
    assert torch.equal(program.module()(x=torch.arange(2.0))["y"], torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.99])
def test_truncated(path, kept):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert "damaged" in refuse(path)


def test_not_an_archive(path):
    path.write_text("policy")
    assert "damaged" in refuse(path)


def test_facts_without_policy(path, program):
    save_program(path, program, {})
    refuse(path)


def test_without_facts(path, program):
    torch.export.save(program, path)
    assert "damaged" in refuse(path)


def test_other_policy(path):
    assert "'dqn', expected 'pong'" in refuse(path, "pong")


def test_missing(path):
    path.unlink()
    assert "no such file" in refuse(path)
