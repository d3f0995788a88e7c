"""Every tensor that PyTorch computes on the way to a program's outputs, with the line of source that it comes from."""

from __future__ import annotations

import io
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.export.graph_signature import InputKind
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_unflatten

from policy_export.device.arrays import Arrays
from policy_export.program.export import export
from policy_export.program.failures import START, short
from policy_export.program.step import Step
from policy_export.program.twins import exportable

INPUT, WEIGHT = "input", "weight"  # what a value is that no operator made
FRAME = re.compile(r'File "(.+)", line (\d+), in .+\n\s+(.+)')
GLUE = ("torch/", "tensordict/", "torchrl/envs/transforms/_base.py", START)  # what every stack passes through


@dataclass(frozen=True)
class Value:
    """One tensor.

    Attributes:
        name: name of the node that made it; for a weight, its name in the policy.
        operator: ``aten.slice.Tensor``, ``Slice``, :data:`INPUT` or :data:`WEIGHT`.
        definition: the operator with all arguments that are not values: ``aten.slice.Tensor(_, 1, 34, 194)``.
        inputs: names of the values that it was computed from.
        array: its numbers.
        source: ``policy_export/environments/preprocess.py:97: grey = ...``, or empty.
    """

    name: str
    operator: str
    definition: str
    inputs: tuple[str, ...]
    array: npt.NDArray[Any]
    source: str = ""


@dataclass
class Trace:
    """Values by name in the order they were computed, a weight just before its first use; and which are outputs."""

    values: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def add(self, value: Value) -> None:
        self.values.setdefault(value.name, value)

    def output(self, name: str) -> npt.NDArray[Any]:
        return self.values[self.outputs[name]].array


def find_source(node: torch.fx.Node) -> str:
    """Return file, line and text of the innermost useful frame of a node's stack, and the module it ran for.

    That is a frame in the project or in TorchRL; where there is none, in one of PyTorch's own layers.
    """
    frames = [(short(path), line, text) for path, line, text in FRAME.findall(node.meta.get("stack_trace") or "")]
    start = next((place for place, frame in enumerate(frames) if frame[0] == START), 0)
    ours = [frame for frame in frames[start:] if not frame[0].startswith(GLUE)] or frames
    if not ours:
        return ""
    source = "{}:{}: {}".format(*ours[-1])
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    if modules and str(kind := modules[-1][1]).startswith("torch.nn."):
        source += f" ({modules[-1][0]}, {str(kind).rpartition('.')[2]})"
    return source


def export_reference(step: Step) -> torch.export.ExportedProgram:
    """Export the step anew, and return it as it would be read from a file."""
    file = io.BytesIO()
    torch.export.save(export(step), file)
    file.seek(0)
    return torch.export.load(file)


def to_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a copy as a numpy array; a dtype that numpy does not have becomes float32."""
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_mkldnn else tensor
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy().copy()


class _Recorder(torch.fx.Interpreter):
    """Runs a program's graph node by node and keeps every tensor."""

    def __init__(self, program: torch.export.ExportedProgram, inputs: Arrays) -> None:
        super().__init__(program.graph_module)
        self.trace, self.names = Trace(), {}  # names of values by node
        self.given: list[torch.Tensor] = []
        self.unused: dict[torch.fx.Node, Value] = {}
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                tensor = torch.from_numpy(np.ascontiguousarray(inputs[spec.arg.name]))
                self.trace.add(Value(node.name, INPUT, INPUT, (), to_array(tensor)))
                self.names[node] = node.name
            else:
                target = str(spec.target)
                tensor = program.constants[target] if target in program.constants else program.state_dict[target]
                self.unused[node] = Value(target, WEIGHT, WEIGHT, (), to_array(tensor))
                self.names[node] = target
            self.given.append(tensor)

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        for node in n.all_input_nodes:
            if node in self.unused:
                self.trace.add(self.unused.pop(node))
        if isinstance(result, torch.Tensor) and n.op not in ("placeholder", "output"):
            made_by = n.args[0] if n.target is operator.getitem and isinstance(n.args[0], torch.fx.Node) else n
            inputs = tuple(dict.fromkeys(self._inputs(n)))
            self.trace.add(
                Value(n.name, str(made_by.target), self._define(n), inputs, to_array(result), find_source(n))
            )
            self.names[n] = n.name
        return result

    def _inputs(self, node: torch.fx.Node) -> Iterator[str]:
        """Yield names of the values that a node reads, also through tuples and sizes, which are not tensors."""
        for given in node.all_input_nodes:
            if given in self.names:
                yield self.names[given]
            else:
                yield from self._inputs(given)

    def _define(self, node: torch.fx.Node) -> str:
        given = [self._describe(given) for given in node.args]
        given += [f"{name}={self._describe(given)}" for name, given in node.kwargs.items()]
        name = "getitem" if node.target is operator.getitem else str(node.target)
        return f"{name}({', '.join(given)})"

    def _describe(self, argument: Any) -> str:
        match argument:
            case torch.fx.Node():
                return "_" if argument in self.names else self._define(argument)
            case list() | tuple():
                return f"[{', '.join(map(self._describe, argument))}]"
            case _:
                return str(argument)


def trace_program(program: torch.export.ExportedProgram, inputs: Arrays) -> Trace:
    """Return what an exported program computes, operator by operator.

    Args:
        inputs: by the program's input names, ``(batch, ...)`` each.
    """
    recorder = _Recorder(program, inputs)
    with torch.no_grad():
        recorder.run(*recorder.given)
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    names = [recorder.names[node] for node in output.args[0]]
    recorder.trace.outputs = dict(tree_unflatten(names, program.call_spec.out_spec))
    for value in recorder.unused.values():
        recorder.trace.add(value)
    return recorder.trace


class _Log(TorchDispatchMode):
    """Keeps what every operator of eager PyTorch returns."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                name = f"{func.__name__}#{len(self.trace.values)}"
                self.trace.add(Value(name, str(func), str(func), (), to_array(tensor)))
        return result


def trace_eager(step: Step, inputs: Arrays) -> Trace:
    """Return what the policy computes without any export, in order; names and operators are those of eager PyTorch."""
    with torch.no_grad(), _Log() as log:
        outputs = step(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()})
    for name, tensor in outputs.items():
        log.trace.add(Value(name, "output", "output", (), to_array(tensor)))
        log.trace.outputs[name] = name
    for name, array in inputs.items():
        log.trace.add(Value(name, INPUT, INPUT, (), array))
    for name, tensor in exportable(step).state_dict().items():
        log.trace.add(Value(name, WEIGHT, WEIGHT, (), to_array(tensor)))
    return log.trace
