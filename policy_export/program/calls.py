"""Functions of tensors as functions of arrays. PyTorch is imported only where one is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy_export.device.arrays import Arrays, Run
from policy_export.device.checked import CheckedProgram
from policy_export.device.errors import UserError, first_line

if TYPE_CHECKING:
    import torch


def on_arrays(function: Callable[..., dict[str, torch.Tensor]]) -> Run:
    """Return a function of named tensors as a function of named arrays.

    The function takes arrays of any strides, and read-only ones. AOTInductor's programs read contiguous memory without
    checking that they got it, and PyTorch's tensors are writable.
    """
    import numpy as np
    import torch

    def run(inputs: Arrays) -> Arrays:
        tensors = {
            name: torch.from_numpy(a if a.flags.carray else np.require(a, None, ["C", "W"]))
            for name, a in inputs.items()
        }
        return {name: tensor.numpy() for name, tensor in function(**tensors).items()}

    return run


def wrap(module: Callable[..., dict[str, torch.Tensor]]) -> Run:
    """Return a module with named tensors as a function of named arrays, without gradients."""
    import torch

    @torch.no_grad()
    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return module(**inputs)

    return on_arrays(call)


def opened(
    path: Path, threads: int, load: Callable[[], Run], facts: Callable[[], dict[str, Any]], *, explores: bool
) -> Run:
    """Open a file that PyTorch runs, as a program that checks its inputs.

    For a program that explores, PyTorch's random numbers get a new seed: every process starts with the same seed, but
    such a program must not act the same after every start.

    Args:
        path: of the program.
        threads: cores of PyTorch.
        load: reads the file.
        facts: are known once it is loaded; ``inputs`` has ``name``, ``dtype`` and ``shape`` of each.
        explores: whether the program draws random numbers.

    Raises:
        UserError: the file is missing or damaged, or cannot run here.
    """
    import torch

    torch.set_num_threads(threads)
    if explores:
        torch.seed()
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro`")
    try:
        run = load()
        return CheckedProgram(str(path), run, facts()["inputs"])
    except UserError:
        raise
    except Exception as error:  # both loaders raise whatever the archive's reader does
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
