"""Where two programs begin to differ: the first tensor of one that the other does not compute."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.localise.trace import INPUT, WEIGHT, Trace, Value


def largest_difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Return the largest difference of two arrays as floats; infinite if shapes differ, or if either holds a NaN."""
    if found.shape != expected.shape:
        return np.inf
    if not found.size or (np.array_equal(found, expected) and not _has_nan(expected)):
        return 0.0
    ones, others = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(ones == others, 0, np.abs(ones - others))  # equal infinities are no difference
    return float(np.inf if np.isnan(difference).any() else difference.max())


def agree(found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> bool:
    """Return whether two arrays differ by at most the tolerance, times the largest expected number if above 1.

    Integers and bools must be equal.
    """
    if not _is_float(found) and not _is_float(expected):
        return np.array_equal(found, expected)
    finite = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    return largest_difference(found, expected) <= tolerance * float(finite)


def _is_float(array: npt.NDArray[Any]) -> bool:
    return np.issubdtype(array.dtype, np.floating)


def _has_nan(array: npt.NDArray[Any]) -> bool:
    return _is_float(array) and bool(np.isnan(array).any())


@dataclass(frozen=True)
class Location:
    """Where a program goes wrong.

    Attributes:
        tensor: name of the first tensor that differs; empty where none does, or none can be seen.
        operator: what made it, or ``weight``.
        source: file, line and text of the policy's code that it comes from, relative to the project or to
            ``site-packages``; empty where that is not known.
        difference: the largest one of the tensor's numbers, infinite for NaN or another shape; none where not known.
        note: how it differs, in words.
    """

    tensor: str
    operator: str
    source: str
    difference: float | None
    note: str

    def __str__(self) -> str:
        if not self.tensor:
            return self.note
        by = "" if self.difference is None else f" differs by {self.difference:.3g}"
        return f"{self.tensor} ({self.operator}){by}: {self.note}" + (f"; from {self.source}" if self.source else "")

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, which has no infinity."""
        known = self.difference is not None and np.isfinite(self.difference)
        return dataclasses.asdict(self) | {"difference": self.difference if known else None}


def find_use(weight: str, trace: Trace) -> Value | None:
    """Return the value that a weight is first used for."""
    return next((value for value in trace.values.values() if weight in value.inputs), None)


class Alignment:
    """Values of a program, paired with those of a reference that should compute the same outputs.

    Operators are aligned in the order of computation, weights by name. Where both programs have the same operators,
    each value must be that of its partner. Otherwise a value is also right if the reference has it elsewhere: the
    same tensors may be computed in another way.
    """

    def __init__(self, reference: Trace, found: Trace, tolerance: float) -> None:
        self.reference, self.found, self.tolerance = reference, found, tolerance
        ones, others = ([v for v in trace.values.values() if _is_computed(v)] for trace in (reference, found))
        matcher = difflib.SequenceMatcher(
            None, [v.operator for v in ones], [v.operator for v in others], autojunk=False
        )
        codes = matcher.get_opcodes()
        self.same_operators = all(code[0] == "equal" for code in codes)
        self.partners = {name: name for name, value in found.values.items() if not _is_computed(value)}
        self.neighbours: dict[str, Value] = {}  # of values without a partner: what the reference has at that place
        for kind, start, end, other, other_end in codes:
            if kind == "equal":
                pairs = zip(ones[start:end], others[other:other_end], strict=True)
                self.partners |= {value.name: partner.name for partner, value in pairs}
            elif ones:
                place = ones[max(0, start - 1) if kind == "insert" else start]
                self.neighbours |= {value.name: place for value in others[other:other_end]}
        self._right: dict[str, bool] = {}

    def partner(self, value: Value) -> Value | None:
        return self.reference.values.get(self.partners.get(value.name, ""))

    def is_right(self, value: Value) -> bool:
        if value.name not in self._right:
            self._right[value.name] = self._is_right(value)
        return self._right[value.name]

    def _is_right(self, value: Value) -> bool:
        partner = self.partner(value)
        if value.operator == INPUT:
            return True
        if value.operator == WEIGHT:
            known = [partner] if partner else [v for v in self.reference.values.values() if v.operator == WEIGHT]
            return any(largest_difference(value.array, weight.array) == 0 for weight in known)
        if partner and agree(value.array, partner.array, self.tolerance):
            return True
        if self.same_operators:
            return False
        known = [v for v in self.reference.values.values() if partner is None or v.operator == value.operator]
        return any(agree(value.array, other.array, self.tolerance) for other in known)

    def first(self) -> Location | None:
        """Return the first wrong value that makes an output wrong; none where all outputs are right."""
        for name in self.reference.outputs:
            if name not in self.found.outputs:
                value = self.reference.values[self.reference.outputs[name]]
                return self._locate(value, None, f"the program has no output {name}")
        wrong = [name for name in self.reference.outputs if not self._is_output_right(name)]
        origins: list[Value] = []
        for name in wrong:
            value = self.found.values[self.found.outputs[name]]
            if self.is_right(value):
                expected = self.reference.values[self.reference.outputs[name]]
                note = f"the output {name} is {value.name}, which is right in itself, expected {expected.name}"
                return self._locate(value, expected, note)
            origins += self._origins(value)
        if not origins:
            return None
        order = {name: place for place, name in enumerate(self.found.values)}
        origin = min(origins, key=lambda value: order[value.name])
        causes = [v for v in self._ancestors(origin) if self._is_cause(v)]
        return self._explain(min(causes, key=lambda value: order[value.name], default=origin))

    def _is_output_right(self, name: str) -> bool:
        return agree(self.found.output(name), self.reference.output(name), self.tolerance)

    def _given(self, value: Value) -> list[Value]:
        return [self.found.values[name] for name in value.inputs]

    def _origins(self, value: Value) -> Iterator[Value]:
        """Yield the wrong values that a wrong value comes from, and that are computed only from right ones."""
        seen, left = {value.name}, [value]
        while left:
            here = left.pop()
            wrong = [given for given in self._given(here) if not self.is_right(given)]
            if not wrong:
                yield here
            left += [given for given in wrong if given.name not in seen]
            seen |= {given.name for given in wrong}

    def _ancestors(self, value: Value) -> list[Value]:
        """Return the value, and all that it was computed from."""
        found, left = {value.name: value}, [value]
        while left:
            fresh = [given for given in self._given(left.pop()) if given.name not in found]
            found |= {given.name: given for given in fresh}
            left += fresh
        return list(found.values())

    def _is_cause(self, value: Value) -> bool:
        """Return whether a value has another definition and differs, even if by too little to be wrong by itself."""
        partner = self.partner(value)
        if partner is None or value.operator == INPUT:
            return False
        differs = largest_difference(value.array, partner.array) > 0
        return differs and (value.operator == WEIGHT or value.definition != partner.definition)

    def _locate(self, value: Value, expected: Value | None, note: str) -> Location:
        difference = largest_difference(value.array, expected.array) if expected else None
        return Location(value.name, value.operator, self._find_source(value), difference, note)

    def _find_source(self, value: Value) -> str:
        """Return the source of the reference's value, or of one in its place; a weight's is where it is used."""
        user = find_use(value.name, self.found) or find_use(value.name, self.reference) or value
        made = user if value.operator == WEIGHT else value
        known = self.partner(made) or self.neighbours.get(made.name)
        return (known.source if known else "") or made.source

    def _explain(self, value: Value) -> Location:
        partner = self.partner(value)
        if value.operator == WEIGHT:
            return self._locate(value, partner, describe_weight(value.array, partner.array if partner else None))
        if partner is None:
            place = self.neighbours[value.name]
            told = "after" if place.name in self.partners.values() else "where the policy has"
            return self._locate(value, None, f"is {value.definition}, {told} {place.definition}")
        if value.definition != partner.definition:
            return self._locate(value, partner, f"is {value.definition}, expected {partner.definition}")
        taken = set(self.partners.values())
        for name in reversed(partner.inputs):
            lost = self.reference.values[name]
            given = [given.array for given in self._given(value)]
            if name not in taken and not any(agree(array, lost.array, self.tolerance) for array in given):
                return self._locate(lost, lost, f"the program lacks {lost.definition} before {value.name}")
        read = [self.partners.get(name) for name in value.inputs]
        if read != list(partner.inputs):
            reads = f"reads {', '.join(value.inputs)}, expected {', '.join(partner.inputs)}"
            return self._locate(value, partner, reads)
        return self._locate(value, partner, f"{value.definition} gives other numbers for the same inputs")


def _is_computed(value: Value) -> bool:
    return value.operator not in (INPUT, WEIGHT)


def describe_weight(found: npt.NDArray[Any], expected: npt.NDArray[Any] | None) -> str:
    """Describe how a weight is wrong."""
    if expected is None:
        return "is no weight of the trained policy"
    if found.shape != expected.shape:
        return f"has the shape {list(found.shape)}, the trained policy's {list(expected.shape)}"
    told = f"differs from the trained policy's in {int((found != expected).sum())} of {found.size} numbers"
    return told + (f", {int(np.isnan(found).sum())} of them NaN" if _has_nan(found) else "")
