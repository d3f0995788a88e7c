"""Every program behind one call: arrays by input name to arrays by output name.

PyTorch is imported only for the programs that need it, so that a process that measures ONNX Runtime holds nothing else.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from policy_export.backends.base import Settings
from policy_export.backends.registry import RANDOM, backends, by_file, deterministic, exploring
from policy_export.device.arrays import Run
from policy_export.device.errors import UserError
from policy_export.device.manifest import MANIFEST, check_file, read_manifest

WEIGHTS = "policy.safetensors"
EAGER = "eager"  # the trained policy itself; ``eager_random`` explores


def read_model(policy: str) -> tuple[dict[str, Any], dict[str, Path]]:
    """Read the manifest of a policy's folder and the paths of its programs, and check that these are the files listed.

    Raises:
        UserError: a file is missing, damaged, or not of this policy.
    """
    from policy_export.config.manifest_schema import check_manifest  # who only loads a program has no need of it

    folder = Path("models", policy)
    manifest = read_manifest(folder, check_manifest)
    files = deterministic(manifest) | exploring(manifest)
    paths = {name: check_file(folder, file, manifest) for name, file in files.items()}
    check_file(folder, WEIGHTS, manifest)
    if manifest["policy"] != policy:
        raise UserError(f"{folder / MANIFEST}: is of the policy {manifest['policy']!r}, expected {policy!r}")
    return manifest, paths


def load(path: Path, threads: int, onnx_session: dict[str, Any] | None = None, *, explores: bool = False) -> Run:
    """Load a program of any kind, identified by its file's name, to run on ``threads`` cores.

    Args:
        path: of the program.
        threads: of its runtime.
        onnx_session: a manifest's settings of ONNX Runtime; the player's own where there are none.
        explores: whether it draws random numbers; then they are different after every load.

    Raises:
        UserError: the file is missing or damaged, or does not run here.
    """
    return by_file(path).load(path, Settings(threads, onnx_session or {}, explores))


@functools.cache
def load_by_name(policy: str, name: str, threads: int) -> Run:
    """Load a policy's program, or the trained policy itself: ``eager``, and ``eager_random``, which explores.

    It is loaded once per process, and is meant for processes that serve only one stage, during which no file changes.

    Raises:
        UserError: a file is missing or damaged.
    """
    explores = name.endswith(RANDOM)
    backend_name = name.removesuffix(RANDOM)
    if backend_name == EAGER:
        return load_eager(policy, threads, explores=explores)
    manifest, backend = read_manifest(Path("models", policy)), backends()[backend_name]
    path = Path("models", policy, (deterministic(manifest) | exploring(manifest))[name])
    return backend.load(path, Settings(threads, manifest.get("onnx_session", {}), explores))


def load_eager(policy: str, threads: int, *, explores: bool) -> Run:
    """Load the trained policy, run by PyTorch as it was trained.

    Raises:
        UserError: its weights are missing or damaged.
    """
    import torch
    from torchrl.envs.utils import ExplorationType

    from policy_export.config.profile import load_profile
    from policy_export.device.checked import CheckedProgram
    from policy_export.program.calls import wrap
    from policy_export.program.step import load_step

    torch.set_num_threads(threads)
    if explores:
        torch.seed()
    exploration = ExplorationType.RANDOM if explores else ExplorationType.DETERMINISTIC
    step = load_step(policy, load_profile(policy), exploration)
    name = f"{EAGER}{RANDOM}" if explores else EAGER
    return CheckedProgram(name, wrap(step), step.signature.as_dict()["inputs"])
