"""The one kind of error that is meant for the user."""

from __future__ import annotations

import re


class UserError(Exception):
    """A user's mistake: the message says what is wrong, one line per mistake, and no traceback is shown."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    return next(iter(_plain(error).splitlines()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, or its type's name if it has none."""
    return " ".join(_plain(error).split()) or type(error).__name__


def _plain(error: BaseException) -> str:
    """Return an error's message without what colours it in a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
