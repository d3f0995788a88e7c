"""Leave mere checks out of a traced program: an ``if`` that does nothing but raise or warn, and ``assert``.

A graph has no branches. TorchRL, tensordict and PyTorch's distributions check the values that they are given
(``if not (high > low).all(): raise ...``), and so may a user's module. Such a check changes no result, so that tracing
may assume that it passes: a tensor's truth, its ``item()``, and ``any`` and ``all`` of its ``tolist()``.
A branch that computes something is left alone, and ends the export.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Place = tuple[int, int]  # line and column

WARNINGS = ("warn", "warning")
# Frames of these stand between a module's line and what is called when it asks for a tensor's truth.
MACHINERY = ("torch/overrides.py", "torch/_export/", "torch/_subclasses/", "torch/_tensor.py", "torch/utils/", __file__)
# What gives a tensor's values to Python, and as what. While it is traced, ``tolist`` asks ``unbind`` and ``item``.
VALUES: dict[Any, Callable[[bool], Any]] = {
    torch.Tensor.tolist: lambda value: [value],
    torch.Tensor.unbind: lambda value: [SimpleNamespace(item=lambda: value)],
    torch.Tensor.item: lambda value: value,
}


@dataclass(frozen=True)
class Check:
    """A statement that only checks.

    Attributes:
        statement: the ``if`` or ``assert``.
        operands: the expressions whose truth it reads, each with the truth value for which the check passes.
    """

    statement: ast.If | ast.Assert
    operands: list[tuple[ast.expr, bool]]


@functools.cache
def _checks(path: str) -> list[Check]:
    """Return the checks in a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(path)))
    except SyntaxError:
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append(Check(node, list(_operands(node.test, wanted=True))))
        elif isinstance(node, ast.If) and _only_warns_or_raises(node.body):
            found.append(Check(node, list(_operands(node.test, wanted=False))))
    return found


def _only_warns_or_raises(body: list[ast.stmt]) -> bool:
    """Return whether statements end in an error, or do nothing but warn."""
    if isinstance(body[-1], ast.Raise):
        return True
    calls = [statement.value for statement in body if isinstance(statement, ast.Expr)]
    functions = [call.func for call in calls if isinstance(call, ast.Call)]
    names = [
        function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "") for function in functions
    ]
    return len(names) == len(body) and all(name in WARNINGS for name in names)


def _operands(test: ast.expr, *, wanted: bool) -> Iterator[tuple[ast.expr, bool]]:
    """Yield the expressions of a test, each with the truth value that gives the wanted outcome."""
    match test:
        case ast.UnaryOp(op=ast.Not()):
            yield from _operands(test.operand, wanted=not wanted)
        case ast.BoolOp():
            for value in test.values:
                yield from _operands(value, wanted=wanted)
        case _:
            yield test, wanted


def _asking_frame() -> FrameType:
    """Return the frame of the module that called something, outside of the frames of PyTorch's own machinery."""
    frame = inspect.currentframe()
    assert frame is not None  # CPython has them
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in MACHINERY):
        frame = frame.f_back
    return frame


def _span(instruction: dis.Instruction) -> tuple[Place, Place] | None:
    """Return where the source of an instruction starts and ends."""
    places = instruction.positions
    if places is None or None in places:
        return None
    line, end_line, column, end_column = (place or 0 for place in places)
    return (line, column), (end_line, end_column)


def _current(instructions: list[dis.Instruction], frame: FrameType) -> dis.Instruction:
    """Return the instruction that a frame is at, or in whose cache it is."""
    return [instruction for instruction in instructions if instruction.offset <= frame.f_lasti][-1]


def _is_condition(instruction: dis.Instruction) -> bool:
    return "JUMP" in instruction.opname and "IF" in instruction.opname.split("_")


def passing_truth(frame: FrameType) -> bool | None:
    """Return the truth value with which a frame's check passes, or None if the frame is in no check.

    For a jump, Python reports the place of the whole statement or of the expression, depending on its version.
    """
    instructions = list(dis.get_instructions(frame.f_code))
    at = _current(instructions, frame)
    if (span := _span(at)) is None:
        return None
    for check in _checks(frame.f_code.co_filename):
        for operand, truth in check.operands:
            if _start(operand) <= span[0] and span[1] <= _end(operand):
                return truth
        if span in {(_start(node), _end(node)) for node in (check.statement, check.statement.test)}:
            jumps = [other for other in instructions if _is_condition(other) and _span(other) == span]
            if len(jumps) == len(check.operands) and at in jumps:  # one for each operand, in the same order
                return check.operands[jumps.index(at)][1]
    return None


def passing_value(frame: FrameType) -> bool | None:
    """Return values of a tensor with which a frame's check passes.

    None where the check is neither an ``item()`` nor ``any`` or ``all`` of a ``tolist()``.
    """
    span = _span(_current(list(dis.get_instructions(frame.f_code)), frame))
    for check in _checks(frame.f_code.co_filename) if span is not None else []:
        for operand, truth in check.operands:
            match operand:
                case ast.Call(func=ast.Attribute(attr="item")) as asked:
                    pass
                case ast.Call(
                    func=ast.Name(id="any" | "all"), args=[ast.Call(func=ast.Attribute(attr="tolist")) as asked]
                ):
                    pass
                case _:
                    continue
            # Where the method's name stands in another line than its object, Python tells the name's place.
            if span is not None and _start(asked) <= span[0] and span[1] == _end(asked):
                return truth
    return None


def _start(node: ast.stmt | ast.expr) -> Place:
    return node.lineno, node.col_offset


def _end(node: ast.stmt | ast.expr) -> Place:
    return node.end_lineno or node.lineno, node.end_col_offset or 0


class AssumeChecksPass(TorchFunctionMode):
    """While it is active, a tensor's truth in a mere check is the value for which the check passes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__ and (truth := passing_truth(_asking_frame())) is not None:
            return truth
        if func in VALUES and (value := passing_value(_asking_frame())) is not None:
            return VALUES[func](value)
        return func(*args, **(kwargs or {}))


def passing_checks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the same signature that is traced as if all checks had passed."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with AssumeChecksPass():  # inside of the tracer's own modes, which would record the question
            return function(*args, **kwargs)

    traced.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return traced
