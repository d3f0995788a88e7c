"""Policies: built by the factory that a profile names, and saved as weights.

A policy is one TensorDict module from the environment's raw observation to the action. Everything a stage needs to
know about it (inputs, states, outputs) is read off its keys, so no stage knows which kind of policy it has.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch
from pydantic import ConfigDict, create_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Categorical, Composite, TensorSpec
from torchrl.envs.utils import ExplorationType

from policy_export.config.errors import ProfileError, naming
from policy_export.config.profile import AtariEnv, Env, Policy, Profile, check
from policy_export.device.errors import UserError, one_line
from policy_export.environments.env import KNOWN, is_registered, make_specs
from policy_export.environments.preprocess import IS_INIT, pixels_spec, program_modules
from policy_export.program.memory import Trial, find_memory, initialise, state_keys, state_spec
from policy_export.stage.files import replacing

Factory = Callable[..., TensorDictModuleBase]


@dataclass(frozen=True)
class Agent:
    """One policy, in the shapes that the stages use.

    Attributes:
        actor: what the factory made, from the transformed environment's entries; what is trained and saved.
        policy: the same behind the preprocessing: from the raw observation, the states and ``is_init`` to ``action``,
            values and the next states. This is what is exported; it explores where TorchRL's exploration type is
            ``RANDOM``.
        input_spec: shape and dtype of every observation and state entry that ``policy`` reads, without batch.
        action_spec: of the environment, without batch.
        one_hot: whether the policy writes a choice as a one-hot vector instead of an index.
    """

    actor: TensorDictModuleBase
    policy: TensorDictModuleBase
    input_spec: Composite
    action_spec: TensorSpec
    one_hot: bool = False


def observation_keys(policy: TensorDictModuleBase) -> list[NestedKey]:
    """Return the keys of what a policy reads from its environment."""
    states = state_keys(policy)
    return [key for key in policy.in_keys if key not in states and key != IS_INIT]


def make_agent(name: str, profile: Profile) -> Agent:
    """Return the untrained policy of a profile.

    Raises:
        UserError: its environment or factory does not exist, or the factory does not take what the profile gives it.
    """
    with naming(name):
        return _make_agent(name, profile)


def _make_agent(name: str, profile: Profile) -> Agent:
    observation_spec, action_spec = make_specs(find_env(profile))
    observations = observation_spec
    modules: list[nn.Module] = []
    input_spec = observation_spec.clone()
    if profile.preprocess is not None:
        observations = pixels_spec(profile.preprocess)
        modules, states = program_modules(profile.preprocess)
        input_spec.update(states)
    actor = call_factory(name, profile.policy, observations, action_spec)
    input_spec.update(state_spec(actor))
    policy = TensorDictSequential(*modules, actor)
    initialise(policy, input_spec)
    action = try_action(policy, input_spec)
    one_hot = is_one_hot(action, action_spec)
    check_action(action[:, 0] if one_hot else action, action_spec)
    return Agent(actor, policy, input_spec, action_spec, one_hot)


def try_action(policy: TensorDictModuleBase, input_spec: Composite) -> torch.Tensor:
    """Return an action of a policy, ``(batch, ...)``.

    Raises:
        ProfileError: as :func:`~policy_export.program.memory.find_memory`, or the policy fails.
    """
    memory = find_memory(policy, input_spec, ExplorationType.DETERMINISTIC)
    return Trial(policy, ExplorationType.DETERMINISTIC)(memory.example(input_spec))["action"]


def is_one_hot(action: torch.Tensor, action_spec: TensorSpec) -> bool:
    """Return whether actions ``(batch, n)`` are one-hot vectors of an environment's choices, TorchRL's own default."""
    if not isinstance(action_spec, Categorical) or action_spec.shape or action.shape[1:] != (action_spec.n,):
        return False
    return bool(((action == 0) | (action == 1)).all())


def check_action(action: torch.Tensor, action_spec: TensorSpec) -> None:
    """Compare a policy's actions, ``(batch, ...)``, with what its environment takes.

    Raises:
        ProfileError: they have another shape, or are numbers where a choice is expected, or the other way round.
    """
    found, expected = tuple(action.shape[1:]), tuple(action_spec.shape)
    if found != expected or action.dtype.is_floating_point != action_spec.dtype.is_floating_point:
        kinds = [
            f"{dtype}[{', '.join(map(str, ('batch', *shape)))}]".replace("torch.", "")
            for dtype, shape in ((action.dtype, found), (action_spec.dtype, expected))
        ]
        raise ProfileError(f"the policy's action is {kinds[0]}, the environment takes {kinds[1]}")


def import_factory(params: Policy) -> Factory:
    """Return what ``policy.factory`` names.

    Raises:
        ProfileError: it is not there, or its module cannot be imported.
    """
    module, function = params.factory.split(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ProfileError(f"policy.factory: {params.factory!r}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ProfileError(f"policy.factory: {params.factory!r}: {reason}") from error


def find_env(profile: Profile) -> Env:
    """Return a profile's environment. If only the factory's module registers it, the id names that module too.

    ``gymnasium.make`` can then make it anywhere, for example in a player that has no factory.

    Raises:
        ProfileError: the factory cannot be imported.
    """
    env = profile.env
    import_factory(profile.policy)
    if isinstance(env, AtariEnv) or ":" in env.id or is_registered(env.id, KNOWN):
        return env
    if not is_registered(env.id, gymnasium.registry):
        return env
    return env.model_copy(update={"id": f"{profile.policy.factory.partition(':')[0]}:{env.id}"})


def call_factory(
    name: str, params: Policy, observation_spec: Composite, action_spec: TensorSpec
) -> TensorDictModuleBase:
    """Return what a factory makes of the specs and of the arguments that ``params.yaml`` has for it."""
    place = f"policy.factory: {params.factory!r}"
    factory = import_factory(params)
    try:
        arguments = factory_arguments(name, factory, params.arguments)
    except UserError:
        raise
    except Exception as error:  # no function, or annotations that cannot be read
        raise ProfileError(f"{place}: {type(error).__name__}: {one_line(error)}") from error
    try:
        actor = factory(observation_spec, action_spec, **arguments)
    except UserError as error:
        raise ProfileError(str(error)) from None
    except (Exception, SystemExit) as error:
        raise ProfileError(f"{place}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(actor, TensorDictModuleBase) or "action" not in actor.out_keys:
        raise ProfileError(f"{place}: must make a TensorDict module that writes 'action'")
    return actor


def factory_arguments(name: str, factory: Factory, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a factory's arguments, checked against its signature: their names, and their types where it has any."""
    parameters = list(inspect.signature(factory).parameters.values())[2:]  # after the specs
    hints = typing.get_type_hints(factory, include_extras=True)
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
        else:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    config = ConfigDict(extra=extra, strict=True, arbitrary_types_allowed=True)
    model = create_model("Arguments", __config__=config, **fields)
    return dict(check(model, arguments, f"policies.{name}.policy."))


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values, independent of how a file lays them out."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_weights(path: Path, policy: str, network: nn.Module) -> None:
    """Write a module's weights as safetensors, with the policy's name and a digest in the header."""
    # Copies, as safetensors refuses tensors that share memory: tied weights, and TorchRL's own C51 support.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"header": json.dumps({"policy": policy, "sha256": _digest(tensors)})})


def load_weights(path: Path, policy: str, network: nn.Module) -> None:
    """Load what :func:`save_weights` wrote into ``network``.

    Raises:
        UserError: the file is missing, damaged, another policy's, or of a network with other weights; then there is a
            line for each that is missing, superfluous, or of another dtype or shape.
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
