"""Let an ONNX program compute what ONNX Runtime has for other types only in one of those types."""

from __future__ import annotations

import onnx
from onnxscript import ir

# The types for which it chooses between no two numbers, with one that holds all their values and for which it does.
WIDER = {
    ir.DataType.BOOL: ir.DataType.UINT8,
    ir.DataType.INT16: ir.DataType.INT32,
    ir.DataType.UINT16: ir.DataType.INT32,
}


def use_supported_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the program with each ``Where`` of such a type in the wider one; all values keep their names."""
    changed = ir.from_proto(model)
    for node in [node for node in changed.graph if node.op_type == "Where" and node.outputs[0].dtype in WIDER]:
        (value,) = node.outputs
        narrow = value.dtype
        assert narrow is not None
        wide = WIDER[narrow]
        casts = [ir.node("Cast", [node.inputs[place]], {"to": wide}) for place in (1, 2)]
        choice = ir.node("Where", [node.inputs[0], *(cast.outputs[0] for cast in casts)])
        back = ir.node("Cast", [choice.outputs[0]], {"to": narrow})
        for number, made in enumerate([*casts, choice]):
            made.outputs[0].name = f"{value.name}_wide_{number}"
        ir.convenience.replace_nodes_and_values(
            changed.graph, node, [node], [*casts, choice, back], [value], [back.outputs[0]]
        )
    return ir.to_proto(changed)
