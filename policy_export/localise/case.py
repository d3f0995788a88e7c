"""A failure to be explained: what a program must do for some inputs, and what the policy computes on the way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from policy_export.device.arrays import Arrays
from policy_export.localise.compare import Alignment, Location, agree
from policy_export.localise.trace import Trace, export_reference, trace_eager, trace_program
from policy_export.program.archive import load_program
from policy_export.program.calls import wrap
from policy_export.program.step import Step

ORIGIN = "policy.pt2"  # what the other programs are made from


@dataclass(frozen=True)
class Case:
    """What a program must do for some inputs.

    Attributes:
        policy: its name.
        step: the policy itself.
        inputs: ``(batch, ...)`` each, by name.
        expected: the outputs of eager PyTorch.
        exported: the policy, exported anew.
        reference: its values for the inputs.
        tolerance: largest difference of a number, or, in a tensor with numbers above 1, its share of the largest.
    """

    policy: str
    step: Step
    inputs: Arrays
    expected: Arrays
    exported: torch.export.ExportedProgram
    reference: Trace
    tolerance: float

    @classmethod
    def of(cls, policy: str, step: Step, inputs: Arrays, tolerance: float) -> Case:
        """Export a policy anew, and run it on the inputs."""
        exported = export_reference(step)
        return cls(policy, step, inputs, wrap(step)(inputs), exported, trace_program(exported, inputs), tolerance)

    def wrong(self, outputs: Arrays) -> list[str]:
        """Return the names of the outputs that are missing, or differ from what is expected."""
        known = self.expected
        return [name for name in known if name not in outputs or not agree(outputs[name], known[name], self.tolerance)]

    def compare(self, found: Trace, reference: Trace | None = None) -> Location | None:
        """Return the first tensor of a trace that differs from the reference's."""
        return Alignment(reference or self.reference, found, self.tolerance).first()


def no_location(note: str) -> Location:
    """Return a location that names no tensor."""
    return Location("", "", "", None, note)


def locate_in_export(case: Case) -> Location | None:
    """Compare the exported tensors with those of eager PyTorch's operators: exporting alone may change the policy."""
    if not case.wrong({name: case.reference.output(name) for name in case.reference.outputs}):
        return None
    location = case.compare(case.reference, trace_eager(case.step, case.inputs))
    return location and dataclasses.replace(location, note=f"exporting the policy changes it: {location.note}")


def locate_in_origin(case: Case, outputs: Arrays) -> Location | None:
    """Return the fault of ``policy.pt2``, if that has the same wrong outputs as a program that is made from it."""
    path = Path("models", case.policy, ORIGIN)
    try:
        origin = trace_program(load_program(path, case.policy)[0], case.inputs)
    except Exception:  # a fault of its own; the program can be examined without it
        return None
    if any(
        name not in outputs or not agree(outputs[name], origin.output(name), case.tolerance) for name in origin.outputs
    ):
        return None
    location = case.compare(origin)
    note = f"; {path.name}, which the package is compiled from, has the same fault"
    return location and dataclasses.replace(location, note=location.note + note)
