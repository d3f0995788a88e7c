"""Golden decisions for the native library, in the format of ``native/src/golden.h``."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policy_export.device.arrays import Arrays
from policy_export.device.golden import Golden
from policy_export.device.manifest import action_names, observation_names, value_names
from policy_export.stage.files import replacing

NATIVE_GOLDEN = "native/golden.bin"
# What stands before the decisions: the policy's name, their number, bytes of a decision's observations, of its actions
# and of its values, and the tolerance. Each decision then has one byte more, of flags.
MAGIC, HEADER = b"GOLDEN2\n", "<64s4Qd"
STARTS, TIE = 1, 2


def _join(arrays: Arrays, names: Sequence[str]) -> bytes:
    return b"".join(arrays[name].tobytes() for name in names)


def write_native_golden(path: Path, golden: Golden, facts: Mapping[str, Any]) -> None:
    """Write golden decisions of a policy for its native library."""
    inputs, actions, values = observation_names(facts), action_names(facts), value_names(facts)
    decisions = [
        (bytes([STARTS * starts | TIE * tie]), _join(shown, inputs), _join(made, actions), _join(made, values))
        for starts, tie, shown, made in golden
    ]
    sizes = [len(part) for part in decisions[0][1:]]
    header = struct.pack(HEADER, facts["policy"].encode(), len(decisions), *sizes, golden.tolerance)
    with replacing(path) as temporary:
        temporary.write_bytes(MAGIC + header + b"".join(map(b"".join, decisions)))
