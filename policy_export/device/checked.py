"""Programs that check what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import Arrays, Run
from .errors import UserError


class CheckedProgram:
    """A program that refuses inputs that do not fit it.

    Runtimes differ in what they refuse: some read the bytes of another dtype, or compute on any shape that happens to
    fit.

    Args:
        name: the program's name, for messages.
        run: the program.
        inputs: ``name``, ``dtype`` and ``shape`` of each; the first dimension is the batch.
        facts: what the program says of itself, as far as it does.
    """

    def __init__(
        self, name: str, run: Run, inputs: Sequence[dict[str, Any]], facts: Mapping[str, Any] | None = None
    ) -> None:
        self.name, self.run, self.facts = name, run, facts
        self.inputs = {spec["name"]: (np.dtype(spec["dtype"]), tuple(spec["shape"][1:])) for spec in inputs}

    def __call__(self, arrays: Arrays) -> Arrays:
        """Return all outputs.

        Raises:
            UserError: an input is missing or unknown, has another dtype or shape, or has no rows or another number of
                rows than the rest; or the runtime fails.
        """
        rows = set()
        for name, (dtype, shape) in self.inputs.items():
            array = arrays.get(name)
            if not (isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim and array.shape[1:] == shape):
                raise UserError(f"{self.name}: {self.describe_mistake(arrays)}")
            rows.add(len(array))
        if len(arrays) != len(self.inputs) or len(rows) != 1 or 0 in rows:
            raise UserError(f"{self.name}: {self.describe_mistake(arrays)}")
        try:
            return self.run(arrays)
        except Exception as error:  # runtimes have no base class for theirs
            reason = str(error).splitlines() or [type(error).__name__]
            raise UserError(f"{self.name}: does not run on {rows.pop()} rows: {reason[0]}") from error

    def describe_mistake(self, arrays: dict[str, Any]) -> str:
        """Describe what is wrong with inputs."""
        kinds = {
            name: f"{dtype}[{', '.join(['batch', *map(str, shape)])}]" for name, (dtype, shape) in self.inputs.items()
        }
        if missing := [f"{name}, {kind}" for name, kind in kinds.items() if name not in arrays]:
            return f"input {missing[0]}, is missing; found {', '.join(arrays) or 'none'}"
        if unknown := [name for name in arrays if name not in kinds]:
            return f"input {unknown[0]} is unknown; expected {', '.join(kinds)}"
        for name, (dtype, shape) in self.inputs.items():
            array = arrays[name]
            if not isinstance(array, np.ndarray):
                return f"input {name} is a {type(array).__name__}, expected an array {kinds[name]}"
            if array.dtype != dtype or not array.ndim or array.shape[1:] != shape:
                return f"input {name} is {array.dtype}{list(array.shape)}, expected {kinds[name]}"
        rows = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        return f"inputs must have the same number of rows, at least 1, found {rows}"
