"""The one kind of error that is meant for the user."""

from __future__ import annotations

import errno
import os
import re

# What a machine refuses: there is no room, no permission, no memory, no reader, or no more files may be open.
REFUSALS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EPIPE),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    }
)
IN_TEXT = re.compile(r"(?:\(os error |\[Errno )(\d+)[)\]]")  # of libraries in Rust, or that quote Python


class UserError(Exception):
    """A user's mistake: the message says what is wrong, one line per mistake, and no traceback is shown."""


class RefusedError(UserError):
    """No user's mistake, and no program's: the machine has refused something."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    return next(iter(_plain(error).splitlines()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, or its type's name if it has none."""
    return " ".join(_plain(error).split()) or type(error).__name__


def refusal(error: BaseException) -> OSError | None:
    """Return what the machine has refused, if an error, or one that it follows from, says so.

    Some libraries raise errors of their own kinds, with the number in the text and without the file.
    """
    link: BaseException | None = error
    while link is not None and not isinstance(link, UserError):
        if isinstance(link, OSError) and (link.errno in REFUSALS or "temporary directory" in str(link.strerror)):
            return link
        if (found := IN_TEXT.search(str(link))) and int(found[1]) in REFUSALS:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def describe_refusal(refused: OSError) -> str:
    """Return what was refused, in one line: the file, where it is known, and the reason."""
    return f"{refused.filename}: {refused.strerror}" if refused.filename is not None else str(refused.strerror)


def stop_writing() -> None:
    """Let standard output go nowhere from now on: what waits in its buffer would fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _plain(error: BaseException) -> str:
    """Return an error's message without what colours it in a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
