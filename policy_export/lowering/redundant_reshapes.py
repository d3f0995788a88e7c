"""Remove from an ONNX program all nodes that only move, add or drop axes of size one.

One step of a recurrent network has many of them: a sequence of one is transposed, split and joined again. For ONNX
Runtime, calling a kernel costs as much as copying the few hundred numbers.
"""

from __future__ import annotations

import onnx
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

RESHAPES = {"Identity", "Reshape", "Squeeze", "Unsqueeze"}


def read_sizes(value: ir.Value | None) -> list[int | str] | None:
    """Return the sizes of a tensor's axes, with names for those that vary; None if any is neither known nor named."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    return None if None in sizes else [size for size in sizes if size is not None]


def keeps_order(node: ir.Node) -> bool:
    """Return whether a node returns all numbers of its first input in their order, in any shape."""
    if node.domain or len(node.outputs) != 1 or not node.inputs:
        return False
    before, after = read_sizes(node.inputs[0]), read_sizes(node.outputs[0])
    if before is None or after is None:
        return False
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", [*reversed(range(len(before)))])
        moved = [axis for axis in order if before[axis] != 1]
        return moved == sorted(moved)
    if node.op_type == "Slice":
        steps = node.inputs[4] if len(node.inputs) == len(("data", "starts", "ends", "axes", "steps")) else None
        forward = steps is None or (steps.const_value is not None and (steps.const_value.numpy() > 0).all())
        return before == after and bool(forward)
    return node.op_type in RESHAPES


def drop_redundant_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the program with at most one reshape in place of each chain of nodes that keep all numbers in their order.

    All other nodes stay as they are, all remaining values keep their names, and sizes that vary still vary.
    """
    changed = ir.from_proto(model)
    graph = changed.graph
    for node in [node for node in graph if keeps_order(node)]:
        start, (value,) = node.inputs[0], node.outputs
        while start is not None and (maker := start.producer()) is not None and keeps_order(maker):
            start = maker.inputs[0]
        sizes = read_sizes(value)
        assert start is not None
        assert sizes is not None
        if sizes == read_sizes(start) and not value.is_graph_output():
            value.replace_all_uses_with(start)
            continue
        shape = [size if isinstance(size, int) else -1 for size in sizes]
        if (node.op_type in RESHAPES and start is node.inputs[0]) or shape.count(-1) > 1 or 0 in shape:
            continue
        constant = ir.Value(name=f"{value.name}_shape", const_value=ir.tensor(shape, ir.DataType.INT64))
        graph.register_initializer(constant)
        node.op_type = "Reshape"
        node.attributes.clear()
        node.resize_inputs(2)
        node.replace_input_with(0, start)
        node.replace_input_with(1, constant)
    RemoveUnusedNodesPass()(changed)
    return ir.to_proto(changed)
