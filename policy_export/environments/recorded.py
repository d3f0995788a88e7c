"""What was observed in an environment that is elsewhere, in a file of the user's.

The file is safetensors: an array ``(steps, ...)`` for each observation under its name, in the dtype and before any
transform, as the device sees it; ``is_init`` ``(steps,)`` bool, which is true where an episode begins; and, if they are
known, the actions that the user's own program took, under the names of the actions.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded

from policy_export.config.errors import ProfileError
from policy_export.config.profile import RecordedEnv
from policy_export.device.arrays import Arrays

ACTION, BEGINS = "action", "is_init"


def load_recording(env: RecordedEnv) -> tuple[Arrays, Arrays, list[range]]:
    """Read a recording.

    Returns:
        the observations and the actions by name, ``(steps, ...)`` each, and the steps of each episode.

    Raises:
        ProfileError: the file is missing or damaged, or its arrays do not fit each other.
    """
    place = f"env.recording: {env.recording!r}"
    try:
        arrays = load_file(Path(env.recording))
    except (OSError, SafetensorError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise ProfileError(f"{place}: {'no such file' if missing else f'not safetensors: {error}'}") from None
    begins = arrays.pop(BEGINS, None)
    if begins is None:
        raise ProfileError(f"{place}: lacks {BEGINS!r}, (steps,) bool, true where an episode begins")
    steps = begins.size
    if begins.dtype != np.bool_ or begins.shape not in ((steps,), (steps, 1)) or not steps or not begins.flat[0]:
        raise ProfileError(
            f"{place}: {BEGINS!r} is {begins.dtype}{list(begins.shape)}, must be bool (steps,) and begin with true"
        )
    for name, array in arrays.items():
        if not array.ndim or len(array) != steps:
            raise ProfileError(
                f"{place}: {name!r} has the shape {list(array.shape)}, must have {steps} steps as {BEGINS!r}"
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ProfileError(f"{place}: {name!r} holds numbers that are not finite")
    actions = {name: array for name, array in arrays.items() if name == ACTION}
    observations = {name: array for name, array in arrays.items() if name not in actions}
    if not observations:
        raise ProfileError(f"{place}: holds no observations, only {', '.join([*actions, BEGINS])}")
    starts = [*np.flatnonzero(begins).tolist(), steps]
    return observations, actions, [range(*each) for each in itertools.pairwise(starts)]


def recorded_specs(env: RecordedEnv) -> Composite:
    """Return the specs of recorded observations, without batch."""
    observations, _, _ = load_recording(env)
    return Composite({name: _spec(torch.from_numpy(array[:1])) for name, array in observations.items()})


def _spec(rows: torch.Tensor) -> TensorSpec:
    shape = rows.shape[1:]
    if rows.dtype == torch.bool:
        return Binary(shape=shape, dtype=torch.bool) if shape else Unbounded(shape, dtype=torch.bool)
    if rows.dtype == torch.uint8:
        return Bounded(0, 255, shape, dtype=torch.uint8)
    return Unbounded(shape, dtype=rows.dtype)
