"""Environments: Atari as a vectorised TorchRL environment of our own, and all that gymnasium makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ale_py
import ale_py.roms
import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, OneHot, TensorSpec, Unbounded
from torchrl.envs import EnvBase, GymWrapper, SerialEnv, TransformedEnv

from policy_export.config import profile
from policy_export.config.errors import ProfileError
from policy_export.config.profile import Env, Preprocess
from policy_export.device.errors import one_line
from policy_export.environments.preprocess import OBSERVATION, SCREEN_SHAPE, env_transforms

KNOWN = frozenset(gymnasium.registry)  # before any module of the user's has been imported


class AtariEnv(EnvBase):
    """``num_envs`` emulators behind one batched TorchRL environment, emulated in C++ threads.

    Observation ``observation`` ``(num_envs, 210, 160, 3)`` uint8, action ``action`` ``(num_envs,)`` int64 as an index
    into the game's minimal action set (or with ``one_hot``, ``(num_envs, actions)`` with a 1 at that index), reward
    ``(num_envs, 1)`` float32, unclipped. Row ``i`` plays with seed
    ``seed + i``. The emulators restart by themselves at the end of an episode, and the reset that TorchRL asks for
    afterwards hands out the screen of the new episode. Under ``next``, the step that ends an episode returns what
    ale-py keeps as its final observation, which in ale-py 0.12 is the screen one decision before the end.
    """

    def __init__(self, params: profile.AtariEnv, num_envs: int, seed: int, *, one_hot: bool = False) -> None:
        super().__init__(batch_size=[num_envs])
        self.emulators = AtariVectorEnv(
            rom_name(params.id),
            num_envs,
            img_height=SCREEN_SHAPE[0],
            img_width=SCREEN_SHAPE[1],
            grayscale=False,
            stack_num=1,
            maxpool=False,
            noop_max=1,
            use_fire_reset=False,
            reward_clipping=False,
            repeat_action_probability=params.repeat_action_probability,
            frameskip=params.frame_skip,
            max_num_frames_per_episode=params.max_episode_steps * params.frame_skip,
            autoreset_mode="SameStep",
        )
        screens = Bounded(0, 255, (num_envs, *SCREEN_SHAPE), dtype=torch.uint8)
        self.observation_spec = Composite({OBSERVATION: screens}, shape=(num_envs,))
        actions = len(self.emulators.ale.get_action_set())
        self.one_hot = one_hot
        self.action_spec = (
            OneHot(actions, shape=(num_envs, actions)) if one_hot else Categorical(actions, shape=(num_envs,))
        )
        self.reward_spec = Unbounded(shape=(num_envs, 1))
        flag = Binary(1, shape=(num_envs, 1), dtype=torch.bool)
        flags = {key: flag.clone() for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=(num_envs,))
        self._seeds: np.ndarray | None = None
        self._screens = torch.empty(0)
        self._fresh = torch.zeros(num_envs, dtype=torch.bool)
        self.set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._seeds = np.arange(seed, seed + self.batch_size[0])

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDict:
        wanted = torch.ones_like(self._fresh)
        if tensordict is not None and "_reset" in tensordict.keys():
            wanted = tensordict["_reset"].flatten()
        stale = wanted if self._seeds is not None else wanted & ~self._fresh
        if stale.any():
            seeds = None if self._seeds is None else self._seeds[stale.numpy()]
            options = None if stale.all() else {"reset_mask": stale.numpy()}
            screens, _info = self.emulators.reset(seed=seeds, options=options)
            self._screens = torch.from_numpy(screens[:, 0])
            self._seeds = None
        self._fresh = self._fresh & ~wanted
        return TensorDict({OBSERVATION: self._screens}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict["action"]
        if self.one_hot:
            action = action.long().argmax(-1)
        screens, reward, terminated, truncated, info = self.emulators.step(action.numpy())
        self._screens = torch.from_numpy(screens[:, 0])
        self._fresh = torch.from_numpy(terminated | truncated)
        last = self._screens
        if self._fresh.any():
            last = last.clone()
            last[self._fresh] = torch.from_numpy(info["final_obs"][:, 0])[self._fresh]
        return TensorDict(
            {
                OBSERVATION: last,
                "reward": torch.from_numpy(reward).float()[:, None],
                "done": self._fresh[:, None],
                "terminated": torch.from_numpy(terminated)[:, None],
                "truncated": torch.from_numpy(truncated)[:, None],
            },
            self.batch_size,
        )


def is_registered(env_id: str, registry: Iterable[str]) -> bool:
    """Return whether gymnasium's registry has an id, or a version of an id that is given without one."""
    return any(known == env_id or known.startswith(f"{env_id}-v") for known in registry)


