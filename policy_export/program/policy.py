"""Policies: built by the factory that a profile names, between the transforms of its environment.

A policy is one TensorDict module from what the environment shows to the action that it takes. Everything a stage needs
to know about it (inputs, states, outputs) is read off its keys, so no stage knows which kind of policy it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType

from policy_export.config.errors import ProfileError, naming
from policy_export.config.profile import Env, GymEnv, Policy, Profile, RecordedEnv
from policy_export.config.training import Untrained
from policy_export.device.errors import UserError, one_line
from policy_export.device.torchrl_env import array_specs, flat_name, without_transforms
from policy_export.environments.actions import recorded_actions
from policy_export.environments.env import KNOWN, is_registered, make_env, make_single_env
from policy_export.environments.factories import checked_arguments, import_function, takes
from policy_export.environments.preprocess import IS_INIT
from policy_export.environments.recorded import recorded_specs
from policy_export.environments.transforms import (
    Parts,
    Starts,
    freeze,
    measures,
    one_row,
    program_parts,
    statistics,
    transforms_of,
)
from policy_export.program.memory import Trial, find_memory, initialise, state_keys, state_spec, state_starts
from policy_export.program.weights import checkpoint_of, load_checkpoint


@dataclass(frozen=True)
class Agent:
    """One policy, in the shapes that the stages use.

    Attributes:
        actor: what the factory made, from the transformed environment's entries; what is trained and saved.
        policy: the same between the transforms: from what the environment shows, the states and ``is_init`` to the
            environment's actions, values and the next states. This is what is exported; it explores where TorchRL's
            exploration type is ``RANDOM``.
        input_spec: shape and dtype of every observation and state entry that ``policy`` reads, without batch.
        action_specs: of the environment below all transforms, without batch.
        given: keys of the actions that the actor writes, for the transformed environment.
        statistics: of the transforms, by name; they are saved with the weights.
        starts: what the states of the policy start with, by key.
        one_hot: whether the actor writes a choice as a one-hot vector instead of an index.
    """

    actor: TensorDictModuleBase
    policy: TensorDictModuleBase
    input_spec: Composite
    action_specs: Composite
    given: list[NestedKey]
    statistics: dict[str, torch.Tensor]
    starts: Starts
    one_hot: bool = False

    @property
    def action_spec(self) -> TensorSpec:
        """Return the spec of the environment's only action."""
        (key,) = self.actions
        return self.action_specs[key]

    @property
    def actions(self) -> list[NestedKey]:
        """Return the keys of the environment's actions."""
        return keys_of(self.action_specs)


def observation_keys(policy: TensorDictModuleBase) -> list[NestedKey]:
    """Return the keys of what a policy reads from its environment."""
    states = state_keys(policy)
    return [key for key in policy.in_keys if key not in states and key != IS_INIT]


def keys_of(spec: Composite) -> list[NestedKey]:
    """Return the keys of all entries."""
    return [unravel_key(key) for key in spec.keys(include_nested=True, leaves_only=True)]


def make_agent(name: str, profile: Profile, saved: Mapping[str, torch.Tensor] | None = None) -> Agent:
    """Return the policy of a profile before its training, with the weights of its checkpoint if it has one.

    Args:
        name: of the policy.
        profile: of the policy.
        saved: statistics of the transforms, if the weights will be loaded that were saved with them; none for those
            that the transforms have.

    Raises:
        UserError: its environment, factory or checkpoint does not exist, or the factory does not take what the profile
            gives it.
    """
    # What trains does not take it, as it computes gradients, and it gives other numbers for what a mask hides.
    torch.backends.mha.set_fastpath_enabled(value=False)
    with naming(name):
        agent = _make_agent(profile, saved)
        if saved is None and (checkpoint := checkpoint_of(profile.policy)) is not None:
            load_checkpoint(checkpoint, agent.actor)
        return agent


