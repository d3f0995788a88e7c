"""A policy's decision: actions, and the values from which they were chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_export.device.arrays import Arrays

# What an action was chosen by, in TorchRL's own words, best first: where a policy has distributions of values, as
# ``action_value``, their means come before those. A policy's other entries stay inside the program.
VALUES = ("expected_action_value", "action_value", "logits", "loc", "scale")

Kinds = Mapping[str, Mapping[str, Any]]
ONE_INDEX: Kinds = {"action": {"kind": "index"}}


def is_value(name: str) -> bool:
    """Return whether an output is what an action was chosen by, such as ``logits`` or ``agents_logits``."""
    return any(name == value or name.endswith(f"_{value}") for value in VALUES)


def is_choice(actions: npt.NDArray[Any]) -> bool:
    """Return whether actions are choices, which are equal or not, rather than numbers that are nearly so."""
    return not np.issubdtype(actions.dtype, np.floating)


def components(outputs: Arrays, name: str, kind: Mapping[str, Any]) -> list[tuple[npt.NDArray[Any], Any]]:
    """Return the choices that an action is made of, each with what it was chosen by.

    Args:
        outputs: of a program.
        name: of the action.
        kind: of the action, as :func:`policy_export.device.manifest.action_kinds` has it.

    Returns:
        for each choice, what was taken ``(batch,)`` and a number for each that could have been, ``(batch, n)``; none
        where these are not known. Nothing for actions that are numbers.
    """
    action = outputs[name]
    if not is_choice(action) and kind["kind"] != "one_hot":
        return []
    group = name.rpartition("action")[0]  # of agents, which have values of their own
    known = [outputs[f"{group}{value}"] for value in VALUES if f"{group}{value}" in outputs]
    if kind["kind"] == "one_hot":
        return _one_hot(action, known, np.cumsum(kind.get("sizes", [action.shape[-1]]))[:-1])
    flat = action.reshape(len(action), -1)
    found = [columns for values in known if (columns := _by_column(values, action, kind)) is not None]
    return list(zip(flat.T, found[0] if found else [None] * flat.shape[1], strict=True))


def probabilities(outputs: Arrays, name: str, kind: Mapping[str, Any]) -> list[npt.NDArray[Any]]:
    """Return what each choice of an action is drawn by, ``(batch, n)`` each; nothing where it is not known."""
    if (drawn_by := outputs.get(f"{name}_probs")) is None:
        return []
    action = outputs[name]
    if kind["kind"] == "bits" and drawn_by.shape == action.shape:
        return [np.stack([1 - column, column], -1) for column in by_row(drawn_by).T]
    if kind["kind"] == "one_hot":
        parts = _one_hot(action, [drawn_by], np.cumsum(kind.get("sizes", [action.shape[-1]]))[:-1])
        return [part for _, part in parts if part is not None]
    return [] if not is_choice(action) else _by_column(drawn_by, action, kind) or []


def preferring(outputs: Arrays, name: str, kind: Mapping[str, Any]) -> Arrays:
    """Return outputs with the action that is drawn most often, in its own form, where that is known."""
    action, parts = outputs[name], probabilities(outputs, name, kind)
    best = [part.argmax(-1) for part in parts]
    if kind["kind"] == "one_hot":
        vectors = [np.eye(part.shape[-1])[index] for part, index in zip(parts, best, strict=True)]
        best = [np.concatenate(vectors, -1)] if vectors else []
    return outputs | ({name: np.stack(best, -1).reshape(action.shape).astype(action.dtype)} if best else {})


def _one_hot(
    action: npt.NDArray[Any], known: list[npt.NDArray[Any]], places: npt.NDArray[Any]
) -> list[tuple[npt.NDArray[Any], Any]]:
    values = next((values for values in known if values.shape == action.shape), None)
    found: list[tuple[npt.NDArray[Any], Any]] = []
    parts = [None] * (len(places) + 1) if values is None else np.split(values, places, -1)
    for taken, numbers in zip(np.split(action, places, -1), parts, strict=True):
        chosen = taken.argmax(-1).reshape(len(action), -1)
        for column in range(chosen.shape[1]):
            every = None if numbers is None else numbers.reshape(len(action), -1, numbers.shape[-1])[:, column]
            found.append((chosen[:, column], every))
    return found


def _by_column(values: npt.NDArray[Any], action: npt.NDArray[Any], kind: Mapping[str, Any]) -> list[Any] | None:
    """Return, for each number of an action, a number for each choice, ``(batch, n)``; none where values are none."""
    rows, columns = len(action), action[0].size
    if values.ndim == action.ndim + 1 and values.shape[:-1] == action.shape:
        return list(np.moveaxis(values.reshape(rows, columns, -1), 1, 0))
    if kind["kind"] == "bits" and values.shape == action.shape:
        flat = values.reshape(rows, columns)
        return [np.stack([np.zeros_like(flat[:, column]), flat[:, column]], -1) for column in range(columns)]
    sizes = np.ravel(kind.get("sizes", ()))
    if kind["kind"] == "indices" and values.ndim == len(("batch", "choices")) and values.shape[1] == sizes.sum():
        return np.split(values, np.cumsum(sizes)[:-1], -1)
    return None


def margins(outputs: Arrays, name: str, kind: Mapping[str, Any]) -> npt.NDArray[np.float32] | None:
    """Return the smallest margin between the best two values of a choice, ``(batch,)``; none without values."""
    parts = [values for _, values in components(outputs, name, kind) if values is not None]
    best = [np.sort(values, -1)[:, -2:] for values in parts if values.shape[-1] > 1]
    with np.errstate(invalid="ignore"):  # a mask leaves a single choice
        apart = [np.nan_to_num(pair[:, 1] - pair[:, 0], nan=np.inf) for pair in best]
    return np.min(apart, 0).astype(np.float32) if apart else None


def by_row(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return numbers of any dimensions as ``(batch, numbers)``."""
    return array.reshape(len(array), math.prod(array.shape[1:]))


def scale(expected: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what a tolerance is multiplied by: each number's size above 1, ``(batch, numbers)`` or ``(batch, 1)``."""
    if is_choice(expected):
        return np.ones((len(expected), 1))
    size = np.abs(by_row(expected))
    return np.where(np.isfinite(size), np.maximum(1, size), 1)


def reach(kind: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Return the largest size that each number of a vector may have, ``(1, numbers)``; 1 where there is no bound.

    What an action is scaled by is added to what the policy computes, so that its rounding is that of the largest one.
    """
    if kind.get("kind") != "vector":
        return np.ones((1, 1))
    bounds = [np.ravel(np.array(kind[name], np.float64)) for name in ("low", "high")]  # none becomes no number
    return np.fmax(1, np.fmax(*map(np.abs, bounds)))[None]


def describe(outputs: Arrays, row: int = 0) -> str:
    """Return a row's actions and the values from which they were chosen, without distributions, which are long."""
    names = [name for name in outputs if not is_value(name)]
    told = [
        name for name in outputs if is_value(name) and outputs[name][row].size <= 32 and outputs[name][row].ndim <= 2
    ]
    shown = [
        f"{name} {outputs[name][row].tolist() if outputs[name][row].ndim else outputs[name][row]}" for name in names
    ]
    return ", ".join([*shown, *(f"{name} {np.round(outputs[name][row], 6).tolist()}" for name in told)])
