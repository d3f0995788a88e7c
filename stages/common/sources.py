"""Which of the project's files a module needs, found without importing anything, and their hashes."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

from stages.common.errors import UserError, one_line


def module_file(name: str) -> Path | None:
    """The file of a module under the working folder, or nothing where it is not there."""
    path = Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported_names(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it.

    Relative imports are resolved; what is imported from a module may be a module itself.

    Raises:
        UserError: the file is not Python.
    """
    names: set[str] = set()
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise UserError(f"{path}: line {error.lineno}: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: not Python: {one_line(error)}") from None
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                package = [*path.parent.parts[: len(path.parent.parts) - node.level + 1]] if node.level else []
                module = ".".join([*package, *([node.module] if node.module else [])])
                names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def needed_files(modules: Iterable[str]) -> set[Path]:
    """The files of some modules and, directly or not, of all modules of this project that they import.

    Modules that are elsewhere are left out, and so are empty files.
    """
    found: set[Path] = set()
    unread = [file for name in modules if (file := module_file(name)) is not None]
    while unread:
        path = unread.pop()
        if path in found or not path.stat().st_size:
            continue
        found.add(path)
        names = imported_names(path)
        packages = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
        unread += [file for name in names | packages if (file := module_file(name)) is not None]
    return found


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path, in alphabetical order."""
    hashes = {}
    for path in sorted(files):
        with path.open("rb") as file:
            hashes[path.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
