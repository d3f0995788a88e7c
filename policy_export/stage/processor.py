"""What the kernel says about this machine's processor."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def processor() -> dict[str, str]:
    """Return what the kernel says about the first processor, by its own names; nothing if it says nothing."""
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def processor_name() -> str:
    """Return the processor's name; its architecture's where it has none."""
    return processor().get("model name") or platform.processor() or platform.machine()
