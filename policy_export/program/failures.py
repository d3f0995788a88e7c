"""The error that ends an export, in one line: the reason, and the line of source that causes it."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from policy_export.config.errors import ProfileError
from policy_export.device.errors import UserError, refusal
from policy_export.stage.files import write_text

if TYPE_CHECKING:
    import torch

INSTALLED = ("site-packages/", "dist-packages/")  # the second is Debian's
ROOMS = ("algorithms", "backends", "environments", "lowering", "machine", "parity", "program", "stage")
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
# Frames of these are never to blame: libraries, and what calls a policy here.
NOT_TO_BLAME = (*INSTALLED, STANDARD_LIBRARY, *(f"/policy_export/{room}/" for room in ROOMS), "<")
LIBRARIES = ("/torchrl/", "/torch/distributions/")
WRAPPER = "TensorDictModule failed with operation"
SYMBOLS = logging.getLogger("torch.fx.experimental.symbolic_shapes")
BRANCH = "GuardOnDataDependentSymNode"
LONGEST = 200  # characters of a module
PROJECT = Path(__file__).parents[2]
START = "policy_export/program/step.py"  # where every stack begins that is of the policy
FRAME = re.compile(r'File "([^"]+)", line (\d+)')
OPERATOR = re.compile(r"(?:OpOverload\(op='|target: )([\w.:]+)")


def short(path: str) -> str:
    """Return the path of a source file in ``site-packages``, in the project, or below a folder of Python's path."""
    if part := next((part for part in INSTALLED if part in path), None):
        return path.rpartition(part)[2]
    folders = [Path.cwd(), PROJECT, *map(Path, sorted(filter(None, sys.path), key=len, reverse=True))]
    folder = next((folder for folder in folders if Path(path).is_relative_to(folder)), None)
    return str(Path(path).relative_to(folder)) if folder is not None else path


def without_places(stack: str) -> str:
    """Return the stack of a node, of what the policy calls, without the folders of this machine."""

    def replaced(frame: re.Match[str]) -> str:
        path = frame[1]
        part = next((part for part in INSTALLED if part in path), "")
        if path.startswith(STANDARD_LIBRARY) and not part:
            return f'File "<{path.removeprefix(STANDARD_LIBRARY)[1:]}>", line {frame[2]}'
        return f'File "{part}{short(path)}", line {frame[2]}'

    frames = FRAME.sub(replaced, stack)
    return frames[max(0, frames.find(f'File "{START}')) :]


def place(path: str, line: int) -> str:
    """Return a line of source in short form: ``my_policy.py:41``."""
    return f"{short(path)}:{line}"


def blame(frames: Iterable[tuple[str, int]]) -> str | None:
    """Return the innermost line of the user's code, or else of a library's modules; None if there is neither."""
    frames = list(frames)
    users = [frame for frame in frames if not any(part in _rooted(frame[0]) for part in NOT_TO_BLAME)]
    libraries = [frame for frame in frames if any(part in frame[0] for part in LIBRARIES)]
    chosen = users or libraries
    return place(*chosen[-1]) if chosen else None


def _rooted(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def source_of(node: torch.fx.Node) -> str | None:
    """Return the line of source that a node of an exported graph comes from, where it is known."""
    trace = node.meta.get("stack_trace") or ""
    return blame((path, int(line)) for path, line in FRAME.findall(trace))


def reason(error: BaseException) -> str:
    """Return what an error says, in one line."""
    kind = type(error).__name__
    if kind == BRANCH:
        return "branches on the value of a tensor, and a program has no branches; use torch.where"
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip(" -=\t")]
    said = lines[0] if lines else kind
    said = said.rstrip(".")
    return said if said.startswith(kind) else f"{kind}: {said}"


def root_cause(error: BaseException) -> BaseException:
    """Return the first error in a chain, without tensordict's notes about the module that was called."""
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        if str(cause).startswith(WRAPPER):
            break
        error = cause
    return error


