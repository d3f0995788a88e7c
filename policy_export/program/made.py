"""How programs are made: by the stages that build them, with the records that these leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from policy_export.device.errors import RefusedError, UserError
from policy_export.device.manifest import sha256
from policy_export.stage.files import write_json, write_text

SOURCES = Path("results/sources")
PROGRAMS = "programs.json"  # of a policy, next to the hashes of its sources: which programs it has


def record_path(policy: str, program: str) -> Path:
    """Return where a stage leaves its record of a policy's program."""
    return Path("results", policy, "programs", f"{program}.json")


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each library, by its name."""
    return {library: metadata.version(library) for library in libraries}


def read_programs(policy: str) -> dict[str, bool]:
    """Return, for each program that there is, whether the policy has it, as found by the stage machine.

    Raises:
        UserError: that stage has not run.
    """
    path = SOURCES / policy / PROGRAMS
    try:
        found: dict[str, bool] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; run `dvc repro machine`") from None
    return found


def make(
    policy: str,
    program: str,
    build: Callable[[], None],
    *,
    libraries: Iterable[str],
    files: Iterable[Path] = (),
    folder: Path | None = None,
) -> None:
    """Build a policy's program, or write empty files where its profile leaves it out, and record which was done.

    Args:
        policy: its name.
        program: the name of the back end.
        build: writes the files.
        libraries: whose versions decide what the files are.
        files: that the stage must write.
        folder: that it must write.

    Raises:
        UserError: the program cannot be built; the message says how to go on without it.
    """
    wanted = read_programs(policy)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    if not wanted[program]:
        for path in files:
            write_text(path, "")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        print(f"{policy}  {program}: left out, as the profile's programs leave it out", flush=True)
        write_json(record_path(policy, program), {"made": False})
        return
    try:
        build()
    except RefusedError:  # as the other programs' will be
        raise
    except UserError as error:
        raise type(error)(f"{error}{way_out(wanted, program)}") from error.__cause__
    made = [*files, *(sorted(folder.rglob("*")) if folder is not None else ())]
    write_record(policy, program, [path for path in made if path.is_file()], libraries)


def write_record(policy: str, program: str, files: Iterable[Path], libraries: Iterable[str]) -> None:
    """Record which files a stage has made of a policy, and with which versions of libraries."""
    folder = Path("models", policy)
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    content = {"made": True, "versions": versions_of(libraries), "files": hashes}
    write_json(record_path(policy, program), content)


def way_out(wanted: Mapping[str, bool], program: str) -> str:
    """Say how to go on without a program that a back end refuses; nothing where all others need it."""
    others = [name for name, chosen in wanted.items() if chosen and name != program]
    if program == next(iter(wanted)) or not others:
        return ""
    return f"; to go on without {program}, give the profile `programs: [{', '.join(others)}]`"


def read_record(policy: str, program: str) -> dict[str, Any]:
    """Return what :func:`make` has recorded.

    Raises:
        UserError: the record is missing or damaged.
    """
    path = record_path(policy, program)
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; run `dvc repro`") from None
    return record
