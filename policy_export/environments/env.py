"""Environments: Atari as a vectorised TorchRL environment of our own, gymnasium's, and what a user's function makes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import ale_py
import ale_py.roms
import gymnasium
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase, GymWrapper, SerialEnv, TransformedEnv
from torchrl.envs.transforms import Compose, Transform

from policy_export.config import profile
from policy_export.config.errors import ProfileError
from policy_export.config.profile import Env, Preprocess, Transforms
from policy_export.device.errors import UserError, one_line
from policy_export.device.torchrl_env import call_factory, layers, without_transforms
from policy_export.environments.actions import describe_actions, recorded_actions
from policy_export.environments.consoles import Console
from policy_export.environments.factories import checked_arguments, import_function
from policy_export.environments.preprocess import OBSERVATION, check_crop, env_transforms
from policy_export.environments.transforms import (
    OF_A_ROW,
    OneHotActions,
    alone,
    flat_transforms,
    one_row,
    refuse_unmeasured,
    transforms_of,
)

KNOWN = frozenset(gymnasium.registry)  # before any module of the user's has been imported


class AtariEnv(EnvBase):
    """``num_envs`` emulators behind one batched TorchRL environment, one after the other.

    Observation ``observation`` ``(num_envs, height, width, 3)`` uint8, such as 210 x 160,
    action ``action`` ``(num_envs,)`` int64 as an index
    into the game's minimal action set (or with ``one_hot``, ``(num_envs, actions)`` with a 1 at that index), reward
    ``(num_envs, 1)`` float32, unclipped. Row ``i`` plays with seed
    ``seed + i``. The emulators restart by themselves at the end of an episode, and the reset that TorchRL asks for
    afterwards hands out the screen of the new episode. Under ``next``, the step that ends an episode has its last
    screen.
    """

    def __init__(self, params: profile.AtariEnv, num_envs: int, seed: int, *, one_hot: bool = False) -> None:
        super().__init__(batch_size=[num_envs])
        rom = rom_name(params.id)
        game = load_game(rom)
        actions = [action.value for action in game.getMinimalActionSet()]
        self.settings = {"rom": rom, "actions": actions, **params.model_dump(exclude={"id"})}
        shape = (num_envs, *game.getScreenDims(), 3)
        self.observation_spec = Composite({OBSERVATION: Bounded(0, 255, shape, dtype=torch.uint8)}, shape=(num_envs,))
        count, self.one_hot = len(actions), one_hot
        self.action_spec = OneHot(count, shape=(num_envs, count)) if one_hot else Categorical(count, shape=(num_envs,))
        self.reward_spec = Unbounded(shape=(num_envs, 1))
        flag = Binary(1, shape=(num_envs, 1), dtype=torch.bool)
        flags = {key: flag.clone() for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=(num_envs,))
        self.consoles: list[Console] = []  # of the rows, since there is something to emulate
        self._seed = seed
        self._stale = True  # the next reset begins with the seed
        self._screens = torch.empty(shape, dtype=torch.uint8)
        self._fresh = torch.zeros(num_envs, dtype=torch.bool)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._seed, self._stale = seed, True

    @property
    def saved(self) -> list[tuple[bytes, bytes]]:
        """Return the emulators' states."""
        return [console.saved for console in self.consoles]

    def restore(self, saved: Sequence[tuple[bytes, bytes]]) -> None:
        """Go on where an environment was whose ``saved`` this is; its episodes are emulated again up to there."""
        self._begin()
        for console, state in zip(self.consoles, saved, strict=True):
            console.restore(*state)
        self._fresh.zero_()

    def _begin(self) -> None:
        self._screens = torch.empty_like(self._screens)
        self.consoles = [
            Console(self.settings, self._seed + row, screen) for row, screen in enumerate(self._screens.numpy())
        ]
        self._stale = False

    def _show_in(self, screens: torch.Tensor) -> None:
        """Let the consoles write to other memory: TorchRL keeps what it has been given."""
        self._screens = screens
        for console, screen in zip(self.consoles, screens.numpy(), strict=True):
            console.observation = screen

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDict:
        wanted = torch.ones_like(self._fresh)
        if tensordict is not None and "_reset" in tensordict.keys():
            wanted = tensordict["_reset"].flatten()
        if self._stale:
            self._begin()
        elif (begun := wanted & ~self._fresh).any():
            self._show_in(self._screens.clone())
            for row in begun.nonzero()[:, 0].tolist():
                self.consoles[row].restart()
        self._fresh = self._fresh & ~wanted
        return TensorDict({OBSERVATION: self._screens}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict["action"]
        if self.one_hot:
            action = action.long().argmax(-1)
        self._show_in(torch.empty_like(self._screens))
        played = list(zip(self.consoles, action.tolist(), strict=True))
        reward = torch.tensor([[console.play(choice)] for console, choice in played], dtype=torch.float32)
        done = torch.tensor([[console.done] for console in self.consoles])
        truncated = torch.tensor([[console.truncated] for console in self.consoles])
        self._fresh, last = done[:, 0], self._screens
        if done.any():
            last = last.clone()
            for row in self._fresh.nonzero()[:, 0].tolist():
                self.consoles[row].restart()
        ends = {"done": done, "terminated": done & ~truncated, "truncated": truncated}
        return TensorDict({OBSERVATION: last, "reward": reward} | ends, self.batch_size)


def is_registered(env_id: str, registry: Iterable[str]) -> bool:
    """Return whether gymnasium's registry has an id, or a version of an id that is given without one."""
    return any(known == env_id or known.startswith(f"{env_id}-v") for known in registry)


def make_env(
    env: Env,
    preprocess: Preprocess | None,
    num_envs: int,
    seed: int,
    *,
    one_hot: bool = False,
    transforms: Transforms | None = None,
) -> EnvBase:
    """Make the environment that policies are trained and evaluated in, of batch size ``(num_envs,)``.

    A factory's environment that has a batch keeps it. With preprocessing, only what the network reads is kept.

    Args:
        env: the environment, as the profile has it.
        preprocess: none for raw observations.
        num_envs: number of parallel environments.
        seed: seed of the first environment; the others' follow from it.
        one_hot: choices are vectors ``(num_envs, actions)`` with one 1, instead of indices.
        transforms: those of the profile, behind the environment's own.

    Raises:
        ProfileError: it cannot be made.
    """
    if isinstance(env, profile.RecordedEnv):
        raise ProfileError("env.recording: there is no environment, only what was recorded in one")
    if isinstance(env, profile.AtariEnv):
        made: EnvBase = AtariEnv(env, num_envs, seed, one_hot=one_hot)
        own = _transforms_behind(made, preprocess, transforms)
    else:
        single = make_single_env(env, preprocess, transforms)
        first, own = without_transforms(single), alone(*transforms_of(single))
        rows = [each for each in own if type(each).__name__ in OF_A_ROW]
        own = [each for each in own if each not in rows]

        def make_row(bare: EnvBase | None = None) -> EnvBase:
            bare = bare or make_bare_env(env)
            return transformed(bare, alone(*rows)) if rows else bare

        made = (
            first if first.batch_size else SerialEnv(num_envs, [lambda: make_row(first), *[make_row] * (num_envs - 1)])
        )
        made.set_seed(seed)
        own += [OneHotActions()] if one_hot else []
    return transformed(made, own) if own else made


def transformed(env: EnvBase, transforms: list[Transform]) -> TransformedEnv:
    """Return an environment behind transforms that belong to no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Support of VecNormV2 for")  # batches: a row of them is refused elsewhere
        return TransformedEnv(env, Compose(*transforms))


def make_single_env(env: Env, preprocess: Preprocess | None, transforms: Transforms | None) -> EnvBase:
    """Make the environment for one policy's specs, with its transforms, and without a batch unless it has its own.

    Raises:
        ProfileError: it cannot be made.
    """
    if isinstance(env, profile.FactoryEnv):
        *outer, bare = layers(make_factory_env(env))
        # Transforms of transforms are one chain. What several environments have each is a chain of its own.
        pairs = zip(outer, [None, *outer], strict=False)
        chains = [layer for layer, above in pairs if not isinstance(above, TransformedEnv)]
        own = alone(*(transform for chain in reversed(chains) for transform in _resolved(chain)))
    else:
        bare, own = make_bare_env(env), []
    own += _transforms_behind(bare, preprocess, transforms)
    if not own:
        return bare
    made = transformed(bare, own)
    _resolved(made)
    return made


def make_bare_env(env: Env) -> EnvBase:
    """Make one environment without transforms.

    Raises:
        ProfileError: it cannot be made.
    """
    if isinstance(env, profile.FactoryEnv):
        *_, bare = layers(make_factory_env(env))
        return bare
    if isinstance(env, profile.AtariEnv):
        return AtariEnv(env, 1, 0)
    assert isinstance(env, profile.GymEnv)
    return make_gym_env(env)


def _transforms_behind(env: EnvBase, preprocess: Preprocess | None, transforms: Transforms | None) -> list[Transform]:
    """Return the transforms of a profile."""
    found: list[Transform] = []
    if preprocess is not None:
        check_crop(preprocess, *env.observation_spec[OBSERVATION].shape[-3:-1])
        found += alone(env_transforms(preprocess))
    return found + (make_transforms(transforms) if transforms is not None else [])


def _resolved(env: EnvBase) -> list[Transform]:
    """Return an environment's transforms, which know their keys: some ask the environment for them.

    Raises:
        ProfileError: one has no numbers to transform with.
    """
    found = transforms_of(env)
    refuse_unmeasured(found)
    _ = env.observation_spec, env.full_action_spec
    for transform in found:
        _ = transform.in_keys, transform.out_keys, transform.in_keys_inv, transform.out_keys_inv
    return found


def make_factory_env(env: profile.FactoryEnv) -> EnvBase:
    """Make one environment of a user's function.

    Raises:
        ProfileError: it is not there, does not take the arguments of the profile, fails, or makes something else.
    """
    arguments = checked_arguments("env", import_function("env", env.factory), env.arguments, after=0)
    try:
        return call_factory(env.factory, arguments)
    except UserError as error:
        raise ProfileError(f"env.factory: {error}") from error


def make_transforms(transforms: Transforms) -> list[Transform]:
    """Make the transforms of a profile.

    Raises:
        ProfileError: they cannot be made, or are no transforms.
    """
    place = f"transforms.factory: {transforms.factory!r}"
    function = import_function("transforms", transforms.factory)
    arguments = checked_arguments("transforms", function, transforms.arguments, after=0)
    try:
        made = flat_transforms(function(**arguments))
    except Exception as error:  # a user's function may fail in any way
        raise ProfileError(f"{place}: {type(error).__name__}: {one_line(error)}") from error
    if strangers := [type(each).__name__ for each in made if not isinstance(each, Transform)]:
        raise ProfileError(f"{place}: makes a {strangers[0]}, must make a Transform, or a list of them")
    return alone(*made)


def make_gym_env(env: profile.GymEnv) -> GymWrapper:
    """Make one gymnasium environment as TorchRL does, without gymnasium's checker.

    It is made here and wrapped by TorchRL: ``GymEnv`` first tries arguments that not every class takes.

    Raises:
        ProfileError: gymnasium cannot make it, or TorchRL has no word for its observations or actions.
    """
    try:
        bare = gymnasium.make(
            env.id, max_episode_steps=env.max_episode_steps, disable_env_checker=True, **(env.kwargs or {})
        )
    except Exception as error:  # whatever the environment's own module and constructor raise
        raise ProfileError(f"env.id: {env.id!r}: gymnasium does not make it: {one_line(error)}") from error
    for what, space in {"observations": bare.observation_space, "actions": bare.action_space}.items():
        refuse_spaces(f"env.id: {env.id!r}: its {what}", space)
    refuse_starts(f"env.id: {env.id!r}: its actions", bare.action_space)
    try:
        return GymWrapper(bare, categorical_action_encoding=True)
    except Exception as error:  # TorchRL's own kinds, and the environment's
        raise ProfileError(f"env.id: {env.id!r}: TorchRL does not take it: {one_line(error)}") from error


def refuse_spaces(what: str, space: gymnasium.Space[Any]) -> None:
    """Refuse spaces that are no arrays of a fixed shape.

    Raises:
        ProfileError: names what is allowed.
    """
    spaces, told = gymnasium.spaces, " ".join(str(space).split())
    if isinstance(space, spaces.Dict):
        for key, inner in space.items():
            refuse_spaces(f"{what}[{key!r}]", inner)
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1:
        raise ProfileError(f"{what} are a {told}, must have one row of choices")
    elif not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Text):
        raise ProfileError(
            f"{what} are a {told}, must be a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of these; "
            "a wrapper such as gymnasium.wrappers.FlattenObservation makes one"
        )


def refuse_starts(what: str, space: gymnasium.Space[Any]) -> None:
    """Refuse choices that are not counted from zero, as TorchRL counts them.

    Raises:
        ProfileError: names what is allowed.
    """
    if isinstance(space, gymnasium.spaces.Dict):
        for key, inner in space.items():
            refuse_starts(f"{what}[{key!r}]", inner)
    elif np.any(getattr(space, "start", 0)):
        raise ProfileError(f"{what} are a {space}, must start at 0, as TorchRL gives them from there; wrap them")


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


def load_game(rom: str) -> ale_py.ALEInterface:
    """Return a console with a game of ale-py's."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.loadROM(str(ale_py.roms.get_rom_path(rom)))
    return ale


def environment_facts(env: Env) -> dict[str, Any]:
    """Return what a device needs to run the environment as in training: the manifest's ``environment``, ``actions``.

    ``actions`` lists what the policy chooses from, in the order of its outputs: index and name, and for Atari, where it
    is the game's minimal set, the ALE id. Where the action is a vector, ``actions`` holds its bounds instead; where it
    is anything else, or has several entries, ``action_names`` are those of the outputs, and ``actions`` says under
    ``entries`` what each is.
    """
    if isinstance(env, profile.AtariEnv):
        rom = rom_name(env.id)
        actions = [
            {"index": index, "name": action.name, "ale_id": action.value}
            for index, action in enumerate(load_game(rom).getMinimalActionSet())
        ]
        return {"environment": {"id": env.id, "rom": rom} | env.model_dump(exclude={"id"}), "actions": actions}
    if isinstance(env, profile.RecordedEnv):
        return {"environment": {"recording": env.recording}, **describe_actions(recorded_actions(env))}
    if isinstance(env, profile.FactoryEnv):
        described = {"factory": env.factory, "arguments": env.arguments, "max_episode_steps": env.max_episode_steps}
    else:
        described = env.model_dump(exclude={"kwargs"} if env.kwargs is None else None)
    bare = make_bare_env(env)
    return {"environment": described, **describe_actions(one_row(bare, bare.full_action_spec))}
