"""Instruction sets: what runs on which processor."""

from __future__ import annotations

import json
import platform
import zipfile

import pytest

from policy_export.backends import runtimes
from policy_export.device.errors import UserError
from policy_export.lowering import instructions
from policy_export.lowering.instructions import TARGETS, V3, V4, find_target, missing_instructions

HERE = platform.machine()


@pytest.mark.parametrize(
    ("names", "have", "reason"),
    [
        ("AVX2", V3, None),
        ("AVX512", V4 | {"sse2"}, None),
        ("INVALID_VEC_ISA", frozenset[str](), None),
        ("AVX2", V3 - {"fma"}, "it was compiled for AVX2, and the processor lacks fma"),
        ("AVX512 AVX512_VNNI", V4, "it was compiled for AVX512 AVX512_VNNI, and the processor lacks avx512_vnni"),
        ("AVX512", V3, "lacks avx512bw, avx512cd, avx512dq, avx512f, avx512vl"),
        ("AVX9000", V4, "it needs the instruction set AVX9000, which is not known here"),
    ],
)
def test_what_a_processor_lacks_is_told(names, have, reason):
    found = missing_instructions(HERE, names, have)
    assert found == reason if reason is None else reason in str(found)


def test_another_architecture_is_told():
    assert missing_instructions("riscv64", "") == f"it was compiled for riscv64, this machine is {HERE}"


def test_native_is_what_this_machine_runs():
    target = find_target("native")
    assert target is TARGETS[target.name]
    assert not target.foreign
    assert (
        missing_instructions(HERE, {"VecAVX512": "AVX512", "VecAVX2": "AVX2", "VecNEON": "ASIMD"}[target.vectors])
        is None
    )


def test_target_that_cannot_be_built_is_told(monkeypatch, tmp_path):
    assert TARGETS["x86-64-v3"].obstacle("aarch64") == "x86-64-v3 cannot be built on aarch64; remove it"
    assert TARGETS["x86-64-v3"].obstacle("x86_64") is None
    assert TARGETS["aarch64"].obstacle("aarch64") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert TARGETS["aarch64"].obstacle("x86_64") == (
        "aarch64 needs aarch64-linux-gnu-g++: install it (Debian: apt install g++-aarch64-linux-gnu)"
    )


def test_flags_are_the_kernel_s():
    assert instructions.flags() & {"fpu", "asimd"}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"AOTI_MACHINE": "riscv64", "AOTI_CPU_ISA": ""}, "it was compiled for riscv64, this machine is"),
        ({"AOTI_MACHINE": HERE, "AOTI_CPU_ISA": "AVX9000"}, "it needs the instruction set AVX9000"),
    ],
)
def test_package_for_another_processor_is_refused(tmp_path, facts, message):
    """Check that it is refused before any of its code is loaded: this package has no code."""
    path = tmp_path / "policy.aoti.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy/data/aotinductor/model/code.wrapper_metadata.json", json.dumps(facts))
    with pytest.raises(UserError, match=rf"^{path}: does not run on this machine: {message}"):
        runtimes.load(path, 1)
