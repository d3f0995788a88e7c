"""Check that a program decides for each row alone, whatever else is in the batch, and for odd inputs too.

The odd ones include a batch that is larger than any other, many calls of one process, and equal values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.device.arrays import Arrays, Run
from policy_export.device.environments import is_playable, make_environment
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds, observation_names, read_manifest
from policy_export.device.player import Player
from policy_export.parity.comparison import Batch, Comparison, Place
from policy_export.parity.recorded_inputs import RecordedInputs
from policy_export.parity.ties import Ties, find_ties, rule_of

BATCHES = (1, 2, 7, 64)
ROWS = 448  # each of these batches fits in evenly
LARGE = 1001  # rows of one batch, in which rows come again
SOAKED = 2  # rows that are shown alone, in turns, many times
ODD_ROWS = 16
RESETS = 16  # environments that are reset, each with its own seed


def run_batches(run: Run, inputs: Arrays, size: int) -> Arrays:
    """Return the outputs for all rows, computed in batches of ``size``."""
    rows = len(next(iter(inputs.values())))
    outputs = [
        run({name: array[start : start + size] for name, array in inputs.items()}) for start in range(0, rows, size)
    ]
    return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}


def reorder(inputs: Arrays, order: np.ndarray[Any, Any]) -> Arrays:
    return {name: array[order] for name, array in inputs.items()}


def is_free(array: npt.NDArray[Any]) -> bool:
    """Return whether an observation may have any value: bytes may, and numbers, but no indices, flags and masks."""
    return bool(array.dtype.kind == "f" or (array.dtype == np.uint8 and array.max() > 1))


def odd_inputs(inputs: Arrays, manifest: dict[str, Any], seed: int) -> Iterator[tuple[str, Arrays]]:
    """Yield unusual inputs, or inputs in another memory layout: a name for messages, and ``ODD_ROWS`` rows."""
    random = np.random.default_rng(seed)
    first = {name: array[:ODD_ROWS] for name, array in inputs.items()}
    seen = {name: first[name] for name in observation_names(manifest) if is_free(inputs[name])}
    if scanned := {name: array for name, array in seen.items() if array.dtype == np.uint8}:
        largest = np.iinfo(np.uint8).max
        yield f"all {largest}", first | {name: np.full_like(array, largest) for name, array in scanned.items()}
    if seen:
        yield "all zero", first | {name: np.zeros_like(array) for name, array in seen.items()}
        yield "noise", first | {name: _noise(array, random) for name, array in seen.items()}
    if is_playable(manifest):
        player = Player(lambda arrays: arrays, manifest)
        resets = [player.read(make_environment(manifest, seed + row).observations) for row in range(RESETS)]
        rows = np.arange(len(next(iter(first.values())))) % RESETS
        yield "after a reset", first | {name: np.stack([shown[name] for shown in resets])[rows] for name in resets[0]}
    spread = {name: np.repeat(array, 2, -1)[..., ::2] for name, array in first.items()}
    yield "not contiguous", spread
    yield "in Fortran's order", {name: np.asfortranarray(array) for name, array in first.items()}
    if "is_init" in first:
        begins = random.random(first["is_init"].shape) < 0.5
        yield "some rows beginning", first | {"is_init": begins}


def _noise(array: npt.NDArray[Any], random: np.random.Generator) -> npt.NDArray[Any]:
    if array.dtype == np.uint8:
        return random.integers(np.iinfo(np.uint8).max, size=array.shape, dtype=np.uint8, endpoint=True)
    return random.standard_normal(array.shape).astype(array.dtype)


def with_numbers(outputs: Arrays) -> npt.NDArray[np.bool_]:
    """Return for each row whether all outputs are numbers, infinite ones among them."""
    rows = len(next(iter(outputs.values())))
    numbers = [array for array in outputs.values() if array.dtype.kind == "f"]
    return np.all([~np.isnan(array.reshape(rows, -1)).any(1) for array in numbers] or [np.ones(rows, bool)], 0)


def soak(run: Run, inputs: Arrays, calls: int) -> Iterator[tuple[int, int, Arrays]]:
    """Call a program many times with a few rows in turns, and yield what it does not always answer.

    Yields:
        the number of the call, the row, and the outputs, where these are not to the last bit those of the first time.
    """
    rows = min(SOAKED, len(next(iter(inputs.values()))))
    feeds = [{name: array[[row]] for name, array in inputs.items()} for row in range(rows)]
    first = [run(feed) for feed in feeds]
    for call in range(calls):
        row = call % rows
        outputs = run(feeds[row])
        if any(outputs[name].tobytes() != array.tobytes() for name, array in first[row].items()):
            yield call, row, outputs


def check_ties(found: Iterable[Ties], rule: str, eager: Run, places: list[Place], result: Comparison) -> None:
    """Check that a program takes the one of equal choices that the policy takes: the ``first`` or the ``last``.

    A policy may choose by what it computes of its values, such as probabilities: equal values do not make these equal
    to the last bit. Where the policy itself takes another choice than by its rule, nothing is asked of the program.
    """
    for ties in found:
        wanted = eager(ties.inputs)
        if not getattr(ties.decided_by(wanted, result.kinds), rule).all():
            continue
        result.equal_values += len(ties.taken)
        batch = Batch(
            [places[row] for row in ties.origin],
            wanted,
            ties.outputs,
            ties.inputs,
            "constructed from recorded inputs: ",
        )
        for row in np.flatnonzero(~getattr(ties, rule)).tolist():
            result.fail(batch, row, f"not the {rule} of equal values is taken in {ties.choice}")


def check_batch_invariance(
    eager: Run,
    programs: dict[str, Run],
    recorded_inputs: RecordedInputs,
    manifest: dict[str, Any],
    settings: params.ParityCheck,
) -> dict[str, Comparison]:
    """Run deterministic programs on the same rows alone, in other batches, in another order, often, and on odd inputs.

    Raises:
        UserError: a program's outputs are not those of eager.
    """
    places, inputs = recorded_inputs
    states = {state["output"] for state in manifest["states"]}
    expected = run_batches(eager, inputs, max(BATCHES))
    shown = [(f"in batches of {size}: ", size, places, inputs, expected) for size in BATCHES]
    order = np.random.default_rng(settings.seed).permutation(len(places))
    others = [places[row] for row in order]
    again = np.arange(LARGE) % len(places)
    repeated = [places[row] for row in again]
    shown.append((f"in a batch of {LARGE}: ", LARGE, repeated, reorder(inputs, again), reorder(expected, again)))
    shown.append(("in another order: ", max(BATCHES), others, reorder(inputs, order), reorder(expected, order)))
    for what, rows in odd_inputs(inputs, manifest, settings.seed):
        answers = eager(rows)
        known = with_numbers(answers)  # what the policy itself has no answer to, no program has to answer
        if known.all():
            shown.append((f"{what}: ", ODD_ROWS, places[:ODD_ROWS], rows, answers))
        elif known.any():
            where = [place for place, answered in zip(places, known, strict=False) if answered]
            shown.append((f"{what}: ", ODD_ROWS, where, reorder(rows, known), reorder(answers, known)))
    rule = rule_of(list(find_ties(eager, inputs, manifest, settings.seed)))
    results = {}
    for name, run in programs.items():
        results[name] = Comparison(
            compares_actions=True, tolerance=settings.tolerance, states=states, kinds=action_kinds(manifest)
        )
        try:
            for context, size, where, rows, wanted in shown:
                results[name].compare(Batch(where, wanted, run_batches(run, rows, size), rows, context, size))
            for call, row, outputs in soak(run, inputs, settings.soak_calls):
                alone, wanted = (reorder(arrays, np.array([row])) for arrays in (inputs, expected))
                results[name].compare(Batch([places[row]], wanted, outputs, alone, f"at the {call}th call again: "))
            if rule is not None:
                check_ties(find_ties(run, inputs, manifest, settings.seed), rule, eager, places, results[name])
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    return results


def check_batch_invariance_by_name(
    policy: str, programs: list[str], recorded_inputs: RecordedInputs, settings: params.ParityCheck
) -> dict[str, Comparison]:
    """Run :func:`check_batch_invariance` for some of a policy's programs, by their names."""
    eager, *runs = (runtimes.load_by_name(policy, name, threads=1) for name in ("eager", *programs))
    manifest = read_manifest(Path("models", policy))
    return check_batch_invariance(eager, dict(zip(programs, runs, strict=True)), recorded_inputs, manifest, settings)
