"""What an environment takes, as its manifest says it."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import unravel_key
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec

from policy_export.config.errors import ProfileError
from policy_export.config.profile import Bounds, RecordedEnv
from policy_export.device.torchrl_env import flat_name


def recorded_actions(env: RecordedEnv) -> Composite:
    """Return the specs of the action that a profile without an environment declares."""
    match env.actions:
        case int():
            spec: TensorSpec = Categorical(env.actions)
        case list() if len(set(env.actions)) == 1:
            spec = Categorical(env.actions[0], shape=(len(env.actions),))
        case list():
            spec = MultiCategorical(env.actions)
        case Bounds():
            spec = Bounded(torch.tensor(env.actions.low), torch.tensor(env.actions.high), dtype=torch.float32)
    return Composite({"action": spec})


def describe_actions(specs: Composite) -> dict[str, Any]:
    """Return a manifest's ``actions``, and where there is not the one ``action``, its ``action_names``.

    Args:
        specs: of the environment's actions, without batch.
    """
    entries = {
        flat_name(unravel_key(key)): describe_action(flat_name(unravel_key(key)), spec)
        for key, spec in specs.items(include_nested=True, leaves_only=True)
    }
    names = list(entries)
    if names == ["action"]:
        kind = entries["action"]
        if kind["kind"] == "index":
            return {"actions": [{"index": index, "name": str(index)} for index in range(kind["sizes"][0])]}
        if kind["kind"] == "vector":
            return {"actions": {"low": kind["low"], "high": kind["high"]}}
    return {"action_names": names, "actions": {"entries": entries}}


def describe_action(name: str, spec: TensorSpec) -> dict[str, Any]:
    """Return what an action is, as :func:`policy_export.device.manifest.action_kinds` has it.

    Raises:
        ProfileError: it is of a kind that is not known.
    """
    if isinstance(spec, MultiOneHot | OneHot):
        sizes = spec.nvec if isinstance(spec, MultiOneHot) else spec.shape[-1:]
        return {"kind": "one_hot", "sizes": [int(size) for size in sizes], "shape": list(spec.shape[:-1])}
    if isinstance(spec, MultiCategorical | Categorical):
        sizes = spec.nvec.expand(spec.shape) if isinstance(spec, MultiCategorical) else torch.full(spec.shape, spec.n)
        return {"kind": "indices", "sizes": sizes.tolist()} if spec.shape else {"kind": "index", "sizes": [int(spec.n)]}
    if isinstance(spec, Binary) or spec.dtype == torch.bool:
        return {"kind": "bits", "shape": list(spec.shape)}
    if not hasattr(spec.space, "low") and not spec.dtype.is_floating_point:
        raise ProfileError(f"env: its action {name!r} is a {type(spec).__name__}, which is not known")
    low, high = (
        getattr(spec.space, side, torch.full(spec.shape, torch.inf)).expand(spec.shape) for side in ("low", "high")
    )
    return {"kind": "vector", "low": _bounds(low), "high": _bounds(high)}


def _bounds(bounds: torch.Tensor) -> Any:
    """Return bounds as lists, with null for each that is none."""
    if bounds.ndim:
        return [_bounds(each) for each in bounds]
    number = bounds.item()
    return number if abs(number) < torch.finfo(torch.float32).max else None
