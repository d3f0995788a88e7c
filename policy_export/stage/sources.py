"""Which of the project's files a module needs, found without importing anything, and hashes of what their code does."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

from policy_export.device.errors import UserError, one_line

PACKAGE = Path(__file__).parents[1]
OURS = {PACKAGE.name, "stages"}  # found next to this package, whatever the working folder is
# How a stage is started, and what is shown of its progress and of libraries' remarks: what it makes does not depend on
# these.
PRINTING = {Path(PACKAGE.name, "stage", name) for name in ("command.py", "progress.py", "quiet.py", "stopping.py")}
PRINTING |= {Path(package, "__init__.py") for package in (PACKAGE.name, "stages", "studies")}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def module_file(name: str) -> Path | None:
    """Return the file of a module under the working folder or in this package; none if it is elsewhere.

    The path is relative to the working folder, or for this package to the folder that holds it.
    """
    path = Path(*name.split("."))
    for root in (Path(), *([PACKAGE.parent] if path.parts[0] in OURS else [])):
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (root / file).is_file():
                return file
    return None


def _locate(file: Path) -> Path:
    """Return where a file of :func:`module_file` really is."""
    return file if file.is_file() else PACKAGE.parent / file


def _parse(path: Path) -> ast.Module:
    """Parse a file.

    Raises:
        UserError: the file is not Python.
    """
    try:
        return ast.parse(_locate(path).read_bytes())
    except SyntaxError as error:
        raise UserError(f"{path}: line {error.lineno}: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: not Python: {one_line(error)}") from None


def imported_names(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere in it.

    Relative imports are resolved; what is imported from a module may be a module itself.

    Raises:
        UserError: the file is not Python.
    """
    names: set[str] = set()
    for node in ast.walk(_parse(path)):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                package = [*path.parent.parts[: len(path.parent.parts) - node.level + 1]] if node.level else []
                module = ".".join([*package, *([node.module] if node.module else [])])
                names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def needed_files(modules: Iterable[str]) -> set[Path]:
    """Return the files of some modules and, directly or not, of all modules of this project that they import.

    Modules that are elsewhere are left out, and so are empty files and what only prints.
    """
    found: set[Path] = set()
    unread = [*_files_of(modules)]
    while unread:
        path = unread.pop()
        if path in found or path in PRINTING or not _locate(path).stat().st_size:
            continue
        found.add(path)
        unread += _files_of(imported_names(path))
    return found


def _files_of(names: Iterable[str]) -> set[Path]:
    """Return the files of modules, and of the packages that they lie in, which are imported first."""
    every = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    return {file for name in every if name and (file := module_file(name)) is not None}


class _Silent(ast.NodeTransformer):
    """Removes what a program only says: documentation, and the texts of errors that it raises.

    A text may stand in the ``raise``, or in a string that is built before it in the same function.
    """

    def __init__(self) -> None:
        self.told: list[set[str]] = [set()]

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, DOCUMENTED):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return super().visit(node)
        raised = [inner.exc for inner in ast.walk(node) if isinstance(inner, ast.Raise) and inner.exc is not None]
        self.told.append({name.id for error in raised for name in ast.walk(error) if isinstance(name, ast.Name)})
        try:
            return super().visit(node)
        finally:
            self.told.pop()

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        written = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        if written & self.told[-1]:
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value:
                    part.value = ""
        return self.generic_visit(node)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def hash_meaning(path: Path) -> str:
    """Return the SHA-256 of what a Python file does.

    Comments, layout, documentation and the texts of errors that are raised do not change it.

    Raises:
        UserError: the file is not Python.
    """
    return hashlib.sha256(ast.dump(_Silent().visit(_parse(path))).encode()).hexdigest()


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    """Return a SHA-256 by path, in alphabetical order: of what Python does, and of the bytes of other files."""
    hashes = {}
    for path in sorted(files):
        if path.suffix == ".py":
            hashes[path.as_posix()] = hash_meaning(path)
        else:
            with path.open("rb") as file:
                hashes[path.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
