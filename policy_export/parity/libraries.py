"""The native libraries of a model folder that are not this machine's first choice: for other instruction sets.

Nothing else of the check runs them. A library that this processor runs says what it is of, and replays the golden
decisions. Of another architecture's, the facts are looked for in the file, and its command replays them where an
emulator (qemu-user) is installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from policy_export.device.errors import UserError
from policy_export.device.golden import GOLDEN, selftest
from policy_export.device.manifest import MEANING, TOLD, compare_told
from policy_export.device.native_library import load_native
from policy_export.device.player import Player
from policy_export.lowering.golden import NATIVE_GOLDEN
from policy_export.lowering.instructions import TARGETS

OTHERS = "native/*/libpolicy.so"
EMULATORS = {"aarch64": ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")}


def check_libraries(folder: Path, manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the libraries for other instruction sets, a line each that names the file.

    Args:
        folder: the model folder.
        manifest: of the folder.
        facts: of the deterministic program, as the profile and the trained policy have them.
    """
    for path in [folder / name for name in manifest["files"] if Path(name).match(OTHERS)]:
        target = TARGETS[path.parent.name]
        try:
            if target.runs_here:
                program = load_native(path)
                if program.facts is not None and (difference := compare_told(program.facts, facts)):
                    yield f"{path}: {difference[0]} is not what the profile and the trained policy say"
                selftest(Player(program, dict(manifest)), folder / GOLDEN)
            elif target.foreign:
                yield from _check_foreign(path, folder / NATIVE_GOLDEN, facts, EMULATORS.get(target.machine))
        except UserError as error:
            yield f"{path}: {str(error).removeprefix(f'{path}: ')}"


def _check_foreign(
    path: Path, golden: Path, facts: Mapping[str, Any], emulator: tuple[str, ...] | None
) -> Iterator[str]:
    command = path.parent / "policy"
    told = json.dumps({key: facts[key] for key in TOLD if key not in MEANING and key in facts})
    if told.encode() not in path.read_bytes():
        yield f"{path}: does not hold the facts that the profile and the trained policy say"
    if emulator is None or shutil.which(emulator[0]) is None:
        return
    done = subprocess.run([*emulator, command, "selftest", golden], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().removeprefix("error: ") or f"it ends with status {done.returncode}"
        yield f"{command}: does not decide as {golden} has it: {reason}"
