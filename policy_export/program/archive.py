"""Exported programs as files that describe themselves. PyTorch is imported only to write or to run them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from policy_export.device.errors import UserError, first_line
from policy_export.stage.files import in_memory

if TYPE_CHECKING:
    import torch

FACTS = "facts.json"
# The programs of a policy, and the exploration type of each.
EXPORTS = {"policy": "DETERMINISTIC", "policy_random": "RANDOM"}


def save_program(path: Path, program: torch.export.ExportedProgram, facts: dict[str, Any]) -> None:
    """Write an exported program with what a device must know about it inside."""
    import torch

    with in_memory(path) as content:
        torch.export.save(program, content, extra_files={FACTS: json.dumps(facts)})


def unsafe_member(path: Path) -> str | None:
    """Return why it is not safe to read an archive of PyTorch's; none where it is, and for what is no archive.

    PyTorch compresses nothing, and writes no name that leads elsewhere. So a safe archive takes no more memory than it
    has bytes.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts:
            return f"{member.filename!r} leads out of the archive"
        if member.compress_type != zipfile.ZIP_STORED:
            return f"{member.filename!r} is compressed, as PyTorch writes nothing"
    if (size := sum(member.file_size for member in members)) > path.stat().st_size:
        return f"it says that it holds {size:,} bytes, and has {path.stat().st_size:,}"
    return None


def read_facts(path: Path, policy: str | None = None) -> dict[str, Any]:
    """Return what :func:`save_program` wrote next to the program.

    Raises:
        UserError: the file is missing or damaged, or belongs to another policy than ``policy``.
    """
    try:
        if reason := unsafe_member(path):
            raise UserError(f"{path}: damaged: {reason}")
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{FACTS}"))
            facts: dict[str, Any] = json.loads(archive.read(name))
        owner = facts["policy"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `dvc repro`") from None
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
    if policy is not None and owner != policy:
        raise UserError(f"{path}: holds the policy {owner!r}, expected {policy!r}")
    return facts


def load_program(path: Path, policy: str) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    """Return what :func:`save_program` wrote.

    Raises:
        UserError: the file is missing, damaged or another policy's.
    """
    import torch

    facts = read_facts(path, policy)
    try:
        return torch.export.load(path), facts
    except Exception as error:  # the loader raises whatever the archive's reader does
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
