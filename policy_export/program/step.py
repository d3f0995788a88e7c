"""The pure function that every artefact implements, and its signature."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import Composite
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import DistributionalQValueModule, QValueHook

from policy_export.config.profile import Profile
from policy_export.device.errors import UserError
from policy_export.device.torchrl_env import flat_name
from policy_export.environments.preprocess import IS_INIT
from policy_export.environments.transforms import Starts
from policy_export.program.drawing import watching
from policy_export.program.epsilon_greedy import probabilities_key
from policy_export.program.memory import find_memory, is_flags, is_value, least, next_key
from policy_export.program.policy import Agent, make_agent
from policy_export.program.torch_private import part
from policy_export.program.weights import load_weights, read_weights

EXPECTED = "expected_action_value"


@dataclass(frozen=True)
class TensorInfo:
    """Name, dtype and shape of an input or output; the first size is ``"batch"``."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Signature:
    """``step(observation, state..., is_init) -> action, <values>, next_state...`` of one policy.

    ``states`` pairs the name of each state input with the output that is its next value.
    """

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    states: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Step(nn.Module):
    """A policy as a function of named tensors.

    Args:
        policy: reads observations, states and ``is_init``, writes ``action``, values and the states' next values.
        input_spec: of the observations and of the states that are declared, without batch.
        exploration_type: ``DETERMINISTIC`` or ``RANDOM``; part of the function, whatever is set around its call.
        actions: keys of the environment's actions.
        starts: what the states start with, by key; zero where nothing is given.

    Raises:
        UserError: two entries of the policy would have the same name, or its memory cannot be made explicit.
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        input_spec: Composite,
        exploration_type: ExplorationType,
        actions: Sequence[NestedKey] = ("action",),
        starts: Starts | None = None,
    ) -> None:
        super().__init__()
        self.policy, self.input_spec, self.exploration_type = policy, input_spec, exploration_type
        self.actions, self.starts, self.expected = list(actions), starts, _expected_values(policy)
        _named(policy.in_keys)
        self.memory = find_memory(policy, input_spec, exploration_type, actions, starts)
        states = self.memory.written
        flags: list[NestedKey] = [IS_INIT] if states else []
        values = [*policy.out_keys, *([EXPECTED] if self.expected else [])]
        chosen_by = [key for key in map(unravel_key, values) if is_value(key) and key not in self.actions]
        decisions = [*self.actions, *dict.fromkeys(chosen_by)]
        self.states = {flat_name(key): flat_name(next_key(key)) for key in states}
        self.inputs = _named([*self.memory.observations, *states, *flags])
        # Names are those of the next values, wherever the policy writes them.
        _named([*decisions, *map(next_key, states)])
        self.outputs = {flat_name(key): key for key in decisions}
        self.outputs |= {flat_name(next_key(key)): written for key, written in states.items()}
        self.drawn = self._drawn()
        self.outputs |= {flat_name(probabilities_key(key)): probabilities_key(key) for key in self.drawn}
        self.forward = self._named_forward()

    def decide(self, entries: TensorDict) -> TensorDictBase:
        """Call the policy; rows whose episode starts have their states as these start.

        Of what the policy writes in place, such a row has nothing if the policy then starts it otherwise.
        """
        for key in self.memory.overwritten:  # they belong to the caller
            entries[key] = entries[key].clone()
        in_place = self.memory.in_place if self.memory.restarts else []
        for key, start in self.memory.starts.items():
            if key not in in_place:
                begins = _like(entries[IS_INIT][:, 0], entries[key])
                entries[key] = torch.where(begins, torch.full_like(entries[key], start), entries[key])
        if not in_place:
            return self._call(entries)
        begins = entries[IS_INIT][:, 0]
        started, going_on = self._call(entries.exclude(*in_place)), self._call(entries)
        written = set(started.keys(include_nested=True))  # without what is computed from it afterwards
        for key in [key for key in self.outputs.values() if key in written]:
            going_on[key] = torch.where(_like(begins, started[key]), started[key], going_on[key])
        return going_on

    def _call(self, entries: TensorDictBase) -> TensorDictBase:
        """Call the policy; what it draws its actions by is among what it writes."""
        if not self.drawn:
            return self.policy(entries)
        with watching(self.policy, self.drawn) as probabilities:
            written = self.policy(entries)
        return written.update({probabilities_key(key): probabilities[key] for key in self.drawn})

    def _drawn(self) -> list[NestedKey]:
        """Return the actions of which the probabilities are outputs: those by which they are drawn are known."""
        if self.exploration_type is not ExplorationType.RANDOM:
            return []
        examples = {self.inputs[name]: tensor for name, tensor in self.example_inputs(batch=2).items()}
        with torch.no_grad(), set_exploration_type(self.exploration_type), watching(self.policy, self.actions) as found:
            self.policy(TensorDict(examples, batch_size=[2]))
        return [key for key in self.actions if key in found and flat_name(probabilities_key(key)) not in self.outputs]

    def _named_forward(self) -> Callable[..., dict[str, torch.Tensor]]:
        """Return ``forward`` with the inputs' names as its parameters, from which ``torch.export`` takes them."""

        def forward(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            batch = next(iter(inputs.values())).shape[:1]
            entries = TensorDict({self.inputs[name]: tensor for name, tensor in inputs.items()}, batch_size=batch)
            with set_exploration_type(self.exploration_type):
                entries = self.decide(entries)
            if self.expected is not None:
                entries[EXPECTED] = self.expected(entries)
            # A next state goes back in as it came out, and compiled programs trust that their inputs are contiguous.
            return {name: entries[key].contiguous() for name, key in self.outputs.items()}

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(name, keyword) for name in self.inputs]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return forward

    def example_inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Return zeros for every input, at the start of an episode, with ``batch`` rows; a mask allows all choices."""
        examples = {}
        for name, key in self.inputs.items():
            if key == IS_INIT:
                examples[name] = torch.ones(batch, 1, dtype=torch.bool)
            else:
                spec = (self.memory.spec if name in self.states else self.input_spec)[key]
                mask = is_flags(spec) and name not in self.states
                zeros = least(spec) if not spec.dtype.is_floating_point else torch.zeros(spec.shape, dtype=spec.dtype)
                examples[name] = (torch.ones_like(zeros) if mask else zeros).expand(batch, *spec.shape).clone()
        return examples

    @property
    def signature(self) -> Signature:
        examples = self.example_inputs(1)
        with torch.no_grad():
            outputs = self(**examples)
        pairs = [{"input": name, "output": output} for name, output in self.states.items()]
        return Signature(_infos(examples), _infos(outputs), pairs)


def load_agent(policy: str, profile: Profile) -> Agent:
    """Return the trained policy, on the CPU, for evaluation.

    Raises:
        UserError: its weights are missing, damaged or another policy's.
    """
    path = Path("models", policy, "policy.safetensors")
    agent = make_agent(policy, profile, read_weights(path, policy)[1])
    load_weights(path, policy, agent.actor)
    agent.policy.eval().requires_grad_(requires_grad=False)
    return agent


def load_step(policy: str, profile: Profile, exploration_type: ExplorationType = ExplorationType.DETERMINISTIC) -> Step:
    """Return the trained policy as eager PyTorch, with which every program is compared.

    Raises:
        UserError: as :func:`load_agent`.
    """
    agent = load_agent(policy, profile)
    return make_step(agent, exploration_type)


def make_step(agent: Agent, exploration_type: ExplorationType) -> Step:
    """Return a policy as a function of named tensors."""
    return Step(agent.policy, agent.input_spec, exploration_type, agent.actions, agent.starts)


def _like(flags: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return the flags ``(batch,)``, one per row, with as many dimensions as ``tensor`` has."""
    return flags.view(-1, *[1] * (tensor.ndim - 1))


