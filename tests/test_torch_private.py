"""Private parts of PyTorch: once one moves, an error says so, and nothing continues with something else."""

from __future__ import annotations

import json
import re
import subprocess
import types
import zipfile
from pathlib import Path

import pytest
import torch
from pipeline_helpers import ROOT
from torch._inductor import cpu_vec_isa
from torch._inductor.graph import GraphLowering

from policy_export.device.errors import UserError
from policy_export.program import torch_private
from policy_export.program.torch_private import MovedError

MESSAGE = (
    rf"^PyTorch {re.escape(torch.__version__)}: {{}} is not what this project relies on: .*; see docs/upgrading\.md$"
)


def moved(what: str):
    return pytest.raises(MovedError, match=MESSAGE.format(what))


def write_package(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"data/aotinductor/model/{name}", content)
    return path


def test_error_is_a_users_error_and_its_page_is_there():
    assert issubclass(MovedError, UserError)
    assert (ROOT / "docs/upgrading.md").is_file()


def test_part_that_is_gone():
    with moved("owner.name"):
        torch_private.part(types.SimpleNamespace(__name__="owner"), "name")
    assert torch_private.part(types.SimpleNamespace(name=None), "name") is None


def test_operator_that_is_gone():
    with moved("torch.ops.aten._no_such_operator"):
        torch_private.operator("_no_such_operator")


def test_loader_that_is_gone(monkeypatch, tmp_path):
    monkeypatch.delattr(torch._C._aoti, "AOTIModelPackageLoader")  # noqa: SLF001
    with moved("torch._C._aoti.AOTIModelPackageLoader"):
        torch_private.load_package(tmp_path / "policy.aoti.pt2")


def test_instruction_sets_that_are_chosen_elsewhere(monkeypatch):
    with moved("torch._inductor.cpu_vec_isa.VecNothing"), torch_private.compiling_for("VecNothing"):
        pass
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", cpu_vec_isa.VecAVX512)
    with moved("cpu_vec_isa.valid_vec_isa_list"), torch_private.compiling_for("VecAVX2"):
        pass


def test_compiler_that_takes_other_steps(monkeypatch):
    monkeypatch.setattr(GraphLowering, "codegen_with_cpp_wrapper", lambda _: None)
    with moved("GraphLowering.codegen_with_cpp_wrapper"), torch_private.stopped_before_code(lambda *_: None):
        pass


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, r"\*.wrapper_metadata.json in an AOTInductor package"),
        ({"a.wrapper_metadata.json": "{}", "b.wrapper_metadata.json": "{}"}, r"\*.wrapper_metadata.json in an .*"),
        ({"a.wrapper_metadata.json": '{"AOTI_MACHINE": "x86_64"}'}, ".wrapper_metadata.json in an AOTInductor package"),
    ],
)
def test_package_without_what_it_was_compiled_for(tmp_path, files, what):
    with moved(what):
        torch_private.package_metadata(write_package(tmp_path / "policy.pt2", files))


def test_code_whose_interface_has_changed(tmp_path):
    """Check that this is an error: otherwise the replacement would do nothing, and nobody would notice."""
    interface = (Path(torch.__file__).with_name("_inductor") / torch_private.INTERFACE).read_text()
    path = write_package(tmp_path / "same.pt2", {"a.wrapper.cpp": f"{interface}int kernel;\n"})
    with zipfile.ZipFile(path) as archive:
        assert torch_private.generated_code(archive) == f"{torch_private.MODEL_HEADER}int kernel;\n"
    path = write_package(tmp_path / "other.pt2", {"a.wrapper.cpp": interface.replace("return", "return ", 1)})
    with zipfile.ZipFile(path) as archive, moved("torch/_inductor/codegen/aoti_runtime/interface.cpp"):
        torch_private.generated_code(archive)


def test_operators_that_code_calls_by_name(tmp_path):
    nodes = {"nodes": [{"node": {"target": "torch.ops.aten.sort.stable"}}]}
    path = write_package(tmp_path / "policy.pt2", {"a.wrapper.json": json.dumps(nodes)})
    with zipfile.ZipFile(path) as archive:
        assert torch_private.called_by_name(archive) == ["torch.ops.aten.sort.stable"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("", ""), None),
        (("dtype_bool = 11", "dtype_bool = 12"), "PyTorch has renumbered its scalar types: docs/upgrading.md"),
        (("cuda = 1", "cuda = 2"), "PyTorch has renumbered its devices: docs/upgrading.md"),
        (("strided = 0", "strided = 1"), "PyTorch has renumbered its layouts: docs/upgrading.md"),
    ],
)
def test_native_runtime_is_not_compiled_with_other_numbers(tmp_path, change, message):
    header = (ROOT / "native/src/torch_private.h").read_text()
    assert change[0] in header
    (tmp_path / "torch_private.h").write_text(header.replace(*change))
    (tmp_path / "a.cpp").write_text('#include "torch_private.h"\n')
    include = Path(torch.__file__).parent / "include"
    command = ["g++", "-std=c++20", "-fsyntax-only", f"-I{include}", "a.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode != 0, message is None or message in done.stderr) == (message is not None, True)
