"""ONNX programs, run by ONNX Runtime."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from .arrays import Arrays
from .checked import CheckedProgram
from .errors import UserError, first_line

DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names that are not NumPy's


# How ONNX Runtime runs a program, where the manifest does not say otherwise: on one core, without busy waiting.
SESSION: dict[str, Any] = {
    "threads": 1,
    "spinning": False,
    "memory_pattern": True,
    "arena": True,
    "optimization": "all",
}
OPTIMIZATIONS = {
    "none": "DISABLE_ALL",
    "basic": "ENABLE_BASIC",
    "extended": "ENABLE_EXTENDED",
    "layout": "ENABLE_LAYOUT",
    "all": "ENABLE_ALL",
}


def session_options(settings: dict[str, Any]) -> Any:
    """Return ONNX Runtime's options for some of the keys of ``SESSION``; the other values are from ``SESSION``.

    Raises:
        UserError: a key is unknown, or its value is of another type or not among those allowed.
    """
    if not isinstance(settings, dict):
        raise UserError(f"onnx_session is {settings!r}, expected some of {SESSION}")
    for name, value in settings.items():
        if name not in SESSION or type(value) is not type(SESSION[name]):
            raise UserError(f"onnx_session: {name} is {value!r}, expected some of {SESSION}")
    chosen = SESSION | settings
    if chosen["optimization"] not in OPTIMIZATIONS:
        raise UserError(f"onnx_session: optimization is {chosen['optimization']!r}, expected one of {OPTIMIZATIONS}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = chosen["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(chosen["spinning"])))
    options.enable_mem_pattern = chosen["memory_pattern"]
    options.enable_cpu_mem_arena = chosen["arena"]
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_{OPTIMIZATIONS[chosen['optimization']]}"
    )
    return options


def load_onnx(path: Path, settings: dict[str, Any] | None = None) -> CheckedProgram:
    """Load an ONNX program as a function of named arrays.

    A program that explores gets other numbers after every load: a process has one seed for all that it loads.

    Args:
        path: where the program is.
        settings: those that differ from ``SESSION``; ``manifest.json`` has them as ``onnx_session``.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path} needs onnxruntime: pip install onnxruntime") from None
    options = session_options(settings or {})
    onnxruntime.set_seed(secrets.randbits(31))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds share no base class
        raise UserError(f"{path}: not a program that ONNX Runtime loads: {str(error).splitlines()[0]}") from None
    names = [output.name for output in session.get_outputs()]
    inputs = [
        {"name": spec.name, "dtype": DTYPES.get(kind, kind), "shape": spec.shape}
        for spec in session.get_inputs()
        for kind in (spec.type.removeprefix("tensor(").removesuffix(")"),)
    ]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, arrays), strict=True))

    return CheckedProgram(str(path), run, inputs, _read_facts(path, session.get_modelmeta().custom_metadata_map))


def _read_facts(path: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    """Return what a program's metadata says of it; none for one that says nothing, as it is not of this pipeline.

    Raises:
        UserError: it cannot be read.
    """
    if "facts" not in metadata:
        return None
    try:
        facts: dict[str, Any] = json.loads(metadata["facts"])
        return facts | {"policy": metadata["policy"]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged: its metadata: {type(error).__name__}: {first_line(error)}") from None
