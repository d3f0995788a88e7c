"""What a policy decides: an action, and the values it was chosen by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from play import Arrays

# What an action was chosen by, in TorchRL's own words. A policy's other entries stay inside the program.
VALUES = ("action_value", "expected_action_value", "logits", "loc", "scale")


def is_choice(actions: npt.NDArray[Any]) -> bool:
    """Whether actions are indices, which are the same or are not, rather than vectors."""
    return bool(np.issubdtype(actions.dtype, np.integer))


def describe(outputs: Arrays, row: int = 0) -> str:
    """A row's action and the values it was chosen by."""
    values = [f"{name} {np.round(outputs[name][row], 6).tolist()}" for name in VALUES if name in outputs]
    return ", ".join([f"action {outputs['action'][row]}", *values])