def _expected_values(policy: TensorDictModuleBase) -> Callable[[TensorDictBase], torch.Tensor] | None:
    """Return a function for the values from which a distributional policy chooses: ``(batch, actions)`` float32."""
    hooks = [hook for module in policy.modules() for hook in part(module, "_forward_hooks").values()]
    modules = [*policy.modules(), *(hook.qvalue_model for hook in hooks if isinstance(hook, QValueHook))]
    chooser = next((module for module in modules if isinstance(module, DistributionalQValueModule)), None)
    if chooser is None:
        return None

    def expect(entries: TensorDictBase) -> torch.Tensor:
        return (entries[chooser.action_value_key].exp() * chooser.support.unsqueeze(-1)).sum(-2)

    return expect


def _named(keys: list[NestedKey]) -> dict[str, NestedKey]:
    named: dict[str, NestedKey] = {}
    for key in keys:
        name = flat_name(key)
        if name in named:
            raise UserError(f"the policy's entries {named[name]!r} and {key!r} would both be called {name!r}")
        named[name] = key
    return named


def _infos(tensors: dict[str, torch.Tensor]) -> list[TensorInfo]:
    return [
        TensorInfo(name, str(tensor.dtype).removeprefix("torch."), ["batch", *tensor.shape[1:]])
        for name, tensor in tensors.items()
    ]
