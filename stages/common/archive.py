"""Exported programs as files that tell what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from stages.common.errors import UserError, first_line

FACTS = "facts.json"
# The programs of a policy, and the exploration type of each.
EXPORTS = {"policy": "DETERMINISTIC", "policy_random": "RANDOM"}


def save_program(path: Path, program: torch.export.ExportedProgram, facts: dict[str, Any]) -> None:
    """Write an exported program with what a device must know about it inside."""
    torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})


def load_program(path: Path, policy: str) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    """What :func:`save_program` wrote.

    Raises:
        UserError: the file is missing, damaged or another policy's.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run `dvc repro`")
    extra = {FACTS: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        facts = json.loads(extra[FACTS])
        owner = facts["policy"]
    except Exception as error:  # the loader raises whatever the archive's reader does
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
    if owner != policy:
        raise UserError(f"{path}: holds the policy {owner!r}, expected {policy!r}")
    return program, facts