class Specs(NamedTuple):
    """What an environment shows and takes, by key, without batch."""

    observations: Composite
    actions: Composite

    @classmethod
    def of(cls, env: EnvBase) -> Specs:
        known = (env.observation_spec, env.full_action_spec)
        return cls(*(Composite(array_specs(one_row(env, spec))) for spec in known))


def _make_agent(profile: Profile, saved: Mapping[str, torch.Tensor] | None) -> Agent:
    env = find_env(profile)
    if isinstance(env, RecordedEnv):
        specs = Specs(recorded_specs(env), recorded_actions(env))
        return assemble(profile.policy, specs, specs, Parts([], [], Composite(), Composite(), {}, []), {})
    made = make_single_env(env, profile.preprocess, profile.transforms)
    transforms = transforms_of(made)
    if saved is None and not isinstance(profile.train, Untrained) and measures(transforms):
        made.rollout(2)  # so that there is something to begin with
    freeze(transforms, saved or None)
    frozen = statistics(transforms)
    return assemble(profile.policy, Specs.of(without_transforms(made)), Specs.of(made), program_parts(made), frozen)


def assemble(policy: Policy, inside: Specs, outside: Specs, parts: Parts, frozen: dict[str, torch.Tensor]) -> Agent:
    """Return a policy between the transforms of its environment.

    Args:
        policy: how it is made.
        inside: of the environment below all transforms.
        outside: of the environment with its transforms.
        parts: the transforms.
        frozen: their statistics.

    Raises:
        ProfileError: the policy cannot be made, reads what it is not shown, or gives what is not taken.
    """
    (shown, taken), given, wanted = inside, outside.actions, keys_of(outside.actions)
    actor = call_factory(policy, outside.observations, given[wanted[0]] if len(wanted) == 1 else given)
    written = [unravel_key(key) for key in actor.out_keys]
    if missing := [key for key in wanted if key not in written]:
        raise ProfileError(
            f"policy.factory: {policy.factory!r}: makes a policy that does not write {missing[0]!r}, which the "
            f"environment takes; it writes {written}"
        )
    made = {unravel_key(key) for module in parts.before for key in getattr(module, "out_keys", ())}
    states = keys_of(state_spec(actor))
    wanted_states = [key for key in state_keys(actor) if key not in states and key in keys_of(parts.primed)]
    primed = Composite({key: parts.primed[key] for key in wanted_states})
    for key in map(unravel_key, actor.in_keys):
        known = {*keys_of(shown), *made, *states, *keys_of(primed), IS_INIT}
        if key in keys_of(outside.observations) and key not in known:
            raise ProfileError(
                f"the policy reads {key!r}, which no program has: it is written for the training only, by "
                + (f"one of the transforms {', '.join(parts.dropped)}" if parts.dropped else "one of the transforms")
            )
    input_spec = shown.clone()
    input_spec.update(parts.states)
    input_spec.update(primed)
    input_spec.update(state_spec(actor))
    one_hot = False
    modules = [*parts.before, actor]
    if len(wanted) == 1:
        initialise(TensorDictSequential(*modules), input_spec)
        one_hot = is_one_hot(try_actions(modules, input_spec, wanted)[wanted[0]], given[wanted[0]])
    if one_hot:
        key = wanted[0]
        modules.append(Index(key))
    casts = [Cast(key, spec) for key, spec in array_specs(given).items()]
    modules += [*casts, *parts.behind]
    actions = keys_of(taken)
    whole = TensorDictSequential(*modules)
    initialise(whole, input_spec)
    for key, action in try_actions(modules, input_spec, actions).items():
        check_action(key, action, taken[key])
    starts = state_starts(actor) | parts.starts  # TorchRL leaves what the environment has
    return Agent(actor, whole, input_spec, taken, wanted, frozen, starts, one_hot)


class Index(TensorDictModuleBase):
    """Turns an action's one-hot vectors ``(*batch, n)`` into the places of their 1, ``(*batch,)`` int64."""

    keeps_choice = True  # only its form is another

    def __init__(self, key: NestedKey) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [key], [key]

    def forward(self, entries: TensorDictBase) -> TensorDictBase:
        return entries.set(self.in_keys[0], entries[self.in_keys[0]].to(torch.int64).argmax(-1))


