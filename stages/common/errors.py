"""How a stage starts and how it tells the user about a mistake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of the user's: the message names what is wrong, a line each, and no traceback is shown."""


def first_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def run(stage: Callable[..., None], doc: str | None, *, policy: bool = True) -> None:
    """Run a stage's function as a program: ``python -m stages.<stage> [policy]``.

    Exit status 1, with the message on standard error, where the stage raises :class:`UserError`.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    if policy:
        parser.add_argument("policy", help="name of a profile under `policies` in params.yaml")
    arguments = parser.parse_args()
    try:
        stage(**vars(arguments))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
