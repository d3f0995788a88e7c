"""A policy's native library, called through its C interface."""

from __future__ import annotations

import ctypes
import functools
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Arrays
from .checked import CheckedProgram
from .errors import UserError
from .manifest import check_file

COPIED = 65536  # bytes of an array that are rather copied than found
NATIVE = "native/libpolicy.so"


class NativeArray(ctypes.Structure):
    """``policy_array`` of ``policy.h``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("bytes", ctypes.c_size_t),
        ("dimensions", ctypes.c_size_t),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("next", ctypes.c_int),
    )


def address(array: npt.NDArray[Any]) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


class NativeProgram:
    """A native library as a function of named arrays; rows are computed one after the other.

    Args:
        path: where the library is.

    Raises:
        UserError: it is not such a library, or this processor lacks instructions that it was built for.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        try:
            self.library = ctypes.CDLL(str(path.resolve()))
            self.library.policy_message.restype = ctypes.c_char_p
            self.library.policy_close.argtypes = [ctypes.c_void_p]
            self.library.policy_close.restype = None
            self.inputs, self.outputs = self._arrays("policy_inputs"), self._arrays("policy_outputs")
            self.facts = self._facts("policy_description") | self._facts("policy_facts")
            handle = ctypes.c_void_p()
            self.check(self.library.policy_open(ctypes.byref(handle)))
        except (OSError, AttributeError) as error:
            raise UserError(f"{path}: not a policy's native library: {error}") from None
        weakref.finalize(self, self.library.policy_close, handle)
        given = {spec["name"]: np.empty(spec["shape"], spec["dtype"]) for spec in self.inputs}
        made = {spec["name"]: np.empty(spec["shape"], spec["dtype"]) for spec in self.outputs}
        places = (ctypes.c_void_p * len(given))(*map(address, given.values()))
        results = (ctypes.c_void_p * len(made))(*map(address, made.values()))
        # To copy a small array costs less than to find where it lies.
        self.small = [(name, array) for name, array in given.items() if array.nbytes <= COPIED]
        self.large = [(name, place) for place, (name, array) in enumerate(given.items()) if array.nbytes > COPIED]
        self.made, self.places = list(made.items()), places
        self.run = functools.partial(self.library.policy_run, handle, places, results)

    def _arrays(self, query: str) -> list[dict[str, Any]]:
        arrays, function = ctypes.POINTER(NativeArray)(), getattr(self.library, query)
        function.restype = ctypes.c_size_t
        return [
            {
                "name": array.name.decode(),
                "dtype": np.dtype(array.dtype.decode()),
                "shape": array.shape[: array.dimensions],
            }
            for array in arrays[: function(ctypes.byref(arrays))]
        ]

    def _facts(self, query: str) -> dict[str, Any]:
        function = getattr(self.library, query)
        function.restype = ctypes.c_char_p
        facts: dict[str, Any] = json.loads(function())
        return facts

    def check(self, status: int) -> None:
        if status:
            raise UserError(f"{self.path}: {self.library.policy_message(status).decode()}")

    def __call__(self, arrays: Arrays) -> Arrays:
        rows = len(next(iter(arrays.values())))
        if rows == 1:
            return self.decide(arrays)
        decided = [self.decide({name: array[row : row + 1] for name, array in arrays.items()}) for row in range(rows)]
        return {name: np.concatenate([outputs[name] for outputs in decided]) for name in decided[0]}

    def decide(self, arrays: Arrays) -> Arrays:
        """Return all outputs for one row."""
        with self.lock:
            for name, copy in self.small:
                copy[...] = arrays[name]
            held = [arrays[name] for name, _ in self.large]
            for index, (_, place) in enumerate(self.large):
                if not held[index].flags.c_contiguous:
                    held[index] = np.ascontiguousarray(held[index])
                self.places[place] = address(held[index])
            self.check(self.run())
            return {name: array.copy() for name, array in self.made}


def load_native(path: Path) -> CheckedProgram:
    """Load a native library as a function of named arrays, on one core.

    Raises:
        UserError: it cannot be loaded, or is not for this processor.
    """
    program = NativeProgram(path)
    inputs = [{"name": spec["name"], "dtype": spec["dtype"], "shape": spec["shape"]} for spec in program.inputs]
    return CheckedProgram(str(path), program, inputs, program.facts)


def load_any_native(folder: Path, manifest: dict[str, Any]) -> tuple[str, CheckedProgram]:
    """Load the first of a model folder's native libraries that fits this processor; return its name and program.

    Raises:
        UserError: one is missing or damaged, or none can be loaded; the message says why the first cannot.
    """
    others = [name for name in manifest["files"] if Path(name).match("native/*/libpolicy.so")]
    refusals = []
    for name in (NATIVE, *others):
        path = check_file(folder, name, manifest)
        try:
            return name, load_native(path)
        except UserError as error:
            refusals.append(error)
    raise refusals[0]
