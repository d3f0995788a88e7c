"""Recorded episodes: seeds and actions, from which the environment produces the same observations again.

Where it does not, or where there is no environment, the observations themselves are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from policy_export.device.arrays import Action, Arrays
from policy_export.device.environments import Environment, make_environment
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds
from policy_export.stage.files import replacing

BUDGET = 256_000_000  # bytes of observations that are kept


@dataclass(frozen=True)
class Episode:
    """One full episode.

    Attributes:
        seed: seed of the environment.
        epsilon: chance that an action was sampled at random instead of being the policy's.
        actions: what was done: ``(steps,)`` int16, indices into the action set, or ``(steps, ...)``; by name where
            there are several; no steps where it is not known.
        rewards: ``(steps,)`` float32.
        state_hashes: ``(steps,)`` uint64, :func:`hash_state` after each step.
        observations: what was seen, by name, ``(steps, ...)`` each; none where replaying gives the same.
    """

    seed: int
    epsilon: float
    actions: npt.NDArray[Any] | Arrays
    rewards: npt.NDArray[np.float32]
    state_hashes: npt.NDArray[np.uint64]
    observations: Arrays | None = None

    def __len__(self) -> int:
        return len(next(iter(self.actions.values())) if isinstance(self.actions, dict) else self.actions)

    def action(self, step: int) -> Action:
        """Return what was done at a step."""
        if isinstance(self.actions, dict):
            return {name: array[step] for name, array in self.actions.items()}
        action: npt.NDArray[Any] = self.actions[step]
        return action


ARRAYS = ("actions", "rewards", "state_hashes")


def hash_state(environment: Environment) -> int:
    """Return 64 bits of BLAKE2b over the environment's state."""
    return int.from_bytes(hashlib.blake2b(environment.state, digest_size=8).digest(), "little")


def random_action(manifest: dict[str, Any], random: np.random.Generator, shown: Arrays | None = None) -> Action:
    """Sample one of a manifest's actions, all with the same chance.

    Args:
        manifest: says what can be done.
        random: the source of random numbers.
        shown: what is observed; a mask in it, such as ``action_mask``, leaves only some choices.
    """
    dtypes = {spec["name"]: spec["dtype"] for spec in manifest.get("outputs", ())}
    sampled: dict[str, Any] = {}
    for name, kind in action_kinds(manifest).items():
        sampled[name] = _random(kind, random, _find_mask(shown or {}, kind), np.dtype(dtypes.get(name, "float32")))
    if len(sampled) > 1:
        return {name: np.asarray(action) for name, action in sampled.items()}
    (action,) = sampled.values()
    return action


def _random(kind: dict[str, Any], random: np.random.Generator, mask: list[npt.NDArray[Any]] | None, dtype: Any) -> Any:
    if mask is not None:
        return _allowed(kind, random, mask, dtype)
    match kind["kind"]:
        case "index":
            return int(random.integers(kind["sizes"][0]))
        case "indices":
            return random.integers(np.array(kind["sizes"])).astype(dtype)
        case "one_hot":
            return np.concatenate([_one_hot(random, size, kind.get("shape", ())) for size in kind["sizes"]], -1).astype(
                dtype
            )
        case "bits":
            return random.integers(2, size=kind["shape"]).astype(dtype)
        case _:
            return _vector(kind, random).astype(dtype)


def _allowed(kind: dict[str, Any], random: np.random.Generator, mask: list[npt.NDArray[Any]], dtype: Any) -> Any:
    """Return choices that a mask allows; its rows are those of :func:`_find_mask`."""
    allowed = [int(random.choice(np.flatnonzero(row))) for row in mask]
    if kind["kind"] == "index":
        return allowed[0]
    if kind["kind"] == "indices":
        return np.reshape(allowed, np.shape(kind["sizes"])).astype(dtype)
    chosen = [np.eye(len(row))[choice] for row, choice in zip(mask, allowed, strict=True)]
    return np.concatenate(chosen).reshape(*kind.get("shape", ()), sum(kind["sizes"])).astype(dtype)


def _vector(kind: dict[str, Any], random: np.random.Generator) -> npt.NDArray[Any]:
    """Return numbers between the bounds; where there is none, normally distributed ones."""
    low, high = (np.array(kind[side], np.float64) for side in ("low", "high"))
    bounded = np.isfinite(low) & np.isfinite(high)
    free = np.fmin(np.fmax(random.standard_normal(low.shape), low), high)
    return np.where(bounded, random.uniform(np.where(bounded, low, 0), np.where(bounded, high, 1)), free)


def _one_hot(random: np.random.Generator, size: int, shape: Any) -> npt.NDArray[Any]:
    return np.eye(size)[random.integers(size, size=tuple(shape))]