def make_env(env: Env, preprocess: Preprocess | None, num_envs: int, seed: int, *, one_hot: bool = False) -> EnvBase:
    """Make the environment that policies are trained and evaluated in, of batch size ``(num_envs,)``.

    With preprocessing, only what the network reads is kept.

    Args:
        env: the environment, as the profile has it.
        preprocess: none for raw observations.
        num_envs: number of parallel environments.
        seed: seed of the first environment; the others' follow from it.
        one_hot: choices are vectors ``(num_envs, actions)`` with one 1, instead of indices.
    """
    if isinstance(env, profile.AtariEnv):
        made: EnvBase = AtariEnv(env, num_envs, seed, one_hot=one_hot)
    else:
        made = SerialEnv(num_envs, lambda: make_gym_env(env, one_hot=one_hot))
        made.set_seed(seed)
    return made if preprocess is None else TransformedEnv(made, env_transforms(preprocess))


def make_gym_env(env: profile.GymEnv, *, one_hot: bool = False) -> GymWrapper:
    """Make one gymnasium environment as TorchRL does, without gymnasium's checker.

    It is made here and wrapped by TorchRL: ``GymEnv`` first tries arguments that not every class takes.

    Raises:
        ProfileError: gymnasium cannot make it, or its observation or action is not one array or number.
    """
    try:
        bare = gymnasium.make(env.id, max_episode_steps=env.max_episode_steps, disable_env_checker=True)
        made = GymWrapper(bare, categorical_action_encoding=not one_hot)
    except Exception as error:  # whatever the environment's own module and constructor raise
        raise ProfileError(f"env.id: {env.id!r}: gymnasium does not make it: {one_line(error)}") from error
    spaces = {"observations": bare.observation_space, "actions": bare.action_space}
    allowed = {"observations": (gymnasium.spaces.Box,), "actions": (gymnasium.spaces.Box, gymnasium.spaces.Discrete)}
    for what, space in spaces.items():
        if not isinstance(space, allowed[what]):
            kinds = " or ".join(kind.__name__ for kind in allowed[what])
            raise ProfileError(f"env.id: {env.id!r}: its {what} are a {space}, must be a {kinds}")
    return made


def make_specs(env: Env) -> tuple[Composite, TensorSpec]:
    """Return the specs of the raw ``observation`` that a policy is given and of its action, without batch.

    Raises:
        ProfileError: there is no such environment.
    """
    if isinstance(env, profile.AtariEnv):
        screen = Bounded(0, 255, SCREEN_SHAPE, dtype=torch.uint8)
        return Composite({OBSERVATION: screen}), Categorical(len(environment_facts(env)["actions"]))
    made = make_gym_env(env)
    return made.observation_spec, made.action_spec


def rom_name(env_id: str) -> str:
    """Return the name of an environment's game in ale-py.

    Raises:
        ProfileError: gymnasium has no such Atari environment, or ale-py has no such game.
    """
    try:
        name = str(gymnasium.spec(env_id).kwargs["game"])
    except (gymnasium.error.Error, KeyError):
        name = ""
    if not name or ale_py.roms.get_rom_path(name) is None:
        raise ProfileError(f"env.id: {env_id!r}: is no Atari environment, such as 'ALE/Pong-v5'")
    return name


def environment_facts(env: Env) -> dict[str, Any]:
    """Return what a device needs to run the environment as in training: the manifest's ``environment``, ``actions``.

    ``actions`` lists what the policy chooses from, in the order of its outputs: index and name, and for Atari, where it
    is the game's minimal set, the ALE id. Where the action is a vector, ``actions`` holds its bounds instead.
    """
    if isinstance(env, profile.GymEnv):
        action = make_gym_env(env).action_spec
        actions: Any
        if isinstance(action, Categorical):
            actions = [{"index": index, "name": str(index)} for index in range(action.n)]
        else:
            actions = {"low": action.space.low.tolist(), "high": action.space.high.tolist()}
        return {"environment": env.model_dump(), "actions": actions}
    rom = rom_name(env.id)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(str(ale_py.roms.get_rom_path(rom)))
    actions = [
        {"index": index, "name": action.name, "ale_id": action.value}
        for index, action in enumerate(ale.getMinimalActionSet())
    ]
    return {"environment": {"id": env.id, "rom": rom} | env.model_dump(exclude={"id"}), "actions": actions}
