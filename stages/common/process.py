"""Run one of the project's modules in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from stages.common.errors import UserError


def run_module(module: str, *arguments: str) -> Any:
    """What ``python -m <module> <arguments>`` prints last, read as JSON.

    Raises:
        UserError: it failed; with the last line of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
