"""Every tensor that an ONNX model computes on the way to its outputs."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from policy_export.config import params
from policy_export.device.arrays import Arrays
from policy_export.localise.case import Case
from policy_export.localise.trace import INPUT, WEIGHT, Trace, Value, trace_program
from policy_export.lowering.integer_preprocessing import PREFIX
from policy_export.lowering.onnx import lower, translate

LARGE_CONSTANT = 16  # numbers; larger ones are told by their hash


def trace_onnx(model: onnx.ModelProto, inputs: Arrays, weights: set[str]) -> Trace:
    """Return what an ONNX model computes when ONNX Runtime does not change its graph.

    Args:
        inputs: by the model's input names, ``(batch, ...)`` each.
        weights: names of the initializers that are weights; all others are part of their nodes' definitions.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    computed = [name for node in model.graph.node for name in node.output if name]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in session.get_inputs()}
    arrays = dict(zip([spec.name for spec in session.get_outputs()], session.run(None, given), strict=True))

    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants |= {node.output[0]: arrays[node.output[0]] for node in model.graph.node if node.op_type == "Constant"}
    trace = Trace(outputs={output.name: output.name for output in model.graph.output})
    for name, array in given.items():
        trace.add(Value(name, INPUT, INPUT, (), array))
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        for name in node.input:
            if name in weights and name in constants:
                trace.add(Value(name, WEIGHT, WEIGHT, (), constants[name]))
        arguments = [
            "_" if name in trace.values or name not in constants else _show(constants[name]) for name in node.input
        ]
        arguments += [str(onnx.helper.printable_attribute(attribute)) for attribute in node.attribute]
        definition = f"{node.op_type}({', '.join(arguments)})"
        read = tuple(dict.fromkeys(name for name in node.input if name in trace.values))
        for name in node.output:
            if isinstance(arrays.get(name), np.ndarray):
                trace.add(Value(name, node.op_type, definition, read, arrays[name]))
    return trace


def _show(constant: npt.NDArray[Any]) -> str:
    if constant.size <= LARGE_CONSTANT:
        return str(constant.tolist())
    return f"{constant.dtype}{list(constant.shape)} with hash {hashlib.sha256(constant.tobytes()).hexdigest()[:8]}"


def made_for(model: onnx.ModelProto) -> dict[str, str]:
    """Return, for each value of a model that the exporter has just made, the program's node that it stands for."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        for note in node.metadata_props:
            if note.key == "pkg.torch.onnx.fx_node":  # "%relu : [num_users=1] = call_function[...](...)"
                found |= dict.fromkeys(node.output, note.value.split()[0].removeprefix("%"))
    return found


def translate_again(case: Case) -> tuple[Trace, set[str]]:
    """Translate a policy anew, with the values that PyTorch gives to the tensors.

    Returns:
        what it computes, and the names of its weights.
    """
    translated = translate(case.exported, case.step.signature.as_dict(), params.load().export_onnx.opset)
    assert translated.exported_program is not None  # what it was translated from
    computed = trace_program(translated.exported_program, case.inputs)
    nodes = made_for(translated.model_proto)
    weights = {*case.exported.state_dict, *case.exported.constants}
    reference = trace_onnx(lower(translated.model_proto), case.inputs, weights)
    made_anew = [name for name in reference.values if name.startswith(PREFIX)]
    ends = [
        name for name, value in reference.values.items() if {*value.inputs} & {*made_anew} and name not in made_anew
    ]
    nodes |= {name: nodes[end] for name in made_anew for end in ends}  # one tensor ends what was rewritten
    for name, value in reference.values.items():
        node = computed.values.get(nodes.get(name, ""))
        known = computed.values.get(computed.outputs.get(name, name), value)
        same = value.operator != WEIGHT and known.array.shape == value.array.shape
        array, source = known.array if same else value.array, node.source if node else ""
        reference.values[name] = dataclasses.replace(value, array=array, source=source)
    return reference, weights
