"""Check that a program decides for each row alone, whatever else is in the batch, and for odd inputs too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.device.arrays import Arrays, Run
from policy_export.device.environments import make_environment
from policy_export.device.errors import UserError
from policy_export.device.manifest import read_manifest
from policy_export.parity.comparison import Batch, Comparison
from policy_export.parity.recorded_inputs import RecordedInputs

BATCHES = (1, 2, 7, 64)
ROWS = 448  # each of these batches fits in evenly
ODD_ROWS = 16


def run_batches(run: Run, inputs: Arrays, size: int) -> Arrays:
    """Return the outputs for all rows, computed in batches of ``size``."""
    rows = len(next(iter(inputs.values())))
    outputs = [
        run({name: array[start : start + size] for name, array in inputs.items()}) for start in range(0, rows, size)
    ]
    return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}


def reorder(inputs: Arrays, order: np.ndarray[Any, Any]) -> Arrays:
    return {name: array[order] for name, array in inputs.items()}


def odd_inputs(inputs: Arrays, manifest: dict[str, Any], observation: str, seed: int) -> Iterator[tuple[str, Arrays]]:
    """Yield unusual inputs, or inputs in another memory layout: a name for messages, and ``ODD_ROWS`` rows."""
    random = np.random.default_rng(seed)
    first = {name: array[:ODD_ROWS] for name, array in inputs.items()}
    seen = first[observation]
    if np.issubdtype(seen.dtype, np.integer):
        largest = np.iinfo(seen.dtype).max
        yield f"all {largest}", first | {observation: np.full_like(seen, largest)}
        noise = random.integers(largest, size=seen.shape, dtype=seen.dtype, endpoint=True)
    else:
        noise = random.standard_normal(seen.shape).astype(seen.dtype)
    yield "all zero", first | {observation: np.zeros_like(seen)}
    yield "noise", first | {observation: noise}
    reset = np.stack([make_environment(manifest, seed + row).observation for row in range(len(seen))])
    yield "after a reset", first | {observation: reset}
    spread = {name: np.repeat(array, 2, -1)[..., ::2] for name, array in first.items()}
    yield "not contiguous", spread
    yield "in Fortran's order", {name: np.asfortranarray(array) for name, array in first.items()}
    if "is_init" in first:
        begins = random.random(first["is_init"].shape) < 0.5
        yield "some rows beginning", first | {"is_init": begins}


def check_batch_invariance(
    eager: Run,
    programs: dict[str, Run],
    recorded_inputs: RecordedInputs,
    manifest: dict[str, Any],
    settings: params.ParityCheck,
) -> dict[str, Comparison]:
    """Run deterministic programs on the same rows alone, in other batches and in another order, and on odd inputs.

    Raises:
        UserError: a program's outputs are not those of eager.
    """
    places, inputs = recorded_inputs
    states = {state["output"]: state["input"] for state in manifest["states"]}
    (observation,) = set(inputs) - {*states.values(), "is_init"}
    expected = run_batches(eager, inputs, max(BATCHES))
    shown = [(f"in batches of {size}: ", size, places, inputs, expected) for size in BATCHES]
    order = np.random.default_rng(settings.seed).permutation(len(places))
    others = [places[row] for row in order]
    shown.append(("in another order: ", max(BATCHES), others, reorder(inputs, order), reorder(expected, order)))
    for what, rows in odd_inputs(inputs, manifest, observation, settings.seed):
        shown.append((f"{what}: ", ODD_ROWS, places[:ODD_ROWS], rows, eager(rows)))
    results = {}
    for name, run in programs.items():
        results[name] = Comparison(compares_actions=True, tolerance=settings.tolerance, states=set(states))
        try:
            for context, size, where, rows, wanted in shown:
                results[name].compare(Batch(where, wanted, run_batches(run, rows, size), rows, context))
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
