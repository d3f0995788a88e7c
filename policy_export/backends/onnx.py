"""ONNX programs, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.backends.base import Backend, Settings
from policy_export.device.arrays import Run
from policy_export.device.errors import UserError
from policy_export.device.onnx_session import load_onnx

if TYPE_CHECKING:
    import torch

    from policy_export.localise.case import Case
    from policy_export.localise.compare import Location


def load(path: Path, settings: Settings) -> Run:
    return load_onnx(path, {**settings.onnx_session, "threads": settings.threads})


def inspect(case: Case, path: Path) -> Location:
    """Compare with a fresh translation of the policy, whose tensors have the values that PyTorch gives them."""
    import onnx

    from policy_export.localise.case import no_location
    from policy_export.localise.trace_onnx import trace_onnx, translate_again

    reference, weights = translate_again(case)
    found = trace_onnx(onnx.load(path), case.inputs, weights)
    if location := case.compare(found, reference):
        return location
    if case.wrong({name: found.output(name) for name in found.outputs}):
        return no_location("the model is what PyTorch makes of the policy for ONNX: the fault is in its decompositions")
    if not case.wrong(load(path, Settings(1))(case.inputs)):
        return no_location("nothing differs: every output agrees for these inputs")
    return no_location(
        "every intermediate tensor agrees when the graph is run unoptimised: the fault is in ONNX Runtime's "
        f"optimisation, from the level {_first_wrong_level(path, case)!r} on"
    )


def refuse(program: torch.export.ExportedProgram, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Look for names that are an input's and an output's, for which ONNX has one place only.

    Raises:
        UserError: there is one.
    """
    outputs = program.call_spec.out_spec.context if program.call_spec.out_spec is not None else ()
    if both := [spec["name"] for spec in inputs if spec["name"] in outputs]:
        raise UserError(
            f"export_onnx: the policy reads {both[0]!r} and writes a value of that name, and ONNX has one place for a "
            "name: let it write another key, or rename what the environment shows by a transform"
        )


def _first_wrong_level(path: Path, case: Case) -> str:
    """Return the lowest of ONNX Runtime's optimisation levels that makes an output wrong."""
    for level in ("basic", "extended"):
        if case.wrong(load_onnx(path, {"optimization": level})(case.inputs)):
            return level
    return "all"


BACKEND = Backend(
    name="onnx",
    file="policy.onnx",
    random_file="policy_random.onnx",
    content="ONNX program, {exploration}",
    load=load,
    inspect=inspect,
    run_by=("onnxruntime",),
    refuse=refuse,
    on_device=True,
    batches=True,
    told=lambda path: load_onnx(path).facts,
)
