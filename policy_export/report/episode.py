"""A recorded episode as a page replays it: what was seen and decided, in the form of golden decisions, but smaller.

It is a file of safetensors, compressed with gzip. It has the tensors of :mod:`policy_export.device.golden`, but for
two differences. In the place of ``input/<observation>`` there is ``changed/<observation>``: each row's bytes combined
with those of the row before by exclusive or, as most of a screen stays as it is. Where an image has at most 256
colours, ``palette/<observation>`` ``(colours, 3)`` lists them, and the rows have their numbers.

The file's metadata have ``decided``: ``recorded``, or ``here`` where nobody has recorded what the policy decides. The
actions are then those of ``policy.onnx`` when the file was made.
"""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from policy_export.device.arrays import Arrays
from policy_export.device.environments import is_playable
from policy_export.device.golden import GOLDEN, OUTPUT, STARTS, STATE, TIE, TOLERANCE, read_golden
from policy_export.device.manifest import action_kinds, action_names, observation_names, value_names
from policy_export.device.onnx_session import load_onnx
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode, observe

CHANGED, PALETTE = "changed/", "palette/"
MOST_DECISIONS = 1000
MOST_SEEN = 128_000_000  # bytes of observations before they are packed
MOST_BYTES = 8_000_000  # of the file


def pack_episode(policy: str, manifest: dict[str, Any]) -> bytes:
    """Return the content of the file for a policy's first recorded episode without random actions.

    A long episode is cut off.

    Raises:
        UserError: the episode cannot be read, or does not replay on this machine.
    """
    model = Path("models", policy)
    found = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
    greedy = [episode for episode in found if not episode.epsilon] if is_playable(manifest) else []
    episode = (greedy or found)[0]
    player = Player(load_onnx(model / "policy.onnx", manifest.get("onnx_session")), manifest)
    seen, outputs = _replay(episode, player)
    if greedy:
        outputs |= _recorded_actions(episode, outputs, manifest)
    extra = {"decided": "recorded" if greedy else "here"}
    tolerance = read_golden(model / GOLDEN, manifest).tolerance
    rows, content = 2 * len(next(iter(seen.values()))), None
    while content is None or (len(content) > MOST_BYTES and rows > 1):
        rows //= 2
        content = _compress(_tensors(seen, outputs, manifest, tolerance, rows), extra)
    return content


def _replay(episode: Episode, player: Player) -> tuple[Arrays, Arrays]:
    """Return what a program is given in an episode, and all of its outputs, ``(decisions, ...)`` each."""
    size = sum(player.feed[name].nbytes for name in player.observations)
    shown, made = list[Arrays](), list[Arrays]()
    for step in islice(observe(episode, player.manifest), max(1, min(MOST_DECISIONS, MOST_SEEN // size))):
        shown.append(player.read({name: array[None] for name, array in step.items()}))
        made.append(player.step(shown[-1]))
    return _joined(shown), _joined(made)


def _joined(rows: list[Arrays]) -> Arrays:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _recorded_actions(episode: Episode, outputs: Arrays, manifest: dict[str, Any]) -> Arrays:
    """Return what was done in an episode, in the form of a program's outputs."""
    names = action_names(manifest)
    taken = episode.actions if isinstance(episode.actions, dict) else {names[0]: episode.actions}
    return {
        name: taken[name][: len(outputs[name])].astype(outputs[name].dtype).reshape(outputs[name].shape)
        for name in names
    }


def _tensors(seen: Arrays, outputs: Arrays, manifest: dict[str, Any], tolerance: float, rows: int) -> Arrays:
    """Return the tensors of a file with the first decisions of an episode."""
    # It imports PyTorch, which takes seconds.
    from policy_export.program.golden import near_ties

    made = {name: array[:rows] for name, array in outputs.items()}
    starts = Player(lambda inputs: inputs, manifest).feed
    tensors = {
        STARTS: (np.arange(rows) == 0)[:, None],
        TIE: near_ties(made, value_names(manifest), action_kinds(manifest), tolerance),
        TOLERANCE: np.array([tolerance]),
        **{f"{OUTPUT}{name}": made[name] for name in action_names(manifest)},
        **{f"{STATE}{state['input']}": starts[state["input"]] for state in manifest["states"]},
    }
    for name in observation_names(manifest):
        numbers = seen[name][:rows]
        if coded := code_colours(numbers):
            numbers, tensors[f"{PALETTE}{name}"] = coded
        tensors[f"{CHANGED}{name}"] = changes(numbers)
    return tensors


def _compress(tensors: Arrays, metadata: dict[str, str]) -> bytes:
    content = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata)
    return gzip.compress(content, mtime=0)


def changes(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return each row's bytes combined with those of the row before by exclusive or; the first row as it is."""
    found = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    changed = found.copy()
    changed[1:] ^= found[:-1]
    return changed.view(rows.dtype).reshape(rows.shape)


def code_colours(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None:
    """Return images as numbers of colours, ``(rows, height, width)``, and the colours, ``(colours, 3)``.

    Returns:
        none if they have other than three bytes a pixel, or more than 256 colours.
    """
    if images.dtype != np.uint8 or images.ndim < len(("row", "height", "width", "colour")) or images.shape[-1] != 3:
        return None
    numbers = images[..., 0].astype(np.uint32) << 16 | images[..., 1].astype(np.uint32) << 8 | images[..., 2]
    there = np.zeros(1 << 24, bool)
    there[numbers] = True
    colours = np.flatnonzero(there)
    if len(colours) > 256:
        return None
    codes = np.zeros(1 << 24, np.uint8)
    codes[colours] = np.arange(len(colours))
    return codes[numbers], np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(np.uint8)
