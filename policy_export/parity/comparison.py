"""Rows of a program's outputs compared with eager's: every number, and every decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policy_export.device.arrays import Arrays
from policy_export.device.errors import UserError
from policy_export.program.decisions import (
    ONE_INDEX,
    Kinds,
    by_row,
    components,
    describe,
    is_choice,
    is_value,
    margins,
    preferring,
    probabilities,
    reach,
    scale,
)

DRIFT_STEPS = 100  # of an episode, for which the largest difference of a state is reported
MAX_FAILURES = 100  # that are kept of one program


class Place(NamedTuple):
    """The origin of a row: the episode's seed, and the step."""

    seed: int
    step: int

    def __str__(self) -> str:
        return f"episode with seed {self.seed}, step {self.step}"


@dataclass(frozen=True)
class Batch:
    """Rows that are compared.

    Attributes:
        places: of the rows.
        eager: the policy's outputs.
        outputs: the program's.
        inputs: the program's.
        context: how the rows were computed, for messages.
        size: number of rows that the program computed together, one such part after the other; none for all.
    """

    places: list[Place]
    eager: Arrays
    outputs: Arrays
    inputs: Arrays
    context: str = ""
    size: int | None = None

    def together(self, row: int) -> slice:
        """Return the rows that were computed together with one."""
        size = self.size or len(self.places)
        return slice(row // size * size, row // size * size + size)


@dataclass(frozen=True)
class Failure:
    """A decision in which a program is wrong.

    Attributes:
        place: of the decision.
        what: describes the fault.
        found: the program's action and values, of one row.
        expected: eager's.
        inputs: of the program, all rows that it computed together, where they are kept.
        row: of the decision among them.
    """

    place: Place
    what: str
    found: Arrays
    expected: Arrays
    inputs: Arrays | None = None
    row: int = 0

    def __str__(self) -> str:
        return f"{self.place}: {self.what}: {describe(self.found)}, eager {describe(self.expected)}"


def decision(outputs: Arrays, row: int, kinds: Kinds = ONE_INDEX) -> Arrays:
    """Return actions and values of a row."""
    return {name: array[[row]] for name, array in outputs.items() if name in kinds or is_value(name)}


class Verdict(NamedTuple):
    """An assessment of an action that differs from eager's.

    Attributes:
        margin: between the best of eager's values and that of the choice taken; infinite where there is no such
            choice. Of several choices, the largest.
        difference: the largest of the values.
        tie: whether rounding explains the action.
    """

    margin: float
    difference: float
    tie: bool


def compare_action(found: Arrays, expected: Arrays, tolerance: float, kinds: Kinds = ONE_INDEX) -> Verdict | None:
    """Return a verdict on a row in which a program chose another action than eager did.

    Errors of ``d`` in the values can change the order of two values only if these are at most ``2 d`` apart.

    Args:
        found: the program's :func:`decision`.
        expected: eager's.
        tolerance: largest difference of a value that may be called rounding, as :class:`Comparison` has it.
        kinds: of the actions.

    Returns:
        none where no values are known, so that rounding cannot be the explanation.
    """
    verdicts = []
    for name, kind in kinds.items():
        pairs = zip(components(found, name, kind), components(expected, name, kind), strict=True)
        for (taken, given), (other, known) in pairs:
            if taken[0] == other[0]:
                continue
            if given is None or known is None:
                return None
            verdicts.append(_judge(int(taken[0]), given[0], known[0].astype(np.float64), tolerance))
    if not verdicts:
        return None
    return Verdict(
        max(verdict.margin for verdict in verdicts),
        max(verdict.difference for verdict in verdicts),
        tie=all(verdict.tie for verdict in verdicts),
    )


def _judge(taken: int, given: npt.NDArray[Any], values: npt.NDArray[Any], tolerance: float) -> Verdict:
    with np.errstate(invalid="ignore"):  # what is no number is no tie
        margin = float(values.max() - values[taken]) if 0 <= taken < len(values) else np.inf
        apart = np.where(given == values, 0, np.abs(given - values))
        rounded = bool((apart <= tolerance * scale(values[None])[0]).all())
    difference = float(apart.max())
    return Verdict(margin, difference, tie=margin <= 2 * difference and rounded)


def describe_tie(place: Place, verdict: Verdict) -> dict[str, Any]:
    """Return a tie as the report lists it."""
    return {**place._asdict(), "margin": verdict.margin, "difference": verdict.difference}


def differing(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows differ, ``(rows,)``."""
    different: npt.NDArray[np.bool_] = (found != expected).reshape(len(expected), -1).any(1)
    return different


@dataclass
class Comparison:
    """The differences between one program and eager.

    Attributes:
        compares_actions: whether its actions must be eager's; those of a program that explores need not.
        tolerance: largest difference of a number, in shares of what is expected where that is above 1, as float32
            then has fewer digits behind the point; of a state, in shares of its largest number.
        states: names of the outputs that are next states.
        kinds: of the actions.
        differences: the largest of each row, ``(rows,)`` float32 an output; infinite where it is no number.
        margins: between eager's two best values, ``(rows,)`` float32; empty where actions have no value each.
        different_actions: number of those that are faults.
        ties: different actions that are no faults, as eager's values of both are closer than rounding can separate.
        failed: number of faults.
        failures: the first of them, ``MAX_FAILURES`` at most.
        equal_values: number of decisions between equal values that were constructed.
    """

    compares_actions: bool
    tolerance: float
    states: set[str]
    kinds: Kinds = field(default_factory=lambda: ONE_INDEX)
    observations: int = 0
    differences: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)
    margins: list[npt.NDArray[np.float32]] = field(default_factory=list)
    state_drift: dict[str, list[float]] = field(default_factory=dict)
    different_actions: int = 0
    ties: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    equal_values: int = 0

    @property
    def max_abs_difference(self) -> dict[str, float]:
        """Return the largest difference of each output."""
        return {name: float(max(part.max() for part in parts)) for name, parts in self.differences.items()}

    def percentiles(self, percents: Iterable[float]) -> dict[str, dict[str, float]]:
        """Return percentiles of each output's differences, by name, such as ``p99_9``."""
        return {
            name: {
                f"p{percent:g}".replace(".", "_"): float(np.percentile(np.concatenate(parts), percent, method="higher"))
                for percent in percents
            }
            for name, parts in self.differences.items()
        }

    def compare(self, batch: Batch) -> None:
        """Compare the outputs of a batch.

        Raises:
            UserError: the outputs have other names, dtypes or shapes.
        """
        eager, rows = batch.eager, len(batch.places)
        check_kinds(eager, batch.outputs)
        self.observations += rows
        for name, expected in eager.items():
            if name in self.kinds and (is_choice(expected) or not self.compares_actions):
                continue
            apart = distance(batch.outputs[name], expected)
            difference = apart.max(1, initial=0)
            self.differences.setdefault(name, []).append(difference)
            allowed = self.tolerance * np.maximum(scale(expected), reach(self.kinds.get(name, {})))
            if name in self.states:  # which may be large: an LSTM sums its cell's state up
                self._drift(name, batch.places[0].step // DRIFT_STEPS, float(difference.max()))
                allowed = allowed.max(1, keepdims=True, initial=0)
            for row in np.flatnonzero((apart > allowed).any(1)).tolist():
                if self._prefers_equal(batch, row, name):
                    continue
                place = int((apart[row] - allowed[row]).argmax())
                most = allowed[row, min(place, allowed.shape[1] - 1)]
                found = f"{name} differs by {apart[row, place]:.3g}"
                self.fail(batch, row, f"{found} (parity_check.tolerance allows {most:.3g})")
        if self.compares_actions and (chosen := [name for name in self.kinds if is_choice(eager[name])]):
            apart_by = [margin for name in chosen if (margin := margins(eager, name, self.kinds[name])) is not None]
            if apart_by:
                self.margins.append(np.min(apart_by, 0))
            different = [differing(batch.outputs[name], eager[name]) for name in chosen]
            for row in np.flatnonzero(np.any(different, 0)).tolist():
                self._compare_action(batch, row)

    def _drift(self, name: str, part: int, largest: float) -> None:
        drift = self.state_drift.setdefault(name, [])
        drift += [0.0] * (part + 1 - len(drift))
        drift[part] = max(drift[part], largest)

    def _prefers_equal(self, batch: Batch, row: int, name: str) -> bool:
        """Record a tie where rounding explains that another choice is drawn most often, and nothing else differs."""
        action = name.removesuffix("_probs")
        if action == name or action not in self.kinds:
            return False
        kind = self.kinds[action]
        ones, others = ({key: array[[row]] for key, array in each.items()} for each in (batch.outputs, batch.eager))
        pairs = zip(probabilities(ones, action, kind), probabilities(others, action, kind), strict=True)
        if any(np.abs(np.sort(one) - np.sort(other)).max() > self.tolerance for one, other in pairs):
            return False
        found, expected = (preferring(each, action, kind) for each in (ones, others))
        verdict = compare_action(found, expected, self.tolerance, {action: kind})
        if verdict is None or not verdict.tie:
            return False
        self.ties.append(describe_tie(batch.places[row], verdict))
        return True

    def _compare_action(self, batch: Batch, row: int) -> None:
        """Record another action as a fault, or as a tie where rounding explains it."""
        found, expected = (decision(each, row, self.kinds) for each in (batch.outputs, batch.eager))
        verdict = compare_action(found, expected, self.tolerance, self.kinds)
        if verdict is not None and verdict.tie:
            self.ties.append(describe_tie(batch.places[row], verdict))
            return
        self.different_actions += 1
        margin = "" if verdict is None else f" (eager's margin {verdict.margin:.3g})"
        self.fail(batch, row, f"another action{margin}")

    def fail(self, batch: Batch, row: int, what: str) -> None:
        """Record a fault of a row."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            rows = batch.together(row)
            inputs = None if self.failures else {name: array[rows] for name, array in batch.inputs.items()}
            found, expected = (decision(each, row, self.kinds) for each in (batch.outputs, batch.eager))
            what = batch.context + what
            self.failures.append(Failure(batch.places[row], what, found, expected, inputs, row - rows.start))


def check_kinds(eager: Arrays, outputs: Arrays) -> None:
    """Compare the outputs' names, dtypes and shapes with eager's.

    Raises:
        UserError: they differ.
    """
    if set(outputs) != set(eager):
        raise UserError(f"outputs are {sorted(outputs)}, expected {sorted(eager)}")
    for name, expected in eager.items():
        found = outputs[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            kinds = [f"{array.dtype}{list(array.shape)}" for array in (found, expected)]
            raise UserError(f"output {name} is {kinds[0]}, expected {kinds[1]}")


def distance(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the absolute difference of each number, ``(rows, numbers)``; infinite where there is no number."""
    # What a mask has made infinite is equal if it is; what is no number never is.
    with np.errstate(invalid="ignore"):
        apart = np.subtract(found, expected, dtype=np.result_type(found.dtype, np.float32))
    apart = np.where(np.isinf(expected) & (found == expected), 0, apart)
    distances: npt.NDArray[np.float32] = np.abs(by_row(apart)).astype(np.float32)
    distances[np.isnan(distances)] = np.inf
    return distances