class Cast(TensorDictModuleBase):
    """Gives bits and choices, which distributions draw as floats, the environment's dtype."""

    keeps_choice = True

    def __init__(self, key: NestedKey, spec: TensorSpec) -> None:
        super().__init__()
        self.dtype, self.in_keys, self.out_keys = spec.dtype, [key], [key]
        self.whole = isinstance(spec, Binary | OneHot | Categorical | MultiCategorical | MultiOneHot)

    def forward(self, entries: TensorDictBase) -> TensorDictBase:
        action = entries[self.in_keys[0]]
        if self.whole and action.dtype != self.dtype and action.dtype.is_floating_point:
            entries[self.in_keys[0]] = action.to(self.dtype)
        return entries


def try_actions(
    modules: Sequence[nn.Module], input_spec: Composite, keys: Sequence[NestedKey]
) -> dict[NestedKey, torch.Tensor]:
    """Return actions of a policy, ``(batch, ...)`` each.

    Raises:
        ProfileError: as :func:`~policy_export.program.memory.find_memory`, or the policy fails.
    """
    policy = TensorDictSequential(*modules)
    memory = find_memory(policy, input_spec, ExplorationType.DETERMINISTIC, keys)
    tried = Trial(policy, ExplorationType.DETERMINISTIC)(memory.example(input_spec))
    return {key: tried[key] for key in keys}


def is_one_hot(action: torch.Tensor, action_spec: TensorSpec) -> bool:
    """Return whether actions ``(batch, n)`` are one-hot vectors of an environment's choices, TorchRL's own default."""
    if not isinstance(action_spec, Categorical) or action_spec.shape or action.shape[1:] != (action_spec.n,):
        return False
    return bool(((action == 0) | (action == 1)).all())


def check_action(key: NestedKey, action: torch.Tensor, action_spec: TensorSpec) -> None:
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
        raise ProfileError(f"the policy's {flat_name(key)} is {kinds[0]}, the environment takes {kinds[1]}")


def find_env(profile: Profile) -> Env:
    """Return a profile's environment. If only the factory's module registers it, the id names that module too.

    ``gymnasium.make`` can then make it anywhere, for example in a player that has no factory.

    Raises:
        ProfileError: the factory cannot be imported.
    """
    env = profile.env
    import_function("policy", profile.policy.factory)
    if not isinstance(env, GymEnv) or ":" in env.id or is_registered(env.id, KNOWN):
        return env
    if not is_registered(env.id, gymnasium.registry):
        return env
    return env.model_copy(update={"id": f"{profile.policy.factory.partition(':')[0]}:{env.id}"})


def call_factory(params: Policy, observation_spec: Composite, action_spec: TensorSpec) -> TensorDictModuleBase:
    """Return what a factory makes of the specs and of the arguments that ``params.yaml`` has for it."""
    place = f"policy.factory: {params.factory!r}"
    factory = import_function("policy", params.factory)
    given = {name: value for name, value in params.arguments.items() if name != "checkpoint" or takes(factory, name)}
    arguments = checked_arguments("policy", factory, given, after=2)
    try:
        actor = factory(observation_spec, action_spec, **arguments)
    except UserError as error:
        raise ProfileError(str(error)) from None
    except (Exception, SystemExit) as error:
        raise ProfileError(f"{place}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(actor, TensorDictModuleBase):
        raise ProfileError(f"{place}: makes a {type(actor).__name__}, must make a TensorDict module")
    return actor


def environment_of(profile: Profile, agent: Agent, num_envs: int, seed: int) -> EnvBase:
    """Make the environment that an agent is trained and evaluated in, as :func:`make_env`, with frozen statistics."""
    made = make_env(
        find_env(profile), profile.preprocess, num_envs, seed, one_hot=agent.one_hot, transforms=profile.transforms
    )
    freeze(transforms_of(made), agent.statistics)
    return made
