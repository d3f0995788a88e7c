"""Golden decisions: recorded observations with the decisions that a program must take."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .manifest import value_names
from .player import Player

GOLDEN_FILE = "native/golden.bin"
# What stands before the decisions: the policy's name, their number, bytes of an observation, an action and its values,
# and the largest difference of a value. Each decision then has one byte more, which is 1 where an episode starts.
GOLDEN_MAGIC, GOLDEN = b"GOLDEN1\n", "<64s4Qd"


def read_golden(path: Path, manifest: Mapping[str, Any]) -> tuple[npt.NDArray[Any], float]:
    """Read the golden decisions, and the largest difference that a value may have.

    Returns:
        an array of records, with ``starts`` (uint8), ``observation``, ``action`` and each value's name; the difference.

    Raises:
        UserError: the file is missing, damaged, or of another policy.
    """
    specs = {spec["name"]: spec for spec in (*manifest["inputs"], *manifest["outputs"])}
    states = {state["input"] for state in manifest["states"]}
    (observation,) = (spec["name"] for spec in manifest["inputs"] if spec["name"] not in {*states, "is_init"})
    fields = [("observation", specs[observation])]
    fields += [(name, specs[name]) for name in ("action", *value_names(manifest))]
    record = np.dtype([("starts", "u1"), *((name, spec["dtype"], tuple(spec["shape"][1:])) for name, spec in fields)])
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


def selftest(player: Player, path: Path) -> int:
    """Replay golden decisions, ``native/golden.bin`` of a model folder; return how many there are.

    Raises:
        UserError: a decision differs, or the file cannot be read.
    """
    decisions, tolerance = read_golden(path, player.manifest)
    for number, expected in enumerate(decisions):
        if expected["starts"]:
            player.reset()
        found = player.step(expected["observation"][None])
        for name in ("action", *value_names(player.manifest)):
            allowed = tolerance if expected[name].dtype.kind == "f" else 0
            if not np.all(np.abs(np.subtract(found[name][0], expected[name], dtype=np.float64)) <= allowed):
                raise UserError(
                    f"{path}: decision {number} comes out otherwise: {name} {found[name][0].tolist()}, "
                    f"expected {expected[name].tolist()}"
                )
    return len(decisions)
