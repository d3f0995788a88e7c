"""The native command, which is not Python: the time from its start to its first decision, and its memory."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from policy_export.benchmark.measured import stream
from policy_export.benchmark.session import peak_memory
from policy_export.device.errors import UserError
from policy_export.device.golden import GOLDEN, read_golden
from policy_export.device.manifest import check_file
from policy_export.device.native_library import NATIVE

COMMAND = str(Path(NATIVE).with_name("policy"))


class Start(NamedTuple):
    """Milliseconds from the start of the process to its first decision, and its peak memory until then in KiB."""

    milliseconds: float
    peak_memory: int


class Command:
    """A policy's command, which can be started many times.

    Args:
        policy: its name.
        manifest: the one in its model folder.
        folder: for an executable copy of the command; ``dvc checkout`` drops the permission to run the original.

    Raises:
        UserError: a file is missing or damaged.
    """

    @classmethod
    def of(cls, policy: str, manifest: Mapping[str, Any], folder: Path) -> Command | None:
        """Return the policy's command; none if it has no native library."""
        return cls(policy, manifest, folder) if COMMAND in manifest["files"] else None

    def __init__(self, policy: str, manifest: Mapping[str, Any], folder: Path) -> None:
        models = Path("models", policy)
        path = check_file(models, COMMAND, manifest)
        golden = read_golden(check_file(models, GOLDEN, manifest), manifest)
        self.path = Path(shutil.copyfile(path, folder / "policy"))
        self.path.chmod(0o755)
        self.observation = b"".join(array[0].tobytes() for array in golden.observations.values())

    def start(self) -> Start:
        """Start the command, let it decide on one recorded observation, and return its time and memory.

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
            held = peak_memory(process.pid)
        if not decision:
            raise UserError(f"{self.path.name} play: ends with exit status {process.returncode}, without a decision")
        return Start(passed * 1e3, held)


def describe(starts: list[Start]) -> dict[str, Any]:
    return {
        "cold_start_ms": round(median(start.milliseconds for start in starts), 1),
        "peak_memory_mb": round(max(start.peak_memory for start in starts) / 1024, 1),
    }
