"""Every program behind one call: arrays by input name to arrays by output name.

PyTorch is imported only for the programs that need it, so that a process that measures ONNX Runtime holds nothing else.
"""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.device.arrays import Arrays, Run
from policy_export.device.checked import CheckedProgram
from policy_export.device.errors import UserError, first_line
from policy_export.device.manifest import check_file, read_manifest
from policy_export.device.native_library import NATIVE, load_native
from policy_export.device.onnx_session import load_onnx
from policy_export.lowering import instructions
from policy_export.program.archive import read_facts
from policy_export.program.calls import on_arrays, wrap

if TYPE_CHECKING:
    import torch

# The deterministic programs, by name; all of them must decide alike.
PROGRAMS = {"pt2": "policy.pt2", "aoti": "policy.aoti.pt2", "onnx": "policy.onnx", "native": NATIVE}
# Those that explore; each draws random numbers of its own.
RANDOM_PROGRAMS = {
    f"{name}_random": file.replace("policy", "policy_random") for name, file in PROGRAMS.items() if file != NATIVE
}


def read_bundle(policy: str) -> tuple[dict[str, Any], dict[str, Path]]:
    """The manifest of a policy's folder, and the paths of its programs, all of them the files it was written for.

    Raises:
        UserError: a file is missing, damaged, or not of this policy.
    """
    folder = Path("models", policy)
    try:
        manifest = read_manifest(folder)
        paths = {name: check_file(folder, file, manifest) for name, file in (PROGRAMS | RANDOM_PROGRAMS).items()}
        check_file(folder, "policy.safetensors", manifest)
    except UserError as error:
        raise UserError(str(error)) from None
    if manifest["policy"] != policy:
        raise UserError(f"{folder / 'manifest.json'}: is of the policy {manifest['policy']!r}, expected {policy!r}")
    return manifest, paths


def call_package(package: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """An AOTInductor package as a function of named tensors; what it returns has no gradients.

    PyTorch's own call of it parses the package's signature again every time.
    """
    from torch.utils import _pytree as pytree

    takes, gives = (pytree.treespec_loads(spec) for spec in package.loader.get_call_spec())
    arguments, results = takes.child(1).context, gives.context

    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(results, package.loader.boxed_run([inputs[name] for name in arguments]), strict=True))

    return call


def session_settings(policy: str) -> dict[str, Any]:
    """What the policy's manifest says about how ONNX Runtime is to run it.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    try:
        return read_manifest(Path("models", policy)).get("onnx_session", {})
    except UserError as error:
        raise UserError(str(error)) from None


def open_package(path: Path) -> Any:
    """Load an AOTInductor package, once it is known to run on this processor.

    PyTorch would only warn, after it has compiled a program to find out what this processor is.

    Raises:
        UserError: the package was compiled for instructions that this processor lacks.
    """
    import torch
    from torch.export.pt2_archive._package import AOTICompiledModel

    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".wrapper_metadata.json"))
        metadata = json.loads(archive.read(name))
    if complaint := instructions.complain(metadata["AOTI_MACHINE"], metadata["AOTI_CPU_ISA"]):
        raise UserError(f"{path}: does not run on this machine: {complaint}; compile it here: `dvc repro`")
    return AOTICompiledModel(torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1))  # noqa: FBT003


def refusing(program: Run) -> Run:
    """A program whose refusals are the stages' own kind of error."""

    def run(inputs: Arrays) -> Arrays:
        try:
            return program(inputs)
        except UserError as error:
            raise UserError(str(error)) from error

    return run


def load(path: Path, threads: int, onnx_session: dict[str, Any] | None = None) -> Run:
    """Load a program of any kind, told by its file's name, to run on ``threads`` cores.

    One in ONNX runs with the other settings that a manifest has as ``onnx_session``, or with the player's own.

    With a program that explores, PyTorch's random numbers get a new seed: every process starts with the same one, and
    such a program must not do the same after every start.

    Raises:
        UserError: the file is missing or damaged.
    """
    if path.suffix in (".onnx", ".so"):
        try:
            if path.suffix == ".so":
                return refusing(load_native(path))
            return refusing(load_onnx(path, (onnx_session or {}) | {"threads": threads}))
        except UserError as error:
            raise UserError(str(error)) from None

    import torch

    torch.set_num_threads(threads)
    if path.name in RANDOM_PROGRAMS.values():
        torch.seed()
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro`")
    try:
        if path.name.endswith(".aoti.pt2"):
            package = open_package(path)
            run, facts = on_arrays(call_package(package)), json.loads(package.get_metadata()["facts"])
        else:
            run, facts = wrap(torch.export.load(path).module()), read_facts(path)
        return refusing(CheckedProgram(str(path), run, facts["inputs"]))
    except UserError:
        raise
    except Exception as error:  # both loaders raise whatever the archive's reader does
        raise UserError(f"{path}: damaged: {first_line(error)}") from None


@functools.cache
def load_by_name(policy: str, name: str, threads: int) -> Run:
    """A policy's program, or the trained policy itself: ``eager``, and ``eager_random``, which explores.

    It is loaded once a process; meant for processes that only serve one stage, while which no file changes.

    Raises:
        UserError: a file is missing or damaged.
    """
    if name not in ("eager", "eager_random"):
        path = Path("models", policy, (PROGRAMS | RANDOM_PROGRAMS)[name])
        return load(path, threads, session_settings(policy) if path.suffix == ".onnx" else None)
    import torch
    from torchrl.envs.utils import ExplorationType

    from policy_export.config.profile import load_profile
    from policy_export.program.step import load_step

    torch.set_num_threads(threads)
    exploration = ExplorationType.DETERMINISTIC
    if name == "eager_random":
        torch.seed()
        exploration = ExplorationType.RANDOM
    step = load_step(policy, load_profile(policy), exploration)
    return refusing(CheckedProgram(name, wrap(step), step.signature.as_dict()["inputs"]))
