"""Which of several equal values a program takes: decisions that hardly any episode has, so they are constructed.

Between two inputs for which a program decides differently there are some for which the two best values are equal to the
last bit. They are found by halving the way, which numbers that are floats can go; the values are the program's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policy_export.device.arrays import Arrays, Run
from policy_export.device.manifest import action_kinds
from policy_export.program.decisions import Kinds, components

PAIRS = 32  # of inputs
HALVINGS = 24  # after which the two ends are float32 numbers next to each other, or nearly so
AROUND = 16  # places that are tried there
SPREAD = 4.0  # of these, in lengths of what is left of the way

Flags = npt.NDArray[np.bool_]


class Ties(NamedTuple):
    """Rows with equal best values.

    Attributes:
        inputs: of the program, ``(rows, ...)`` each.
        outputs: the program's.
        name: of the action.
        place: of the choice among those that the action is made of.
        choice: both, such as ``action[1]``.
        taken: the choices, ``(rows,)``.
        equal: which choices have the largest value, ``(rows, n)``.
        origin: the row of the recorded inputs that each was made from, ``(rows,)``.
    """

    inputs: Arrays
    outputs: Arrays
    name: str
    place: int
    choice: str
    taken: npt.NDArray[np.int64]
    equal: Flags
    origin: npt.NDArray[np.int64]

    def decided_by(self, outputs: Arrays, kinds: Kinds) -> Ties:
        """Return what another program's outputs for these inputs say, for which its values need not be equal."""
        decided = Decided(outputs, *components(outputs, self.name, kinds[self.name])[self.place])
        return self._replace(outputs=outputs, taken=decided.taken, equal=decided.equal)

    @property
    def first(self) -> Flags:
        """Return for each row whether the first of the equal choices was taken."""
        taken: Flags = self.taken == self.equal.argmax(-1)
        return taken

    @property
    def last(self) -> Flags:
        """Return for each row whether the last of the equal choices was taken."""
        taken: Flags = self.taken == self.equal.shape[-1] - 1 - self.equal[:, ::-1].argmax(-1)
        return taken


class Decided(NamedTuple):
    """Outputs of a program, and of one of its choices what was taken ``(rows,)``, and the values ``(rows, n)``."""

    outputs: Arrays
    taken: npt.NDArray[np.int64]
    values: npt.NDArray[Any]

    @property
    def best(self) -> npt.NDArray[np.int64]:
        """Return the first choice with the largest value, ``(rows,)``."""
        return self.values.argmax(-1)

    @property
    def equal(self) -> Flags:
        """Return which choices have the largest value, ``(rows, n)``."""
        equal: Flags = self.values == self.values.max(-1, keepdims=True)
        return equal


class Ways:
    """The ways from some inputs to others: floats go there in a line, all else stays as it is.

    Args:
        inputs: of recorded decisions, one row each.
        seed: of the pairs.
    """

    def __init__(self, inputs: Arrays, seed: int) -> None:
        self.start, end = np.random.default_rng(seed).integers(len(next(iter(inputs.values()))), size=(2, PAIRS))
        self.begun = {name: array[self.start] for name, array in inputs.items()}
        if "is_init" in self.begun:  # where an episode starts, a state is ignored
            self.begun["is_init"] = np.zeros_like(self.begun["is_init"])
        self.goals = {name: array[end] for name, array in inputs.items() if array.dtype.kind == "f"}

    def at(self, shares: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> Arrays:
        """Return the inputs at these shares of the ways of some rows."""
        moved = {}
        for name, goal in self.goals.items():
            share = shares.reshape(-1, *[1] * (goal.ndim - 1))
            moved[name] = (self.begun[name][rows] * (1 - share) + goal[rows] * share).astype(goal.dtype)
        return {name: array[rows] for name, array in self.begun.items()} | moved


def find_ties(run: Run, inputs: Arrays, manifest: dict[str, Any], seed: int) -> Iterator[Ties]:
    """Yield the rows with equal values that are found for each choice which has values.

    Args:
        run: a deterministic program.
        inputs: of recorded decisions, one row each.
        manifest: of the program.
        seed: of the pairs, and of the places that are tried.
    """
    ways = Ways(inputs, seed)
    if not ways.goals:
        return
    for name, kind in action_kinds(manifest).items():
        known = components(run(ways.at(np.zeros(1), np.zeros(1, int))), name, kind)
        for place, (_, values) in enumerate(known):
            if values is not None and values.shape[-1] > 1:

                def decide(feed: Arrays, name: str = name, kind: Any = kind, place: int = place) -> Decided:
                    outputs = run(feed)
                    return Decided(outputs, *components(outputs, name, kind)[place])

                if (found := _ties_of(decide, ways, seed)) is not None:
                    inputs, decided, origin = found
                    choice = f"{name}[{place}]" if len(known) > 1 else name
                    yield Ties(inputs, decided.outputs, name, place, choice, decided.taken, decided.equal, origin)


def _ties_of(
    decide: Callable[[Arrays], Decided], ways: Ways, seed: int
) -> tuple[Arrays, Decided, npt.NDArray[np.int64]] | None:
    low, high, rows = np.zeros(PAIRS), np.ones(PAIRS), np.arange(PAIRS)
    first = decide(ways.at(low, rows)).best
    rows = rows[first != decide(ways.at(high, rows)).best]
    if not len(rows):
        return None
    first, low, high = first[rows], low[rows], high[rows]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        same = decide(ways.at(middle, rows)).best == first
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    around = np.random.default_rng(seed).uniform(-SPREAD, SPREAD, (AROUND, len(rows)))
    rows = np.tile(rows, AROUND)
    tried = ways.at((low + (high - low) * around).clip(0, 1).ravel(), rows)
    decided = decide(tried)
    tied = decided.equal.sum(-1) > 1
    if not tied.any():
        return None
    shown, answered = ({key: array[tied] for key, array in arrays.items()} for arrays in (tried, decided.outputs))
    return shown, Decided(answered, decided.taken[tied], decided.values[tied]), ways.start[rows[tied]]


def rule_of(found: list[Ties]) -> str | None:
    """Return which of equal choices a policy takes, ``first`` or ``last``; none where it takes neither always."""
    return next(
        (rule for rule in ("first", "last") if found and all(getattr(ties, rule).all() for ties in found)), None
    )
