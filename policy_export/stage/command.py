"""Stages as programs of the command line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from policy_export.config.errors import naming
from policy_export.device.errors import UserError, describe_refusal, refusal, stop_writing
from policy_export.stage.quiet import drop_remarks
from policy_export.stage.scratch import use_scratch
from policy_export.stage.stopping import stoppable


def run(stage: Callable[..., object], doc: str | None, *, policy: bool = True) -> None:
    """Run a stage's function as a program: ``python -m stages.<stage> [policy]``.

    The exit status is 1, with the message on standard error, if the stage raises :class:`UserError` or the machine
    refuses it something; and 130 or 143 if it is stopped by SIGINT, by SIGTERM, or by the end of what has started it.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    if policy:
        parser.add_argument("policy", help="name of a profile under `policies` in params.yaml")
    arguments = parser.parse_args()
    drop_remarks()
    try:
        with stoppable(), naming(arguments.policy) if policy else contextlib.nullcontext():
            stage(**vars(arguments))
            sys.stdout.flush()
    except Exception as error:
        fail_of(error)


def begin() -> None:
    """Begin a stage that ``python -m`` starts, before it imports what takes seconds, and uses temporary files."""
    if sys.argv[0] != "-m":  # a stage's function is imported
        return
    try:
        use_scratch()
    except Exception as error:
        fail_of(error)


def fail_of(error: Exception) -> NoReturn:
    """End with the message of a user's mistake, or of what the machine refuses; raise any other error."""
    if isinstance(error, UserError):
        fail(str(error))
    if (refused := refusal(error)) is None:
        raise error
    stop_writing()
    fail(describe_refusal(refused))


def fail(message: str) -> NoReturn:
    """End with a message on standard error, a line for each of its lines."""
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    if os.strerror(errno.ENOSPC) in message:
        print("error: where DVC calls dvc.lock broken from now on: git checkout dvc.lock", file=sys.stderr)
    sys.exit(1)
