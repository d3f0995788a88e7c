"""A stage's own folder for temporary files: its own, its processes', the compiler's. Nothing of it stays behind."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

from policy_export.device.errors import UserError

PREFIX, MARK = "stage-", ".of-policy-export"  # of such a folder's name, and a file in it that its stage has locked
LAST = -200  # after Python's own folder in it has been removed, at -100
LONGEST = 107 - len("/stage-12345678/pymp-12345678/listener-12345678")  # as a socket's path is kept in 108 bytes


def use_scratch() -> None:
    """Let this process, and all that it starts, keep temporary files in a folder of their own, until it ends.

    Folders that stages have left which were killed are removed.

    Raises:
        UserError: the folder for temporary files has a name that PyTorch or Python cannot use.
    """
    parent = Path(tempfile.gettempdir())
    if (parent / MARK).exists():  # of this process, or of the stage that has started it
        return
    check_name(parent)
    for mark in parent.glob(f"{PREFIX}*/{MARK}"):
        if (lock := _lock(mark)) is not None:
            shutil.rmtree(mark.parent, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        (folder / MARK).touch()
        if _lock(folder / MARK) is not None and (folder / MARK).exists():
            break  # otherwise another stage has just taken it for one that was left
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=LAST)


def _lock(mark: Path) -> int | None:
    """Lock a file until the descriptor that is returned is closed, or this process ends, however it does.

    None is returned if another process has locked it, or may alone read it, or has removed it.
    """
    try:
        descriptor = os.open(mark, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def check_name(folder: Path) -> None:
    """Fail where PyTorch would take a folder for several words, as it calls the compiler without quotes.

    Raises:
        UserError: the folder's path has a space or a quote, or is too long.
    """
    try:
        words = shlex.split(str(folder))
    except ValueError:  # a quote without its second
        words = []
    if words != [str(folder)]:
        raise UserError(
            f"TMPDIR: {str(folder)!r} has a space or a quote, and PyTorch calls the compiler without quotes; "
            "let it name another folder"
        )
    if len(os.fsencode(folder)) > LONGEST:
        raise UserError(
            f"TMPDIR: {str(folder)!r} is longer than {LONGEST} bytes, too long for a path of sockets; "
            "let it name another folder"
        )
