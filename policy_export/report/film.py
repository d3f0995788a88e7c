"""A film of a recorded episode: what the policy saw."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from policy_export.device.environments import is_playable, make_environment
from policy_export.environments import episodes
from policy_export.report.findings import Findings

BEGINS, FRAMES = 30, 300  # decisions of the episode: before the film, and in it
RATE_HZ = 15.0  # of decisions, where the manifest does not say another

Screen = npt.NDArray[np.uint8]


def record_film(found: Findings) -> bytes | None:
    """Return the beginning of the first recorded episode without exploration, as an animated WebP picture.

    Returns:
        none where the policy sees no picture, or nothing is known of its environment.
    """
    path = Path("data", found.policy, "episodes.safetensors")
    if found.manifest is None or not path.exists():
        return None
    episode = next((each for each in episodes.load(path, found.policy) if each.epsilon == 0), None)
    if episode is None:
        return None
    if episode.observations is not None:
        screens = next(
            (list(array[BEGINS:][:FRAMES]) for array in episode.observations.values() if _is_picture(array[0])), []
        )
    elif is_playable(found.manifest):
        environment = make_environment(found.manifest, episode.seed)
        screens = []
        for step in range(min(BEGINS + FRAMES, len(episode))):
            picture = next((array for array in environment.observations.values() if _is_picture(array)), None)
            if picture is None:
                return None
            if step >= BEGINS:
                screens.append(picture.copy())
            environment.step(episode.action(step))
    else:
        return None
    return encode(screens, found.manifest.get("control_rate_hz") or RATE_HZ) if screens else None


def _is_picture(array: npt.NDArray[np.generic]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3


def encode(screens: list[Screen], rate_hz: float) -> bytes:
    """Return screens ``(height, width, 3)`` as an animated WebP picture, without any loss."""
    first, *rest = [Image.fromarray(screen) for screen in screens]
    film = io.BytesIO()
    duration = round(1000 / rate_hz)
    first.save(film, format="WEBP", save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
    return film.getvalue()
