"""How a stage starts and how it tells the user about a mistake."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator


class UserError(Exception):
    """A mistake of the user's: the message names what is wrong, a line each, and no traceback is shown."""


class ProfileError(UserError):
    """A mistake in a policy's profile, told by keys of the profile; :func:`naming` adds whose it is."""


@contextlib.contextmanager
def naming(policy: str) -> Iterator[None]:
    """Tell mistakes in a profile as what they are: this policy's, in ``params.yaml``.

    Raises:
        UserError: what was raised within; every line of a :class:`ProfileError` with file and policy before it.
    """
    try:
        yield
    except ProfileError as error:
        lines = [f"params.yaml: policies.{policy}: {line}" for line in str(error).splitlines()]
        raise UserError("\n".join(lines)) from error.__cause__


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """All that an error says, in one line, or its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def run(stage: Callable[..., None], doc: str | None, *, policy: bool = True) -> None:
    """Run a stage's function as a program: ``python -m stages.<stage> [policy]``.

    Exit status 1, with the message on standard error, where the stage raises :class:`UserError`.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    if policy:
        parser.add_argument("policy", help="name of a profile under `policies` in params.yaml")
    arguments = parser.parse_args()
    try:
        with naming(arguments.policy) if policy else contextlib.nullcontext():
            stage(**vars(arguments))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
