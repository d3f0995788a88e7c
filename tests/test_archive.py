from __future__ import annotations

import struct
import zipfile

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


def rewritten(path, size=0, name="archive/extra/more", **options):
    """Write the archive again, with one more member of this many zeros."""
    content = {}
    with zipfile.ZipFile(path) as archive:
        content = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
        archive.writestr(name, bytes(size), **options)


def test_compression_bomb_is_not_read(path):
    rewritten(path, 1 << 30, compress_type=zipfile.ZIP_DEFLATED)
    assert "'archive/extra/more' is compressed, as PyTorch writes nothing" in refuse(path)


@pytest.mark.parametrize("name", ["archive/../../escaped", "/escaped"])
def test_name_that_leads_out_of_the_archive(path, name):
    rewritten(path, name=name)
    assert f"{name!r} leads out of the archive" in refuse(path)
    assert not (path.parent.parent / "escaped").exists()


def test_members_that_share_their_bytes(path):
    """Check an archive whose directory lists one member many times."""
    rewritten(path, 1 << 20)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    entry = content[content.rindex(b"PK\1\2", 0, end) : end]
    entries, size, start = struct.unpack("<H2L", content[end + 10 : end + 20])
    copies = 3
    ending = struct.pack("<2H2L", *[entries + copies] * 2, size + copies * len(entry), start)
    path.write_bytes(content[:end] + copies * entry + content[end : end + 8] + ending + content[end + 20 :])
    assert "it says that it holds" in refuse(path)
