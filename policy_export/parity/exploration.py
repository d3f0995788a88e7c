"""What only programs that explore have: states of noise that is correlated in time, and what choices are drawn by."""

from __future__ import annotations

from typing import Any

import numpy as np

from policy_export.device.arrays import Arrays
from policy_export.parity.comparison import check_kinds


def exploring(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with inputs, outputs and states of the programs that explore."""
    return manifest | manifest.get("random", {})


def noise_states(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the states that only programs that explore have: inputs by the outputs that are their next values."""
    known = {state["input"] for state in manifest["states"]}
    return {state["output"]: state["input"] for state in exploring(manifest)["states"] if state["input"] not in known}


def complete(inputs: Arrays, manifest: dict[str, Any]) -> Arrays:
    """Return a deterministic program's inputs, completed for one that explores, whose own states are at their start.

    These states are zeros; ``is_init`` is true where the deterministic program does not take it.
    """
    rows = len(next(iter(inputs.values())))
    added = {
        spec["name"]: np.full([rows, *spec["shape"][1:]], spec["name"] == "is_init", spec["dtype"])
        for spec in exploring(manifest)["inputs"]
        if spec["name"] not in inputs
    }
    return inputs | added


def without_noise(outputs: Arrays, manifest: dict[str, Any]) -> Arrays:
    """Return the outputs of a program that explores, without the states of its noise.

    Raises:
        UserError: names, dtypes or shapes are not what the manifest says.
    """
    rows = len(next(iter(outputs.values())))
    listed = exploring(manifest)["outputs"]
    check_kinds({spec["name"]: np.empty([rows, *spec["shape"][1:]], spec["dtype"]) for spec in listed}, outputs)
    noise = noise_states(manifest)
    return {name: array for name, array in outputs.items() if name not in noise}
