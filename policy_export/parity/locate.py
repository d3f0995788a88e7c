"""Where a program that disagrees with the trained policy goes wrong: the first tensor, its operator, its source line.

The reference is what eager PyTorch computes with the weights of ``policy.safetensors``. A fresh export of the policy is
compared with it first, and then gives the names and values of all intermediate tensors.
"""

from __future__ import annotations

from pathlib import Path

from policy_export.backends.registry import backends
from policy_export.config.profile import load_profile
from policy_export.device.arrays import Arrays
from policy_export.device.errors import first_line
from policy_export.localise.case import Case, locate_in_export, no_location
from policy_export.localise.compare import Location
from policy_export.program.step import load_step


def localise(policy: str, program: str, inputs: Arrays, tolerance: float) -> Location:
    """Find the first tensor of a deterministic program that differs from the trained policy's.

    Args:
        policy: its name.
        program: the name of a back end.
        inputs: one or a few rows for which the outputs differ, by the program's input names, ``(batch, ...)`` each.
        tolerance: largest difference of a number, or, in a tensor with numbers above 1, its share of the largest.

    Returns:
        a location; where nothing differs or nothing can be seen, it has no tensor but a note why.

    Raises:
        UserError: the policy itself cannot be loaded.
    """
    step = load_step(policy, load_profile(policy))
    try:
        backend = backends()[program]
        case = Case.of(policy, step, inputs, tolerance)
        return locate_in_export(case) or backend.inspect(case, Path("models", policy, backend.file))
    except Exception as error:  # a faulty program may fail in any way once it is taken to pieces
        return no_location(f"{program} cannot be taken to pieces: {first_line(error)}")
