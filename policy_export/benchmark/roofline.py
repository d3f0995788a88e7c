"""What the machine could do at most: the roofline that throughput is compared with.

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
    """The machine's measured peak: floating-point operations and bytes per second."""

    flops: float
    bytes: float

    def roof(self, intensity: float) -> float:
        """Return the most operations per second with ``intensity`` operations per byte moved."""
        return min(self.flops, intensity * self.bytes)


@dataclass(frozen=True)
class Work:
    """What a decision needs: operations of its matrix products and convolutions, and bytes that must be moved.

    Attributes:
        flops: operations per row; a multiplication and its addition are two.
        row_bytes: bytes of a row's inputs and outputs.
        weight_bytes: bytes of the weights, which are read once per batch.
    """

    flops: int
    row_bytes: int
    weight_bytes: int

    def intensity(self, batch: int) -> float:
        """Return operations per byte."""
        return self.flops / (self.row_bytes + self.weight_bytes / batch)


def best(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some tries."""
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_peak(threads: int) -> Peak:
    """Measure the fastest float32 matrix product, and the fastest copy (reads and writes), on ``threads`` cores."""
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
    """Count the operations and bytes that a decision of the trained policy needs."""
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
