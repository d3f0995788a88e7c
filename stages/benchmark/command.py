"""The native command, which is no Python: from its start to its first decision, and the memory that it held."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from play import GOLDEN_FILE, NATIVE, read_golden, read_manifest
from stages.benchmark.measured import stream
from stages.common.errors import UserError


class Start(NamedTuple):
    """Milliseconds from the start of the process to its first decision, and the most KiB that it had held by then."""

    milliseconds: float
    peak_memory: int


class Command:
    """A policy's command, to be started again and again.

    Args:
        policy: its name.
        folder: for a copy of the command; ``dvc checkout`` forgets that the policy's own can be run.
    """

    def __init__(self, policy: str, folder: Path) -> None:
        models = Path("models", policy)
        self.path = Path(shutil.copyfile((models / NATIVE).with_name("policy"), folder / "policy"))
        self.path.chmod(0o755)
        decisions, _ = read_golden(models / GOLDEN_FILE, read_manifest(models))
        self.observation = decisions["observation"][0].tobytes()

    def start(self) -> Start:
        """Start it, and let it decide on one recorded observation.

        Raises:
            UserError: it does not decide.
        """
        start = time.monotonic()
        with subprocess.Popen(
            [self.path, "play", "-"], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            with suppress(BrokenPipeError):  # it says itself why it ends
                stream(process.stdin).write(self.observation)
            decision = stream(process.stdout).readline()
            passed = time.monotonic() - start
            held = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        if not decision or held is None:
            raise UserError(f"{self.path.name} play: ends with exit status {process.returncode}, without a decision")
        return Start(passed * 1e3, int(held[1]))


def describe(starts: list[Start]) -> dict[str, Any]:
    return {
        "cold_start_ms": round(median(start.milliseconds for start in starts), 1),
        "peak_memory_mb": round(max(start.peak_memory for start in starts) / 1024, 1),
    }
