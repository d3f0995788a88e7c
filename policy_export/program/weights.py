"""Weights of a policy as safetensors, with the statistics of its environment's transforms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from policy_export.device.errors import UserError
from policy_export.stage.files import replacing

STATISTICS = "transforms/"  # how the names of statistics begin; no weight has a slash in its name


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values, independent of how a file lays them out."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_weights(
    path: Path, policy: str, network: nn.Module, statistics: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write a module's weights and statistics as safetensors, with the policy's name and a digest in the header."""
    # Copies, as safetensors refuses tensors that share memory: tied weights, and TorchRL's own C51 support.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in {**network.state_dict(), **(statistics or {})}.items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"header": json.dumps({"policy": policy, "sha256": _digest(tensors)})})


def read_weights(path: Path, policy: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read what :func:`save_weights` wrote: the weights, and the statistics.

    Raises:
        UserError: the file is missing, damaged, or another policy's.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            header = json.loads((file.metadata() or {}).get("header", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        reason = "no such file; run `dvc repro`" if isinstance(error, FileNotFoundError) else f"damaged: {error}"
        raise UserError(f"{path}: {reason}") from None
    if header.get("policy") != policy:
        raise UserError(f"{path}: holds the policy {header.get('policy')!r}, expected {policy!r}")
    if header.get("sha256") != _digest(tensors):
        raise UserError(f"{path}: damaged: its weights do not match the digest in its header")
    statistics = {name: tensor for name, tensor in tensors.items() if name.startswith(STATISTICS)}
    return {name: tensor for name, tensor in tensors.items() if name not in statistics}, statistics


def load_weights(path: Path, policy: str, network: nn.Module) -> None:
    """Load what :func:`save_weights` wrote into ``network``.

    Raises:
        UserError: the file is missing, damaged, another policy's, or of a network with other weights; then there is a
            line for each that is missing, superfluous, or of another dtype or shape.
    """
    tensors, _ = read_weights(path, policy)
    if differences := _differences(_kinds(tensors), _kinds(network.state_dict())):
        lines = ["does not fit the network of params.yaml; train it again", *differences]
        raise UserError("\n".join(f"{path}: {line}" for line in lines))
    network.load_state_dict(tensors)


def _kinds(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Return dtype and shape of each, as ``float32[3, 5]``."""
    return {name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for name, tensor in tensors.items()}


def _differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return a line for each weight that only the file or only the network has."""
    lines = [f"{name}: missing, expected {kind}" for name, kind in expected.items() if name not in found]
    lines += [f"{name}: superfluous, found {kind}" for name, kind in found.items() if name not in expected]
    lines += [
        f"{name}: found {found[name]}, expected {kind}"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    return lines
