"""Convert the exported programs to ONNX: one file each, weights inside, any batch size.

PyTorch is imported by the processes that convert, and not before they start.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from policy_export.config import params
from policy_export.device.environments import environment_name
from policy_export.lowering.integer_preprocessing import use_integer_preprocessing
from policy_export.lowering.redundant_reshapes import drop_redundant_reshapes
from policy_export.lowering.supported_types import use_supported_types
from policy_export.program.archive import EXPORTS, load_program
from policy_export.program.failures import in_one_line
from policy_export.stage.files import replacing
from policy_export.stage.processes import processes

if TYPE_CHECKING:
    import torch


def draw_flags(probabilities: Any, generator: None = None) -> Any:  # noqa: ARG001  the operator's own arguments
    """Translate ``aten.bernoulli``. The function that ONNX defines for its own operator draws 1 with 1 - p."""
    from onnxscript import opset18 as op

    drawn = op.Less(op.RandomUniformLike(probabilities), probabilities)
    return op.CastLike(drawn, probabilities)


def spell_out_attention(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program with attention as products and sums.

    PyTorch's exporter takes no attention of three dimensions, and gives NaN, not 0, where a mask allows nothing.
    """
    import torch

    attention = torch.ops.aten.scaled_dot_product_attention.default
    if not any(node.target is attention for node in program.graph.nodes):
        return program
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001  what it becomes first
    known = torch.export.default_decompositions()
    return program.run_decompositions({operator: known[operator] for operator in (attention, on_cpu)})


def translate(program: torch.export.ExportedProgram, facts: dict[str, Any], opset: int) -> torch.onnx.ONNXProgram:
    """Return a program as PyTorch's exporter translates it, with the program's own names."""
    import torch

    names = [output["name"] for output in facts["outputs"]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used")
        converted = torch.onnx.export(
            spell_out_attention(program),
            dynamo=True,
            custom_translation_table={torch.ops.aten.bernoulli.default: draw_flags},
            opset_version=opset,
            input_names=[spec["name"] for spec in facts["inputs"]],  # the graph has them in small letters
            output_names=names,
            dynamic_shapes={spec["name"]: {0: "batch"} for spec in facts["inputs"]},
            verbose=False,
        )
    assert converted is not None  # only without dynamo=True
    return converted


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a translated program with the operators that ONNX Runtime has, and computes fastest."""
    return use_integer_preprocessing(drop_redundant_reshapes(use_supported_types(model)))


def convert(program: torch.export.ExportedProgram, facts: dict[str, Any], opset: int) -> onnx.ModelProto:
    """Return a program as a checked ONNX model with the program's own names and its facts as metadata."""
    model = lower(translate(program, facts, opset).model_proto)
    # The exporter notes where in the sources each node comes from, with this machine's paths.
    for item in [*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        del item.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = f"TorchRL policy {facts['policy']} for {environment_name(facts)}"
    onnx.helper.set_model_props(model, {"policy": str(facts["policy"]), "facts": json.dumps(facts)})
    onnx.checker.check_model(model, full_check=True)
    return model


def convert_program(policy: str, name: str, opset: int) -> str:
    """Convert one of a policy's programs; returns the message for the user."""
    folder = Path("models", policy)
    program, facts = load_program(folder / f"{name}.pt2", policy)
    with in_one_line(policy, "export_onnx", program):
        model = convert(program, facts, opset)
    with replacing(folder / f"{name}.onnx") as temporary:
        onnx.save(model, temporary)
    return f"export_onnx {policy}  {name}.onnx  {len(model.graph.node)} nodes, {model.ByteSize():,} bytes"


def convert_programs(policy: str, settings: params.ExportOnnx) -> None:
    """Convert a policy's programs, side by side."""
    with processes(len(EXPORTS)) as executor:
        converting = [executor.submit(convert_program, policy, name, settings.opset) for name in EXPORTS]
        for done in converting:
            print(done.result(), flush=True)
