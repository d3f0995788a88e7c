"""What is measured: the policy, its programs, and what others would have exported instead.

PyTorch is imported only for what needs it, and nothing but what the program itself needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from policy_export.device.arrays import Arrays
from policy_export.device.onnx_session import load_onnx
from studies import tutorial

# The policy itself and its programs, all of which decide alike.
OWN = ("eager", "pt2", "aoti", "onnx", "native")
# The same policy in ONNX, exported naively, weighing the colours where they are or moving them first as TorchRL's
# ToTensorImage does; and the policy of TorchRL's tutorial, as it stands there.
NAIVE = {"onnx_naive": "policy.onnx", "onnx_naive_channels_first": "policy_channels_first.onnx"}
TUTORIAL = ("tutorial_eager", *tutorial.FILES)
BASELINES = (*NAIVE, *TUTORIAL)  # to compare with; measured in less detail
OFFLINE = ("aoti", "onnx")  # measured in batches of all sizes as well


def naive_path(policy: str, program: str) -> Path:
    return Path("baselines", policy, NAIVE[program])


def names(manifest: dict[str, Any]) -> list[str]:
    """All that can be measured of a policy: the tutorial's is one for screens like Pong's."""
    shown = [spec["shape"][1:] for spec in manifest["inputs"]]
    return [*OWN, *NAIVE, *(TUTORIAL if [210, 160, 3] in shown else ())]


class Candidate(NamedTuple):
    """A file in place of one of the policy's programs, or one of them with other settings.

    Attributes:
        path: of the program, of any kind that :func:`policy_export.backends.runtimes.load` tells by its name.
        threads: of its runtime.
        onnx_session: settings of ONNX Runtime, where they are not the player's.
    """

    path: str
    threads: int
    onnx_session: dict[str, Any] | None = None


def load(
    policy: str, program: str, threads: int, candidates: Mapping[str, Sequence[Any]] | None = None
) -> Callable[[Arrays], Arrays]:
    """A program as a function of named arrays, on ``threads`` cores, or a :class:`Candidate` by its name."""
    if candidates and program in candidates:
        from policy_export.backends import runtimes

        candidate = Candidate(*candidates[program])
        return runtimes.load(Path(candidate.path), candidate.threads, candidate.onnx_session)
    if program in TUTORIAL:
        return tutorial.load(program, threads)
    if program in NAIVE:
        return load_onnx(naive_path(policy, program), {"threads": threads})
    from policy_export.backends import runtimes

    return runtimes.load_by_name(policy, program, threads)


def file_bytes(policy: str, program: str) -> int | None:
    """The size of what is loaded; none where that is Python."""
    from policy_export.backends import runtimes

    paths = {name: Path("models", policy, file) for name, file in runtimes.PROGRAMS.items()}
    paths |= {name: naive_path(policy, name) for name in NAIVE}
    paths |= {name: tutorial.FOLDER / file for name, file in tutorial.FILES.items()}
    return paths[program].stat().st_size if program in paths else None