def failing_module(error: BaseException) -> str | None:
    """Return the module in which an error was raised, as in tensordict's note: its layers and keys."""
    link: BaseException | None = error
    while link is not None:
        if str(link).startswith(WRAPPER):
            told = " ".join(str(link).removeprefix(WRAPPER).split()).rstrip(".")
            return told if len(told) <= LONGEST else f"{told[:LONGEST]}..."
        link = link.__cause__ or link.__context__
    return None


@contextlib.contextmanager
def watch_sizes() -> Iterator[list[str]]:
    """Yield the lines of source that fix a size which should have stayed variable, while a program is traced."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("eval Eq("):
                where = blame((frame.filename, frame.lineno or 0) for frame in traceback.extract_stack())
                found.extend([where] if where else [])

    handlers, level, propagate = SYMBOLS.handlers, SYMBOLS.level, SYMBOLS.propagate
    SYMBOLS.handlers = [Handler()]  # and not PyTorch's own, which would print all of it
    SYMBOLS.setLevel(logging.INFO)
    SYMBOLS.propagate = False
    try:
        yield found
    finally:
        SYMBOLS.handlers = handlers
        SYMBOLS.setLevel(level)
        SYMBOLS.propagate = propagate


@contextlib.contextmanager
def without_partial_graph() -> Iterator[None]:
    """Keep PyTorch from printing how far it came before an export failed: the error has it, and its line of source."""
    told, graph = io.StringIO(), ""
    try:
        with contextlib.redirect_stderr(told):
            yield
    except Exception as error:
        if hasattr(error, "partial_fx_graph"):
            graph = f"{error.partial_fx_graph}\n"
        raise
    finally:
        sys.stderr.write(told.getvalue().replace(graph, ""))


def fixes_batch(error: BaseException) -> bool:
    """Return whether an error says that a program cannot be traced for any batch size."""
    return "Constraints violated" in str(error)


def explain(error: BaseException, program: torch.export.ExportedProgram | None = None) -> str:
    """Return an error in one line, with the module and the line of source that cause it.

    Args:
        error: of an eager call, of ``torch.export``, of the ONNX exporter or of AOTInductor.
        program: that was converted; an operator that the error names is looked up in it.
    """
    cause = root_cause(error)
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    where, what = blame(frames), reason(error if type(error).__name__ == BRANCH else cause)
    operator = next(iter(OPERATOR.findall(f"{error}\n{cause}")), None)
    if program is not None and operator is not None:
        name = operator.replace("::", ".").removesuffix(".default")
        what, where = f"the operator {name} cannot be converted", find_operator(program, name)
    elif where is None and (module := failing_module(error)):
        return f"{what}, in {module}"
    return f"{what}, at {where}" if where else what


def find_operator(program: torch.export.ExportedProgram, name: str) -> str | None:
    """Return the source line of the first node that calls an operator, or an operator that contains it."""
    exact = [node for node in program.graph.nodes if str(node.target).removesuffix(".default") == name]
    similar = [node for node in program.graph.nodes if name.split(".")[1] in str(node.target)]
    return next((found for node in (*exact, *similar) if (found := source_of(node))), None)


@contextlib.contextmanager
def in_one_line(policy: str, stage: str, program: torch.export.ExportedProgram | None = None) -> Iterator[None]:
    """Turn any error inside into one line, and write the whole trace into a file that the line names.

    What the machine refuses is raised as it is.

    Raises:
        ProfileError: something else was raised inside.
    """
    path = Path("results", policy, "failures", f"{stage}.txt")
    path.unlink(missing_ok=True)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if refusal(error) is not None:
            raise
        graph = getattr(error, "partial_fx_graph", "")  # how far the export came
        write_text(path, "".join([*traceback.format_exception(error), f"{graph}\n" if graph else ""]))
        raise ProfileError(f"{stage}: {explain(error, program)}; the whole trace: {path}") from None
