"""AOTInductor packages: the program compiled for this machine's processor; run by PyTorch's library."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.backends.base import Backend, Settings
from policy_export.device.arrays import Run
from policy_export.device.errors import UserError, first_line
from policy_export.lowering import instructions
from policy_export.program.archive import unsafe_member

if TYPE_CHECKING:
    import torch

    from policy_export.localise.case import Case
    from policy_export.localise.compare import Location


def open_package(path: Path) -> Any:
    """Load an AOTInductor package, after checking that it can run on this processor.

    PyTorch would compile a program to find out what this processor is, and then only warn.

    Raises:
        UserError: the package was compiled for instructions that this processor lacks, or is not safe to read.
    """
    from policy_export.program.torch_private import load_package, package_metadata

    if reason := unsafe_member(path):
        raise UserError(f"{path}: damaged: {reason}")
    metadata = package_metadata(path)
    if reason := instructions.missing_instructions(metadata["AOTI_MACHINE"], metadata["AOTI_CPU_ISA"]):
        raise UserError(f"{path}: does not run on this machine: {reason}; compile it here: `dvc repro`")
    try:
        return load_package(path)
    except RuntimeError as error:
        if "to destination file" not in str(error):
            raise
        place = tempfile.gettempdir()
        raise UserError(f"{path}: damaged, or there is no room in {place}: {first_line(error)}") from None


def call_package(package: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """Return an AOTInductor package as a function of named tensors; what it returns has no gradients.

    PyTorch's own call of it parses the package's signature again every time.
    """
    from policy_export.program.torch_private import package_signature

    loader = package.loader
    arguments, results = package_signature(loader)

    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(results, loader.boxed_run([inputs[name] for name in arguments]), strict=True))

    return call


def load(path: Path, settings: Settings) -> Run:
    from policy_export.program.calls import on_arrays, opened

    def run() -> Run:
        return on_arrays(call_package(open_package(path)))

    return opened(path, settings.threads, run, lambda: read_told(path), explores=settings.explores)


def read_told(path: Path) -> dict[str, Any]:
    from policy_export.program.torch_private import package_metadata

    facts: dict[str, Any] = json.loads(package_metadata(path)["facts"])
    return facts


def inspect(case: Case, path: Path) -> Location:
    """Look at ``policy.pt2`` first, which may have the same fault, then at the package's own weights and code."""
    from policy_export.config import params
    from policy_export.localise.case import locate_in_origin, no_location
    from policy_export.localise.compare import largest_difference
    from policy_export.localise.package import locate_in_package

    outputs = load(path, Settings(1))(case.inputs)
    if not (wrong := case.wrong(outputs)):
        return no_location("nothing differs: every output agrees for these inputs")
    if location := locate_in_origin(case, outputs):
        return location
    location = locate_in_package(path, case.exported, case.reference, wrong[0], params.load().compile_aoti)
    if location.difference is None and location.tensor:  # of the code, which has no numbers: the outputs' differences
        largest = max(largest_difference(outputs[name], case.expected[name]) for name in outputs if name in wrong)
        note = f"{location.note} (difference of the outputs)"
        location = dataclasses.replace(location, difference=largest, note=note)
    return location


BACKEND = Backend(
    name="aoti",
    file="policy.aoti.pt2",
    random_file="policy_random.aoti.pt2",
    content="AOTInductor package, {exploration}, for the machine that compiled it",
    load=load,
    inspect=inspect,
    run_by=("torch",),
    batches=True,
    told=read_told,
)
