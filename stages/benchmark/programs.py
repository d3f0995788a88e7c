"""What is measured: the policy, its programs, and what others would have exported instead.

PyTorch is imported only for what needs it, and nothing but what the program itself needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from play import Arrays, load_onnx
from stages.benchmark import tutorial

# The policy itself and its programs, all of which decide alike.
OWN = ("eager", "pt2", "aoti", "onnx", "native")
# The same policy in ONNX, exported naively, and the policy of TorchRL's tutorial, as it stands there.
NAIVE = "onnx_naive"
TUTORIAL = ("tutorial_eager", *tutorial.FILES)
OFFLINE = ("aoti", "onnx")  # measured in batches of all sizes as well


def naive_path(policy: str) -> Path:
    return Path("baselines", policy, "policy.onnx")


def names(manifest: dict[str, Any]) -> list[str]:
    """All that can be measured of a policy: the tutorial's is one for Atari's screens."""
    return [*OWN, NAIVE, *(TUTORIAL if "rom" in manifest["environment"] else ())]


def load(policy: str, program: str, threads: int) -> Callable[[Arrays], Arrays]:
    """A program as a function of named arrays, on ``threads`` cores."""
    if program in TUTORIAL:
        return tutorial.load(program, threads)
    if program == NAIVE:
        return load_onnx(naive_path(policy), threads)
    from stages.common import runtimes

    return runtimes.load_by_name(policy, program, threads)


def file_bytes(policy: str, program: str) -> int | None:
    """The size of what is loaded; none where that is Python."""
    from stages.common import runtimes

    paths = {name: Path("models", policy, file) for name, file in runtimes.PROGRAMS.items()}
    paths |= {name: tutorial.FOLDER / file for name, file in tutorial.FILES.items()} | {NAIVE: naive_path(policy)}
    return paths[program].stat().st_size if program in paths else None
