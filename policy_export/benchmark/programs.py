"""What is measured: the policy, its programs, and candidates that a study compares with them.

PyTorch is imported only for what needs it, and nothing is imported that the program itself does not need.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_export.backends import runtimes
from policy_export.backends.registry import backends, deterministic
from policy_export.device.arrays import Run
from policy_export.device.manifest import read_manifest


@dataclass(frozen=True)
class Candidate:
    """A file in addition to the policy's programs, or one of them with other settings.

    Attributes:
        path: where the program is.
        threads: number of its runtime's threads.
        onnx_session: settings of ONNX Runtime, where they are not the player's.
        loader: ``module:function`` that opens it, given path and threads; none for the back end of the file's name.
        reference: the candidate with the right answers; none where those of the policy are right.
        tolerance_factor: how many times the tolerance an output may differ by.
        baseline: whether it is only for comparison, and measured in less detail.
    """

    path: str
    threads: int
    onnx_session: dict[str, Any] | None = None
    loader: str | None = None
    reference: str | None = None
    tolerance_factor: float = 1.0
    baseline: bool = False

    def load(self) -> Run:
        """Open the program.

        Raises:
            UserError: it cannot be opened.
        """
        if self.loader is None:
            return runtimes.load(Path(self.path), self.threads, self.onnx_session)
        module, function = self.loader.split(":")
        run: Run = getattr(importlib.import_module(module), function)(self.path, self.threads)
        return run


def names(manifest: Mapping[str, Any]) -> list[str]:
    """Return the policy itself and all its deterministic programs."""
    return [runtimes.EAGER, *deterministic(manifest)]


def measured_in_batches(manifest: Mapping[str, Any]) -> list[str]:
    """Return the programs that are timed in batches of all sizes."""
    return [name for name in deterministic(manifest) if backends()[name].batches]


def load(policy: str, program: str, threads: int, candidates: Mapping[str, Mapping[str, Any]]) -> Run:
    """Open a program, or a :class:`Candidate` by its name, on ``threads`` cores.

    Args:
        policy: its name.
        program: one of :func:`names` or of the candidates.
        threads: number of the runtime's threads; a candidate has its own number.
        candidates: each as a dictionary, by name.
    """
    if program in candidates:
        return Candidate(**candidates[program]).load()
    return runtimes.load_by_name(policy, program, threads)


def file_bytes(policy: str, program: str, candidates: Mapping[str, Candidate]) -> int | None:
    """Return the size of the file that is loaded; none where Python code is loaded instead."""
    if program in candidates:
        path = Path(candidates[program].path)
    else:
        file = deterministic(read_manifest(Path("models", policy))).get(program)
        path = Path("models", policy, file) if file else Path()
    return path.stat().st_size if path.is_file() else None
