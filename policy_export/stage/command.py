"""Stages as programs of the command line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable

from policy_export.config.errors import naming
from policy_export.device.errors import UserError
from policy_export.stage.quiet import drop_remarks
from policy_export.stage.stopping import stoppable


def run(stage: Callable[..., object], doc: str | None, *, policy: bool = True) -> None:
    """Run a stage's function as a program: ``python -m stages.<stage> [policy]``.

    The exit status is 1, with the message on standard error, if the stage raises :class:`UserError`; and 130 or 143 if
    it is stopped by SIGINT, by SIGTERM, or by the end of what has started it.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    if policy:
        parser.add_argument("policy", help="name of a profile under `policies` in params.yaml")
    arguments = parser.parse_args()
    drop_remarks()
    try:
        with stoppable(), naming(arguments.policy) if policy else contextlib.nullcontext():
            stage(**vars(arguments))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
