"""Where a program that disagrees with the trained policy goes wrong: the first tensor, its operator, its source line.

What is right is what eager PyTorch computes with the weights of ``policy.safetensors``. A fresh export of the policy,
held against that first, gives names and values of every tensor on the way.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.arrays import Arrays
from policy_export.device.errors import first_line
from policy_export.localise.compare import Alignment, Location, agree, largest_difference
from policy_export.localise.package import locate_in_package
from policy_export.localise.trace import WEIGHT, Trace, export_reference, trace_eager, trace_program
from policy_export.localise.trace_onnx import made_for, trace_onnx
from policy_export.lowering.integer_preprocessing import PREFIX
from policy_export.lowering.onnx import lower, translate
from policy_export.program.archive import load_program
from policy_export.program.calls import wrap
from policy_export.program.step import Step, load_step

__all__ = ["Location", "localise"]


@dataclass(frozen=True)
class Case:
    """What a program must do for some inputs.

    Attributes:
        inputs: ``(batch, ...)`` each, by name.
        expected: the outputs of eager PyTorch.
        exported: the policy, exported anew.
        reference: its values for the inputs.
    """

    policy: str
    step: Step
    inputs: Arrays
    expected: Arrays
    exported: torch.export.ExportedProgram
    reference: Trace
    tolerance: float

    def path(self, program: str) -> Path:
        return Path("models", self.policy, runtimes.PROGRAMS[program])

    def wrong(self, outputs: Arrays) -> list[str]:
        """Names of the outputs that are missing, or differ from what is expected."""
        known = self.expected
        return [name for name in known if name not in outputs or not agree(outputs[name], known[name], self.tolerance)]

    def compare(self, found: Trace, reference: Trace | None = None) -> Location | None:
        return Alignment(reference or self.reference, found, self.tolerance).first()


def localise(policy: str, program: str, inputs: Arrays, tolerance: float) -> Location:
    """The first tensor of a deterministic program that differs from the trained policy's.

    Args:
        program: ``pt2``, ``aoti``, ``onnx`` or ``native``.
        inputs: one or a few rows for which the outputs differ, by the program's input names, ``(batch, ...)`` each.
        tolerance: largest difference of a number, or, in a tensor with numbers above 1, its share of the largest.

    Returns:
        a location; one without a tensor, and a note why, where nothing differs or nothing can be seen.

    Raises:
        UserError: the policy itself cannot be loaded.
    """
    step = load_step(policy, load_profile(policy))
    expected = wrap(step)(inputs)
    locate = {"pt2": _locate_in_graph, "onnx": _locate_in_onnx, "aoti": _locate_in_aoti, "native": _locate_in_native}[
        program
    ]
    try:
        exported = export_reference(step)
        case = Case(policy, step, inputs, expected, exported, trace_program(exported, inputs), tolerance)
        return _locate_in_export(case) or locate(case)
    except Exception as error:  # a faulty program may fail in any way once it is taken to pieces
        return _tell(f"{runtimes.PROGRAMS[program]} cannot be taken to pieces: {first_line(error)}")


def _tell(note: str) -> Location:
    return Location("", "", "", None, note)


def _locate_in_export(case: Case) -> Location | None:
    """Whether exporting alone changes the policy: the exported tensors against those of eager PyTorch's operators."""
    if not case.wrong({name: case.reference.output(name) for name in case.reference.outputs}):
        return None
    location = case.compare(case.reference, trace_eager(case.step, case.inputs))
    return location and dataclasses.replace(location, note=f"exporting the policy changes it: {location.note}")


def _locate_in_graph(case: Case) -> Location:
    path = case.path("pt2")
    program, _ = load_program(path, case.policy)
    if location := case.compare(trace_program(program, case.inputs)):
        return location
    if not case.wrong(runtimes.load(path, 1)(case.inputs)):
        return _tell("nothing differs: every output agrees for these inputs")
    return _tell("every tensor agrees when the graph is run operator by operator: the fault is in how it is called")


def _locate_in_onnx(case: Case) -> Location:
    """Against a fresh translation of the policy, whose tensors have the values that PyTorch gives them."""
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
    path = case.path("onnx")
    found = trace_onnx(onnx.load(path), case.inputs, weights)
    if location := case.compare(found, reference):
        return location
    if case.wrong({name: found.output(name) for name in found.outputs}):
        return _tell("the model is what PyTorch makes of the policy for ONNX: the fault is in its decompositions")
    if not case.wrong(runtimes.load(path, 1)(case.inputs)):
        return _tell("nothing differs: every output agrees for these inputs")
    return _tell(
        "every intermediate tensor agrees when the graph is run unoptimised: the fault is in ONNX Runtime's "
        f"optimisation, from the level {_first_wrong_level(path, case)!r} on"
    )


def _first_wrong_level(path: Path, case: Case) -> str:
    """The least of ONNX Runtime's optimisation levels that makes an output wrong."""
    levels = onnxruntime.GraphOptimizationLevel
    for name, level in {"basic": levels.ORT_ENABLE_BASIC, "extended": levels.ORT_ENABLE_EXTENDED}.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads = level, 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        if case.wrong(dict(zip(outputs, session.run(outputs, case.inputs), strict=True))):
            return name
    return "all"


def _locate_in_aoti(case: Case) -> Location:
    """Through ``policy.pt2`` where that has the same fault, otherwise by the package's own weights and code."""
    path = case.path("aoti")
    outputs = runtimes.load(path, 1)(case.inputs)
    if not (wrong := case.wrong(outputs)):
        return _tell("nothing differs: every output agrees for these inputs")
    if location := _locate_in_origin(case, outputs):
        return location
    location = locate_in_package(path, case.exported, case.reference, wrong[0], params.load().compile_aoti)
    if location.difference is None and location.tensor:  # of the code, which has no numbers: the outputs' differences
        largest = max(largest_difference(outputs[name], case.expected[name]) for name in outputs if name in wrong)
        note = f"{location.note} (difference of the outputs)"
        location = dataclasses.replace(location, difference=largest, note=note)
    return location


def _locate_in_native(case: Case) -> Location:
    """Through ``policy.pt2`` where that has the same fault: nothing inside a native library can be seen."""
    outputs = runtimes.load(case.path("native"), 1)(case.inputs)
    if not case.wrong(outputs):
        return _tell("nothing differs: every output agrees for these inputs")
    return _locate_in_origin(case, outputs) or _tell(
        "policy.pt2 is right: the fault is in what compile_native makes of it"
    )


def _locate_in_origin(case: Case, outputs: Arrays) -> Location | None:
    """The fault of ``policy.pt2``, where that has the same wrong outputs as the package that is compiled from it."""
    path = case.path("pt2")
    try:
        origin = trace_program(load_program(path, case.policy)[0], case.inputs)
    except Exception:  # a fault of its own; the package can be judged without it
        return None
    if any(
        name not in outputs or not agree(outputs[name], origin.output(name), case.tolerance) for name in origin.outputs
    ):
        return None
    location = case.compare(origin)
    note = f"; {path.name}, which the package is compiled from, has the same fault"
    return location and dataclasses.replace(location, note=location.note + note)
