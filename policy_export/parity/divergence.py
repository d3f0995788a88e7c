"""Where a program diverges from the policy: the decision, the observation, the memory, and the cause."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from policy_export.backends import runtimes
from policy_export.device.arrays import Action
from policy_export.device.emulator import Emulator
from policy_export.device.environments import Environment, is_playable, make_environment
from policy_export.device.manifest import read_manifest
from policy_export.device.player import Player
from policy_export.parity.comparison import Failure
from policy_export.parity.locate import localise
from policy_export.stage.files import replacing

SCALE = 2  # of the screens in the picture
CAPTION = 14  # pixels, below them
MOST_BYTES = 65536  # of an environment's state in the report
GAP = 8  # pixels, between them


def replay_to(manifest: dict[str, Any], seed: int, actions: Sequence[Action], player: Player | None) -> Environment:
    """Return the environment after these actions, and a player that has seen everything before."""
    environment = make_environment(manifest, seed)
    for action in actions:
        if player is not None:
            player.step({name: array[None] for name, array in player.read(environment.observations).items()})
        environment.step(action)
    return environment


def draw_screens(path: Path, screens: Sequence[tuple[str, npt.NDArray[np.uint8]]]) -> None:
    """Draw captions and screens ``(height, width, 3)``, side by side, into a PNG file."""
    height, width, _ = screens[0][1].shape
    size = (len(screens) * (width * SCALE + GAP) - GAP, height * SCALE + CAPTION)
    picture = Image.new("RGB", size, "white")
    text = ImageDraw.Draw(picture)
    for index, (caption, screen) in enumerate(screens):
        left = index * (width * SCALE + GAP)
        large = Image.fromarray(screen).resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)
        picture.paste(large, (left, 0))
        text.text((left + 2, height * SCALE + 1), caption, fill="black")
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def explain(
    policy: str,
    program: str,
    failure: Failure,
    actions: tuple[Sequence[Action], Sequence[Action]] | None,
    tolerance: float,
) -> dict[str, Any]:
    """Return all that is known about a decision in which a deterministic program failed.

    Args:
        policy: its name.
        program: the program's name.
        failure: the decision.
        actions: all that the program took, or was shown, in that episode, and all that the policy did; none where the
            episode cannot be played again.
        tolerance: of the check.

    Returns:
        both decisions, the environment's state before them, the memory, where a picture of both screens is, and the
        first tensor of the program that differs.
    """
    manifest, (seed, step) = read_manifest(Path("models", policy)), failure.place
    player = Player(runtimes.load_by_name(policy, "eager", threads=1), manifest)
    playable = is_playable(manifest) and actions is not None
    own = replay_to(manifest, seed, actions[1][:step], player) if playable and actions is not None else None
    together = failure.inputs
    if together is not None:
        inputs = {name: array[[failure.row]] for name, array in together.items()}
    elif own is not None:
        inputs = player.feed | {name: array[None].copy() for name, array in player.read(own.observations).items()}
    else:
        inputs = None
    report: dict[str, Any] = {
        "seed": seed,
        "step": step,
        "what": failure.what,
        "program": {name: array[0].tolist() for name, array in failure.found.items()},
        "eager": {name: array[0].tolist() for name, array in failure.expected.items()},
        "state": own.state.hex() if own is not None and len(own.state) <= MOST_BYTES else None,
        "memory": {name: inputs[name][0].tolist() for name in player.states.values()} if inputs is not None else {},
    }
    if own is not None and actions is not None and isinstance(own, Emulator):
        its = replay_to(manifest, seed, actions[0][:step], None)
        path = Path("results", policy, "divergence", f"{program}.png")
        seen = ((program, failure.found, its), ("eager", failure.expected, own))
        draw_screens(
            path,
            [(f"{name}: action {decided['action'][0]}", at.observations["observation"]) for name, decided, at in seen],
        )
        report["screens"] = path.as_posix()
    if inputs is None:
        return report | {"first_difference": "not known: the episode cannot be played again", "location": None}
    location = localise(policy, program, inputs, tolerance)
    if not location.tensor and together is not None and (rows := len(next(iter(together.values())))) > 1:
        inside = localise(policy, program, together, tolerance)
        if inside.tensor:
            location = dataclasses.replace(inside, note=f"{inside.note}, in a batch of {rows} rows and not alone")
    return report | {"first_difference": str(location), "location": location.as_dict()}
