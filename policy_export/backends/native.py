"""The native library: the program compiled into C, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.backends.base import Backend, Settings
from policy_export.device.arrays import Run
from policy_export.device.native_library import NATIVE, load_native

if TYPE_CHECKING:
    import torch

    from policy_export.localise.case import Case
    from policy_export.localise.compare import Location


def load(path: Path, _: Settings) -> Run:
    return load_native(path)


def inspect(case: Case, path: Path) -> Location:
    """Look at ``policy.pt2``, which may have the same fault; a native library's inside cannot be inspected."""
    from policy_export.localise.case import locate_in_origin, no_location

    outputs = load_native(path)(case.inputs)
    if not case.wrong(outputs):
        return no_location("nothing differs: every output agrees for these inputs")
    return locate_in_origin(case, outputs) or no_location(
        "policy.pt2 is right: the fault is in what compile_native makes of it"
    )


def refuse(program: torch.export.ExportedProgram, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Look for operators that only PyTorch's library computes.

    Raises:
        UserError: there are some.
    """
    from policy_export.lowering.native_operators import find_unsupported, needs_pytorch

    if unsupported := find_unsupported(program, inputs):
        raise needs_pytorch(unsupported)


BACKEND = Backend(
    name="native",
    file=NATIVE,
    content="native library, DETERMINISTIC, for the machine that compiled it or what its folder names",
    load=load,
    inspect=inspect,
    run_by=(),
    folder="native",
    other_files={
        "policy": "the same as a command",
        "policy.h": "the library's interface",
        "golden.bin": "golden decisions, for the library and the command",
    },
    refuse=refuse,
    on_device=True,
    told=lambda path: load_native(path).facts,
)
