"""A network's products in fewer bits: integers of 8 bits, calibrated on recorded inputs, or floats of 16.

Everything else in a program stays as it is: preprocessing, which is a product of integers already, normalisation,
state, and the layer that computes the values, because small differences between values decide the action.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from policy_export.device.arrays import Arrays
from policy_export.lowering.integer_preprocessing import PREFIX

PRODUCTS = ("Gemm", "MatMul")
OPERATORS = ("Conv", *PRODUCTS)
HALF_OPSET = 22  # the first in which a convolution may have bfloat16
HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Recorded(CalibrationDataReader):
    """Recorded inputs, a row at a time."""

    def __init__(self, inputs: Arrays) -> None:
        rows = len(next(iter(inputs.values())))
        self.rows: Iterator[Arrays] = iter(
            {name: array[[row]] for name, array in inputs.items()} for row in range(rows)
        )

    def get_next(self) -> Arrays | None:
        return next(self.rows, None)


def layers(model: onnx.ModelProto, operators: tuple[str, ...]) -> list[onnx.NodeProto]:
    """Return the network's nodes of some operators with weights, except the last, which computes the values."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [
        node
        for node in model.graph.node
        if node.op_type in OPERATORS
        and weights.intersection(node.input)
        and not any(name.startswith(PREFIX) for name in (*node.input, *node.output))
    ]
    return [node for node in found[:-1] if node.op_type in operators]


def read_apart(model: onnx.ModelProto, chosen: list[onnx.NodeProto]) -> None:
    """Give the layers' input a name of their own, so that other nodes that read it do not get it quantised.

    The state of a policy that stacks frames is such a case.
    """
    nodes = []
    for node in model.graph.node:
        if node in chosen:
            name = f"{node.output[0]}_input"
            nodes.append(helper.make_node("Identity", [node.input[0]], [name], name=name))
            node.input[0] = name
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def quantised(model: onnx.ModelProto, inputs: Arrays, operators: tuple[str, ...]) -> onnx.ModelProto | None:
    """Return the program with products of 8-bit integers, or None if it has no layer for them.

    Weights are symmetric, activations have a zero point; both ranges are the smallest and largest numbers seen.

    Args:
        model: whose nodes may be without names.
        inputs: recorded, ``(rows, ...)`` by input name, on which the ranges are calibrated.
        operators: of the layers that are to be quantised.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for index, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    chosen = layers(named, operators)
    if not chosen:
        return None
    names = [node.name for node in chosen]
    read_apart(named, chosen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "quantised.onnx")
        quantize_static(
            named,
            path,
            Recorded(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            nodes_to_quantize=names,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


def halved(model: onnx.ModelProto, kind: str) -> onnx.ModelProto | None:
    """Return the program with the same layers in floats of 16 bits, or None if it has no such layers.

    Args:
        model: whose weights are float32.
        kind: ``fp16`` or ``bf16``.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    chosen = [node.output[0] for node in layers(changed, OPERATORS)]
    if not chosen:
        return None
    for opset in changed.opset_import:
        opset.version = max(opset.version, HALF_OPSET) if opset.domain in ("", "ai.onnx") else opset.version
    weights, to = {tensor.name: tensor for tensor in changed.graph.initializer}, HALVES[kind]
    nodes = []
    for node in changed.graph.node:
        if node.output[0] not in chosen:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            node.input[place] = half = f"{node.output[0]}_{kind}_{place}"
            if name in weights:
                array = numpy_helper.to_array(weights[name]).astype(np.float32)
                changed.graph.initializer.append(helper.make_tensor(half, to, array.shape, array.flatten().tolist()))
            else:
                nodes.append(helper.make_node("Cast", [name], [half], to=to))
        output = node.output[0]
        node.output[0] = f"{output}_{kind}"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT)]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in changed.graph.initializer if tensor.name in used]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    del changed.graph.value_info[:]
    return changed
