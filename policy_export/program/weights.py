"""Weights of a policy as safetensors, with the statistics of its environment's transforms."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from policy_export.config.errors import ProfileError
from policy_export.config.profile import Checkpoint, Policy, describe_mistakes
from policy_export.device.errors import UserError, first_line
from policy_export.environments.factories import import_function, takes
from policy_export.program.archive import unsafe_member
from policy_export.stage.files import replacing

STATISTICS = "transforms/"  # how the names of statistics begin; no weight has a slash in its name


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values, independent of how a file lays them out."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
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


def checkpoint_of(policy: Policy) -> Checkpoint | None:
    """Return the weights that a policy starts with, if it has some that its factory does not load itself.

    Raises:
        ProfileError: the profile has mistakes there.
    """
    content = policy.checkpoint
    if content is None or takes(import_function("policy", policy.factory), "checkpoint"):
        return None
    try:
        return Checkpoint.model_validate({"file": content} if isinstance(content, str) else content)
    except ValidationError as error:
        raise ProfileError("\n".join(describe_mistakes(error, Checkpoint, "policy.checkpoint."))) from None


def load_checkpoint(checkpoint: Checkpoint, network: nn.Module) -> None:
    """Load weights that another program has trained into ``network``, or into the module in it that has their names.

    Raises:
        ProfileError: the file is missing, is no dictionary of tensors, or does not fit; then there is a line for each
            weight that is missing, superfluous, or of another dtype or shape.
    """
    place = f"policy.checkpoint: {checkpoint.file!r}"
    found = renamed(read_checkpoint(checkpoint, place), checkpoint, place)
    modules = {name: module for name, module in network.named_modules() if module.state_dict().keys() == found.keys()}
    outermost = [name for name in modules if not any(_is_within(name, other) for other in modules)]
    if len(outermost) > 1:
        raise ProfileError(f"{place}: fits {' and '.join(outermost)} alike: give keys, of names that begin with one")
    target = modules[outermost[0]] if outermost else network
    if differences := _differences(_kinds(found), _kinds(target.state_dict())):
        lines = ["does not fit the policy that the factory makes", *differences]
        raise ProfileError("\n".join(f"{place}: {line}" for line in lines))
    target.load_state_dict(found)


def _is_within(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(f"{other}."))


def read_checkpoint(checkpoint: Checkpoint, place: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, on the CPU; what is no tensor is left out.

    Raises:
        ProfileError: it cannot be read, or holds no dictionary of tensors where the weights should be.
    """
    path = Path(checkpoint.file)
    try:
        if reason := unsafe_member(path):
            raise ProfileError(f"{place}: {reason}")
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except ProfileError:
        raise
    except FileNotFoundError:
        raise ProfileError(f"{place}: no such file") from None
    except pickle.UnpicklingError as error:
        if "Weights only" not in str(error):
            raise ProfileError(f"{place}: damaged: {first_line(error)}") from None
        raise ProfileError(
            f"{place}: holds Python objects, which are not safe to load: save module.state_dict() instead"
        ) from None
    except Exception as error:  # both readers raise many kinds for what they do not read
        raise ProfileError(f"{place}: holds no weights that are safe to load: {first_line(error)}") from None
    for key in checkpoint.entry.split(".") if checkpoint.entry else ():
        if not isinstance(content, dict) or key not in content:
            raise ProfileError(f"{place}: has no entry {checkpoint.entry!r}, only {_listed(content)}")
        content = content[key]
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in entries if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ProfileError(f"{place}: holds no tensors by name, but {_listed(content)}; entry says where they are")
    return tensors


def _listed(content: Any) -> str:
    return ", ".join(map(repr, content)) if isinstance(content, dict) else f"a {type(content).__name__}"


def renamed(tensors: dict[str, torch.Tensor], checkpoint: Checkpoint, place: str) -> dict[str, torch.Tensor]:
    """Return tensors under the names that a network has.

    Raises:
        ProfileError: nothing begins with what the profile says, or two would have one name.
    """
    if (prefix := checkpoint.prefix) is not None:
        if not any(name.startswith(prefix) for name in tensors):
            raise ProfileError(f"{place}: no name begins with prefix {prefix!r}; it has {', '.join(tensors)}")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    found: dict[str, torch.Tensor] = {}
    keys = checkpoint.keys or {}
    if unused := [start for start in keys if not any(name.startswith(start) for name in tensors)]:
        raise ProfileError(f"{place}: no name begins with {unused[0]!r}, which keys has; it has {', '.join(tensors)}")
    for name, tensor in tensors.items():
        start = max((start for start in keys if name.startswith(start)), key=len, default="")
        new = keys.get(start, start)
        if new is None:
            continue
        if (own := f"{new}{name.removeprefix(start)}") in found:
            raise ProfileError(f"{place}: keys gives two weights the name {own!r}")
        found[own] = tensor
    return found


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
