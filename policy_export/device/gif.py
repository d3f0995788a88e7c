"""Episodes as animated pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import UserError


def write_gif(path: Path, screens: list[npt.NDArray[np.uint8]], milliseconds: int) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(screen) for screen in screens]
    try:
        first.save(path, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def check_gif(path: Path) -> None:
    """Fail before an episode is played for nothing.

    Raises:
        UserError: the file cannot be written, or its name is not that of a GIF, or Pillow is missing.
    """
    if path.suffix.lower() != ".gif":
        ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise UserError(f"--gif: {path}: the name {ending}, must end in '.gif'")
    if importlib.util.find_spec("PIL") is None:
        raise UserError("--gif needs Pillow: pip install pillow")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, must be a file")
