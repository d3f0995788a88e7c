"""Golden decisions: recorded observations with what the policy decides, by which a program tests itself anywhere.

``golden.safetensors`` of a model folder has, for each decision, a row of every tensor: ``input/<observation>``,
``input/is_init`` (true where an episode starts, and the memory is reset), ``output/<action or value>``, and ``tie``
(true where two values are so close that rounding may choose another action). ``state/<state>`` is one row: zeros, with
which the memory starts; ``next_<state>`` of the program is given to it at the next decision. ``tolerance`` ``(1,)``
float64 is by what a number may differ, in shares of its size above 1.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Arrays
from .errors import UserError, first_line
from .manifest import action_names, observation_names, value_names
from .player import Player

GOLDEN = "golden.safetensors"
INPUT, OUTPUT, STATE = "input/", "output/", "state/"
STARTS, TIE, TOLERANCE = "input/is_init", "tie", "tolerance"
# Types of numbers, by safetensors' names.
DTYPES = {"BOOL": "?", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I8": "i1", "I16": "<i2", "I32": "<i4"}
DTYPES |= {"I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
SHOWN = 32  # numbers of an output that an error lists


@dataclass(frozen=True)
class Golden:
    """Golden decisions of a policy.

    Attributes:
        starts: where an episode starts, ``(decisions,)`` bool.
        ties: where rounding may choose another action, ``(decisions,)`` bool.
        observations: by name, ``(decisions, ...)`` each.
        outputs: actions and values by name, ``(decisions, ...)`` each.
        tolerance: by what a number may differ, in shares of its size above 1.
    """

    starts: npt.NDArray[np.bool_]
    ties: npt.NDArray[np.bool_]
    observations: Arrays
    outputs: Arrays
    tolerance: float

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[bool, bool, Arrays, Arrays]]:
        """Yield each decision: whether an episode starts, whether it is a tie, and batches of one row."""
        for row in range(len(self)):
            shown, made = (
                {name: array[[row]] for name, array in part.items()} for part in (self.observations, self.outputs)
            )
            yield bool(self.starts[row]), bool(self.ties[row]), shown, made


def read_golden(path: Path, manifest: Mapping[str, Any]) -> Golden:
    """Read the golden decisions of a policy.

    Raises:
        UserError: the file is missing, damaged, or of another policy.
    """
    observations, outputs = observation_names(manifest), [*action_names(manifest), *value_names(manifest)]
    wanted = _kinds(manifest["inputs"], observations, INPUT) | _kinds(manifest["outputs"], outputs, OUTPUT)
    wanted |= _kinds(manifest["inputs"], [state["input"] for state in manifest["states"]], STATE)
    wanted |= {STARTS: "bool[1]", TIE: "bool[]"}
    place = f"{path}: not golden decisions of {manifest['policy']!r}"
    try:
        tensors = read_tensors(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{place}: damaged: {type(error).__name__}: {first_line(error)}") from None
    tolerance = tensors.pop(TOLERANCE, np.zeros(0))
    if tolerance.shape != (1,) or not 0 <= float(tolerance[0]) < math.inf:
        raise UserError(f"{place}: {TOLERANCE} is {tolerance.tolist()}, must be one number that is finite")
    found = {name: f"{array.dtype}{list(array.shape[1:])}" for name, array in tensors.items()}
    if found != wanted:
        names = [name for name in sorted(found | wanted) if found.get(name) != wanted.get(name)]
        raise UserError(f"{place}: {names[0]} is {found.get(names[0])}, expected {wanted.get(names[0])}")
    counts = {len(array) for name, array in tensors.items() if not name.startswith(STATE)}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"{place}: its tensors have {sorted(counts)} decisions")
    return Golden(
        tensors[STARTS][:, 0],
        tensors[TIE],
        {name: tensors[f"{INPUT}{name}"] for name in observations},
        {name: tensors[f"{OUTPUT}{name}"] for name in outputs},
        float(tolerance[0]),
    )


def read_tensors(content: bytes) -> Arrays:
    """Return the tensors of a file of safetensors, by name; a device needs no library for it.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, struct.error: it is no such file.
    """
    (size,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]
    return {
        name: np.frombuffer(data[slice(*spec["data_offsets"])], DTYPES[spec["dtype"]]).reshape(spec["shape"])
        for name, spec in header.items()
        if name != "__metadata__"
    }


def _kinds(specs: Sequence[Mapping[str, Any]], names: Sequence[str], kind: str) -> dict[str, str]:
    known = {spec["name"]: f"{spec['dtype']}{spec['shape'][1:]}" for spec in specs}
    return {f"{kind}{name}": known[name] for name in names}


@dataclass
class Replayed:
    """What came of golden decisions that a program has replayed.

    Attributes:
        decisions: how many there are; all are right.
        rounded: how many of them are not the same to the last bit.
        ties: how many of these are another action at a tie.
        largest: the largest difference of a number.
    """

    decisions: int = 0
    rounded: int = 0
    ties: int = 0
    largest: float = 0.0

    def __str__(self) -> str:
        told = f"{self.decisions} golden decisions, all as they were"
        if self.rounded:
            told += f", {self.rounded} of them but for rounding (numbers by at most {self.largest:.1e}"
            told += f", {self.ties} other actions at ties)" if self.ties else ")"
        return told


def selftest(player: Player, path: Path) -> Replayed:
    """Replay the golden decisions of a model folder with a program.

    Raises:
        UserError: a decision differs by more than another build's rounding, or the file cannot be read.
    """
    golden, replayed = read_golden(path, player.manifest), Replayed()
    choices = [name for name in action_names(player.manifest) if golden.outputs[name].dtype.kind != "f"]
    for number, (starts, tie, observations, outputs) in enumerate(golden):
        if starts:
            player.reset()
        found = player.step(observations)
        off = {name: array for name, array in outputs.items() if not np.array_equal(found[name], array, equal_nan=True)}
        for name, expected in off.items():
            if tie and name in choices:
                replayed.ties += 1
                continue
            difference, allowed = differences(found[name], expected, golden.tolerance)
            if not (difference <= allowed).all():
                what = _describe(name, found[name], expected, difference, allowed)
                raise UserError(f"{path}: decision {number} comes out otherwise: {what}; no rounding explains that")
            replayed.largest = max(replayed.largest, float(difference.max()))
        replayed.decisions += 1
        replayed.rounded += bool(off)
    return replayed


def differences(
    found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return by what each number differs, and by what it may: whole numbers and infinities by nothing."""
    one, other = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0, np.abs(one - other))
    allowed = tolerance * np.maximum(1, np.abs(other)) if expected.dtype.kind == "f" else np.zeros(other.shape)
    return np.nan_to_num(difference, nan=np.inf), np.where(np.isfinite(other), allowed, 0)


def _describe(
    name: str,
    found: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    difference: npt.NDArray[np.float64],
    allowed: npt.NDArray[np.float64],
) -> str:
    place = int((difference - allowed).argmax())
    if expected.size <= SHOWN:
        shown = f"{name} {found[0].tolist()}, expected {expected[0].tolist()}"
    else:
        shown = f"number {place} of {name} {found.flat[place]}, expected {expected.flat[place]}"
    return f"{shown} (differs by {difference.flat[place]:.3g}, {allowed.flat[place]:.3g} allowed)"
