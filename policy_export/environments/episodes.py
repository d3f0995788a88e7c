"""Recorded episodes: seeds and actions, from which the environment produces the same observations again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from policy_export.device.arrays import Action
from policy_export.device.environments import Environment
from policy_export.device.errors import UserError
from policy_export.stage.files import replacing


@dataclass(frozen=True)
class Episode:
    """One full episode.

    Attributes:
        seed: seed of the environment.
        epsilon: chance that an action was sampled at random instead of being the policy's.
        actions: ``(steps,)`` int16, indices into the action set, or ``(steps, k)`` float32.
        rewards: ``(steps,)`` float32.
        state_hashes: ``(steps,)`` uint64, :func:`hash_state` after each step.
    """

    seed: int
    epsilon: float
    actions: npt.NDArray[np.int16 | np.float32]
    rewards: npt.NDArray[np.float32]
    state_hashes: npt.NDArray[np.uint64]


ARRAYS = ("actions", "rewards", "state_hashes")


def hash_state(environment: Environment) -> int:
    """Return 64 bits of BLAKE2b over the environment's state."""
    return int.from_bytes(hashlib.blake2b(environment.state, digest_size=8).digest(), "little")


def random_action(manifest: dict[str, Any], random: np.random.Generator) -> Action:
    """Sample one of a manifest's actions, all with the same chance."""
    actions = manifest["actions"]
    if isinstance(actions, list):
        return int(random.integers(len(actions)))
    return random.uniform(actions["low"], actions["high"]).astype(np.float32)


def save(path: Path, policy: str, episodes: list[Episode]) -> None:
    """Write episodes as safetensors: their arrays end to end, the rest in the header."""
    arrays = {name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in ARRAYS}
    header = {
        "policy": policy,
        "episodes": [
            {"seed": episode.seed, "epsilon": episode.epsilon, "steps": len(episode.actions)} for episode in episodes
        ],
    }
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"header": json.dumps(header)})


def load(path: Path, policy: str) -> list[Episode]:
    """Read what :func:`save` wrote.

    Raises:
        UserError: the file is missing, damaged or of another policy.
    """
    try:
        with safe_open(path, "np") as file:
            header = json.loads(file.metadata()["header"])
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
        ends = np.cumsum([episode["steps"] for episode in header["episodes"]])
        parts = {name: np.split(array, ends) for name, array in arrays.items()}
        if any(len(array) != ends[-1] for array in arrays.values()):
            raise ValueError("its arrays do not have as many steps as its header says")
        recorded = [
            Episode(facts["seed"], facts["epsilon"], *(parts[name][index] for name in ARRAYS))
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


def replay(episode: Episode, environment: Environment) -> Iterator[npt.NDArray[Any]]:
    """Yield the observations that were acted on, from a new environment with the episode's seed.

    Raises:
        UserError: the environment does not behave as it did when the episode was recorded.
    """
    for step, action in enumerate(episode.actions):
        yield environment.observation.copy()
        reward = environment.step(action)
        if np.float32(reward) != episode.rewards[step] or hash_state(environment) != episode.state_hashes[step]:
            raise UserError(
                f"the recorded episode with seed {episode.seed} does not replay: step {step} differs; "
                "record it again with these versions of the libraries: `dvc repro -f record`"
            )
