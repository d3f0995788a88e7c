"""An environment that a function of the user's makes, any of TorchRL's. PyTorch is imported only where one is made."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .arrays import Action, Arrays
from .errors import UserError
from .gymnasium_env import NO_WORD, telling
from .shown import Shown

if TYPE_CHECKING:
    from tensordict import NestedKey, TensorDictBase
    from torchrl.envs import EnvBase


def flat_name(key: NestedKey) -> str:
    """Return a key as one name: ``group0_agent0_obs`` for ``("group0", "agent0", "obs")``."""
    return NO_WORD.sub("_", key if isinstance(key, str) else "_".join(key))


def call_factory(factory: str, arguments: Mapping[str, Any]) -> EnvBase:
    """Return the environment that a function makes.

    Args:
        factory: ``module:function``.
        arguments: by name.

    Raises:
        UserError: it is not there, or it fails, or makes something else.
    """
    module, _, function = factory.partition(":")
    with telling(repr(factory), "{} fails"):
        made = getattr(importlib.import_module(module), function)(**arguments)
    from torchrl.envs import EnvBase

    if not isinstance(made, EnvBase):
        raise UserError(f"{factory!r} makes a {type(made).__name__}, must make an EnvBase")
    return made


def layers(env: EnvBase) -> Iterator[EnvBase]:
    """Yield an environment and what is below it: below transforms their environment, of several ones the first.

    Of several in this process that have started, it is the first itself, whose transforms may have measured. Others are
    in other processes, or are not there yet: the first is made anew here.
    """
    from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv

    yield env
    while isinstance(env, TransformedEnv | SerialEnv | ParallelEnv):
        if isinstance(env, TransformedEnv):
            env = env.base_env
        elif isinstance(env, SerialEnv) and (started := vars(env).get("_envs")):  # TorchRL has no public name for them
            env = started[0]
        else:
            env = env.create_env_fn[0](**env.create_env_kwargs[0])
        yield env


def without_transforms(env: EnvBase) -> EnvBase:
    """Return the environment below all transforms."""
    from torchrl.envs import TransformedEnv

    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def episode_ended(entries: TensorDictBase, done_keys: Iterable[NestedKey]) -> Any:
    """Return whether each row's episode has ended, ``(batch,)`` bool: by the root's flag, or else by all of them."""
    keys = [key for key in done_keys if flat_name(key).rpartition("_")[2] == "done"]
    root = [key for key in keys if isinstance(key, str)]
    flags = [entries[key].flatten(entries.ndim).all(-1) for key in (root or keys)]
    ended = flags[0]
    for flag in flags[1:]:
        ended = ended & flag
    return ended


def total_reward(entries: TensorDictBase, reward_keys: Iterable[NestedKey]) -> Any:
    """Return each row's reward, ``(batch,)`` float32: the sum over all agents."""
    return sum(entries[key].float().flatten(entries.ndim).sum(-1) for key in reward_keys)


class TorchRLEnvironment(Shown):
    """One of TorchRL's environments, driven like an :class:`Emulator`, without its transforms.

    Of several environments, as ``ParallelEnv`` has them, it is the first. One that has several rows itself plays the
    same actions in all of them; what counts is the first.

    Args:
        factory: ``module:function``, which makes it.
        arguments: of the function.
        max_episode_steps: decisions after which an episode is cut off; none for no limit.
        seed: seed of the environment's own random numbers.

    Raises:
        UserError: it cannot be made.
    """

    def __init__(self, factory: str, *, arguments: Mapping[str, Any], max_episode_steps: int | None, seed: int) -> None:
        self.factory, self.limit, self.steps = factory, max_episode_steps, 0
        with telling(repr(factory), "{} fails"):
            *_, self.env = layers(call_factory(factory, arguments))
        self.what = f"the environment of {factory!r}"
        with telling(self.what, "reset of {} fails"):
            self.env.set_seed(seed)
            self.entries = self.env.reset()
            self.done = False
            self.observations = self._observed(self.entries)

    def _row(self, tensor: Any) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = (
            tensor.detach().cpu().reshape(-1, *tensor.shape[len(self.env.batch_size) :])[0].numpy()
        )
        return array.copy()

    def _observed(self, entries: TensorDictBase) -> Arrays:
        """Return the first row's observations by name.

        Raises:
            UserError: one has another dtype or shape than the environment declares.
        """
        found = {}
        for key, spec in array_specs(self.env.observation_spec).items():
            tensor = entries[key]
            if tensor.dtype != spec.dtype or tensor.shape != spec.shape:
                kinds = [f"{each.dtype}{list(each.shape)}".removeprefix("torch.") for each in (tensor, spec)]
                raise UserError(f"{self.what} shows {key!r} as {kinds[0]}, but declares {kinds[1]}")
            found[flat_name(key)] = self._row(tensor)
        return found

    def step(self, action: Action) -> float:
        """Play one decision (an index, an array, or several by name), and return its reward.

        Raises:
            UserError: the environment fails.
        """
        import torch

        specs = array_specs(self.env.full_action_spec)
        given = action if isinstance(action, dict) else dict.fromkeys(map(flat_name, specs), action)
        with telling(self.what, "step of {} fails"):
            for key, spec in specs.items():
                own = np.asarray(given[flat_name(key)])
                self.entries[key] = torch.as_tensor(own).to(spec.dtype).expand(spec.shape).clone()
            after, self.entries = self.env.step_and_maybe_reset(self.entries)
            after = after["next"]
            self.steps += 1
            self.done = bool(episode_ended(after, self.env.done_keys).flatten()[0]) or self.steps == self.limit
            self.observations = self._observed(after)
            return float(total_reward(after, self.env.reward_keys).flatten()[0])


def array_specs(specs: Any) -> dict[NestedKey, Any]:
    """Return the specs of the entries that are arrays of numbers, by key."""
    import torch
    from torchrl.data import NonTensor

    return {
        key: spec
        for key, spec in specs.items(include_nested=True, leaves_only=True)
        if not isinstance(spec, NonTensor) and isinstance(spec.dtype, torch.dtype)
    }
