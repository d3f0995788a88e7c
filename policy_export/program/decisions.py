"""A policy's decision: an action, and the values from which it was chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.device.arrays import Arrays

# What an action was chosen by, in TorchRL's own words, best first: where a policy has distributions of values, as
# ``action_value``, their means come before those. A policy's other entries stay inside the program.
VALUES = ("expected_action_value", "action_value", "logits", "loc", "scale")


def is_choice(actions: npt.NDArray[Any]) -> bool:
    """Return whether actions are indices, which are equal or not, rather than vectors."""
    return bool(np.issubdtype(actions.dtype, np.integer))


def chosen_by(outputs: Arrays) -> npt.NDArray[Any] | None:
    """Return a number for each action that could have been chosen, ``(batch, actions)``.

    These are the first of ``VALUES`` with such numbers; none without them, or where actions are not single indices.
    """
    if not is_choice(outputs["action"]) or outputs["action"].ndim > 1:
        return None
    found = (outputs[name] for name in VALUES if name in outputs)
    return next((values for values in found if values.ndim == len(("batch", "actions"))), None)


def describe(outputs: Arrays, row: int = 0) -> str:
    """Return a row's action and the values from which it was chosen, but no distributions, as these are too long."""
    told = [name for name in VALUES if name in outputs and outputs[name][row].ndim <= 1]
    values = [f"{name} {np.round(outputs[name][row], 6).tolist()}" for name in told]
    return ", ".join([f"action {outputs['action'][row]}", *values])
