"""All back ends: every module of this folder that has a ``BACKEND``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from policy_export.backends.base import Backend
from policy_export.device.errors import UserError

RANDOM = "_random"  # ends the name of a program that explores


@functools.cache
def backends() -> dict[str, Backend]:
    """Return every back end by its name; those that need the most to run come first."""
    package = __name__.rpartition(".")[0]
    modules = [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules([str(_FOLDER)])]
    found = [module.BACKEND for module in modules if hasattr(module, "BACKEND")]
    return {backend.name: backend for backend in sorted(found, key=_needs_less)}


_FOLDER = Path(__file__).parent


def _needs_less(backend: Backend) -> tuple[bool, bool, bool, str]:
    return not backend.required, backend.on_device, not backend.run_by, backend.name


def choose(names: Iterable[str], key: str) -> list[str]:
    """Check the names of back ends, and return them in the order of :func:`backends`.

    Args:
        names: as ``params.yaml`` has them.
        key: of ``params.yaml``, for messages.

    Raises:
        UserError: a name is unknown or occurs twice, or one that all others need is missing.
    """
    known, wanted = backends(), list(names)
    for name in wanted:
        if name not in known:
            raise UserError(f"params.yaml: {key}: {name!r}: unknown program; known: {', '.join(known)}")
    if len(set(wanted)) < len(wanted):
        raise UserError(f"params.yaml: {key}: {wanted}: names a program twice")
    for backend in known.values():
        if backend.required and backend.name not in wanted:
            raise UserError(f"params.yaml: {key}: {wanted}: lacks {backend.name}, from which all others are made")
    chosen = [name for name in known if name in wanted]
    for name in chosen:
        makers = [other.name for other in known.values() if other.owns_file and other.file == known[name].file]
        if not set(makers) & set(chosen):
            raise UserError(f"params.yaml: {key}: {wanted}: {name} runs {known[name].file}, add {makers[0]}")
    return chosen


def by_file(path: Path) -> Backend:
    """Return the back end to which a program file belongs, by the ending of its name."""
    found = [backend for backend in backends().values() if backend.owns_file and path.name.endswith(backend.suffix)]
    return max(found, key=lambda backend: len(backend.suffix))


def deterministic(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the file of each deterministic program that a manifest lists, by its name."""
    return {name: program["file"] for name, program in manifest["programs"].items()}


def exploring(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the file of each program that explores, by its name, such as ``onnx_random``."""
    return {
        f"{name}{RANDOM}": program["random_file"]
        for name, program in manifest["programs"].items()
        if program["random_file"] is not None
    }


def quickest(manifest: Mapping[str, Any]) -> str:
    """Return the deterministic program that starts without PyTorch, or the first where none does."""
    names = list(manifest["programs"])
    return next((name for name in names if backends()[name].on_device), names[0])
