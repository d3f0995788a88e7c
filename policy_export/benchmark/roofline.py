"""What the machine could do at most: the roofline that throughput is held against.

After Williams, Waterman and Patterson (2009), "Roofline: an insightful visual performance model for multicore
architectures".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from policy_export.backends import runtimes
from policy_export.device.manifest import read_manifest

MATRIX = 1024  # rows and columns: large enough for a library's fastest code
COPIED = 256 * 2**20  # bytes: more than caches hold
TRIES = 10


@dataclass(frozen=True)
class Peak:
    """What was measured of the machine: floating-point operations and bytes a second."""

    flops: float
    bytes: float

    def roof(self, intensity: float) -> float:
        """The most operations a second of what does ``intensity`` operations for a byte that it moves."""
        return min(self.flops, intensity * self.bytes)


@dataclass(frozen=True)
class Work:
    """What a decision needs: operations of its matrix products and convolutions, and bytes that must move.

    Attributes:
        flops: operations a row; a multiplication and its addition are two.
        row_bytes: inputs and outputs of a row.
        weight_bytes: read once a batch.
    """

    flops: int
    row_bytes: int
    weight_bytes: int

    def intensity(self, batch: int) -> float:
        """Operations a byte."""
        return self.flops / (self.row_bytes + self.weight_bytes / batch)


def best(run: Callable[[], object]) -> float:
    """Seconds, of the fastest of some tries."""
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_peak(threads: int) -> Peak:
    """The fastest matrix product in float32, and the fastest copy, which reads and writes, on so many cores."""
    import torch

    torch.set_num_threads(threads)
    one, other = torch.rand(2, MATRIX, MATRIX)
    product = torch.empty_like(one)
    source = torch.ones(COPIED // 4)
    target = torch.zeros_like(source)
    return Peak(
        2 * MATRIX**3 / best(lambda: torch.mm(one, other, out=product)),
        2 * COPIED / best(lambda: target.copy_(source)),
    )


def count_work(policy: str) -> Work:
    """What a decision of the trained policy needs."""
    from torch.utils.flop_counter import FlopCounterMode

    inputs = {
        spec["name"]: np.zeros([1, *spec["shape"][1:]], spec["dtype"])
        for spec in read_manifest(Path("models", policy))["inputs"]
    }
    eager = runtimes.load_by_name(policy, "eager", 1)
    with FlopCounterMode(display=False) as counter:
        outputs = eager(inputs)
    with safe_open(Path("models", policy, "policy.safetensors"), "np") as file:
        weights = sum(file.get_tensor(name).nbytes for name in file.keys())
    moved = sum(array.nbytes for array in [*inputs.values(), *outputs.values()])
    return Work(counter.get_total_flops(), moved, weights)