def _find_mask(shown: Arrays, kind: dict[str, Any]) -> list[npt.NDArray[Any]] | None:
    """Return the mask of choices among the observations: for each of them, which are allowed, at least one of them.

    It has a row for each of several choices, or all of them end to end.
    """
    if kind["kind"] not in ("index", "indices", "one_hot"):
        return None
    sizes = np.array(kind["sizes"])
    if kind["kind"] == "one_hot":
        shapes = {(*kind.get("shape", ()), int(sizes.sum()))}
        sizes = np.tile(sizes, math.prod(kind.get("shape", ())))
    else:
        alike = bool((sizes == sizes.flat[0]).all())
        shapes = {(int(sizes.sum()),), (*sizes.shape, int(sizes.flat[0]) if alike else 0)}
    for name, array in shown.items():
        flags = array.dtype.kind in "bui" and bool(np.isin(array, (0, 1)).all())
        if "mask" in name and flags and array.shape in shapes:
            rows = np.split(array.ravel(), np.cumsum(sizes.ravel())[:-1])
            if all(row.any() for row in rows):
                return rows
    return None


def save(path: Path, policy: str, episodes: list[Episode]) -> None:
    """Write episodes as safetensors: their arrays end to end, the rest in the header.

    Raises:
        UserError: their observations take more than the budget.
    """
    taken = sum(array.nbytes for episode in episodes for array in (episode.observations or {}).values())
    if taken > BUDGET:
        raise UserError(
            f"{path}: the observations of {len(episodes)} episodes take {taken:,} bytes, {BUDGET:,} are allowed, and "
            "the environment does not replay them from seeds: lower max_episode_steps, or record's episodes"
        )
    parts = [_named_arrays(episode) for episode in episodes]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    header = {
        "policy": policy,
        "episodes": [{"seed": episode.seed, "epsilon": episode.epsilon, "steps": len(episode)} for episode in episodes],
    }
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"header": json.dumps(header)})


def _named_arrays(episode: Episode) -> Arrays:
    found: Arrays = {}
    for name in (*ARRAYS, "observations"):
        value = getattr(episode, name)
        if isinstance(value, dict):
            found |= {f"{name}/{key}": array for key, array in value.items()}
        elif value is not None:
            found[name] = value
    return found


def load(path: Path, policy: str) -> list[Episode]:
    """Read what :func:`save` wrote.

    Raises:
        UserError: the file is missing, damaged or of another policy.
    """
    try:
        with safe_open(path, "np") as file:
            header = json.loads(file.metadata()["header"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        ends = np.cumsum([episode["steps"] for episode in header["episodes"]])
        if any(len(array) != ends[-1] for array in arrays.values()):
            raise ValueError("its arrays do not have as many steps as its header says")
        parts = {name: np.split(array, ends[:-1]) for name, array in arrays.items()}
        recorded = [
            Episode(
                facts["seed"],
                facts["epsilon"],
                _pick(parts, "actions", index),
                parts["rewards"][index],
                parts["state_hashes"][index],
                _pick(parts, "observations", index) or None,
            )
            for index, facts in enumerate(header["episodes"])
        ]
        owner = header["policy"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro`") from None
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if owner != policy:
        raise UserError(f"{path}: holds episodes of the policy {owner!r}, expected {policy!r}")
    return recorded


def _pick(parts: dict[str, list[npt.NDArray[Any]]], what: str, index: int) -> Any:
    """Return an episode's array, or its arrays by name."""
    if what in parts:
        return parts[what][index]
    return {name.removeprefix(f"{what}/"): each[index] for name, each in parts.items() if name.startswith(f"{what}/")}


def replay(episode: Episode, environment: Environment) -> Iterator[Arrays]:
    """Yield the observations that were acted on, from a new environment with the episode's seed.

    Raises:
        UserError: the environment does not behave as it did when the episode was recorded.
    """
    for step in range(len(episode)):
        yield {name: array.copy() for name, array in environment.observations.items()}
        reward = environment.step(episode.action(step))
        if np.float32(reward) != episode.rewards[step] or hash_state(environment) != episode.state_hashes[step]:
            raise UserError(
                f"the recorded episode with seed {episode.seed} does not replay: step {step} differs; "
                "record it again with these versions of the libraries: `dvc repro -f record`"
            )


def observe(episode: Episode, manifest: dict[str, Any]) -> Iterator[Arrays]:
    """Yield the observations that were acted on, by name: those that were kept, or else those of a replay.

    Raises:
        UserError: as :func:`replay`.
    """
    if episode.observations is None:
        yield from replay(episode, make_environment(manifest, episode.seed))
        return
    for step in range(len(episode)):
        yield {name: array[step] for name, array in episode.observations.items()}


def replays(episode: Episode, manifest: dict[str, Any]) -> bool:
    """Return whether an episode can be replayed from its seed and actions alone."""
    try:
        return sum(1 for _ in replay(episode, make_environment(manifest, episode.seed))) == len(episode)
    except UserError:
        return False
