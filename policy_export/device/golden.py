"""Golden decisions: recorded observations with the decisions that a program must take."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Arrays
from .errors import UserError
from .manifest import action_names, observation_names, value_names
from .player import Player

GOLDEN_FILE = "native/golden.bin"
# What stands before the decisions: the policy's name, their number, bytes of a decision's observations, of its actions
# and of its values, and the largest difference of a value. Each decision then has one byte more, which is 1 where an
# episode starts.
GOLDEN_MAGIC, GOLDEN = b"GOLDEN1\n", "<64s4Qd"


def read_golden(path: Path, manifest: Mapping[str, Any]) -> tuple[npt.NDArray[Any], float]:
    """Read the golden decisions, and the largest difference that a value may have.

    Returns:
        an array of records: ``starts`` (uint8), ``observations`` by name, ``outputs`` by name, which are the actions
        and values; the difference.

    Raises:
        UserError: the file is missing, damaged, or of another policy.
    """
    observations = _fields(manifest["inputs"], observation_names(manifest))
    outputs = _fields(manifest["outputs"], [*action_names(manifest), *value_names(manifest)])
    record = np.dtype([("starts", "u1"), ("observations", observations), ("outputs", outputs)])
    start = len(GOLDEN_MAGIC) + struct.calcsize(GOLDEN)
    try:
        content = path.read_bytes()
        name, count, *sizes, tolerance = struct.unpack(GOLDEN, content[len(GOLDEN_MAGIC) : start])
        if not content.startswith(GOLDEN_MAGIC) or sum(sizes) + 1 != record.itemsize:
            raise ValueError("it has another form")
        if name.rstrip(b"\0").decode() != manifest["policy"]:
            raise ValueError(f"it is of the policy {name.rstrip(bytes(1)).decode()!r}")
        if count == 0 or not 0 <= tolerance < float("inf"):
            raise ValueError(f"it has {count} decisions, which may differ by {tolerance}")
        if len(content) - start != count * record.itemsize:
            raise ValueError(f"it has {len(content) - start} bytes of decisions, expected {count * record.itemsize}")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, struct.error) as error:
        raise UserError(f"{path}: not golden decisions of {manifest['policy']!r}: {error}") from None
    return np.frombuffer(content, record, offset=start), tolerance


def _fields(specs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.dtype[Any]:
    dtypes = {spec["name"]: (spec["dtype"], tuple(spec["shape"][1:])) for spec in specs}
    return np.dtype([(name, *dtypes[name]) for name in names])


def aligned(record: npt.NDArray[Any]) -> Arrays:
    """Return copies of a record's arrays by name, with a batch of one; in the file they lie at any address."""
    return {name: np.array(record[name])[None] for name in record.dtype.names or ()}


def is_close(found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> bool:
    """Return whether numbers differ by no more than the tolerance if they are floats, and else by nothing.

    An infinity is the same as itself, such as what a mask makes of a logit.
    """
    if expected.dtype.kind != "f":
        return np.array_equal(found, expected)
    return np.allclose(found, expected.astype(np.float64), rtol=0, atol=tolerance, equal_nan=True)


def selftest(player: Player, path: Path) -> int:
    """Replay golden decisions, ``native/golden.bin`` of a model folder; return how many there are.

    Raises:
        UserError: a decision differs, or the file cannot be read.
    """
    decisions, tolerance = read_golden(path, player.manifest)
    for number, expected in enumerate(decisions):
        if expected["starts"]:
            player.reset()
        found = player.step(aligned(expected["observations"]))
        for name, output in aligned(expected["outputs"]).items():
            if not is_close(found[name], output, tolerance):
                raise UserError(
                    f"{path}: decision {number} comes out otherwise: {name} {found[name][0].tolist()}, "
                    f"expected {output[0].tolist()}"
                )
    return len(decisions)
