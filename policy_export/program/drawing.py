"""The probabilities by which a policy that explores draws its choices, seen while it decides.

They are outputs of the programs that explore, so that the distribution itself is compared, to the last digits, and not
only what some thousand draws show of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import CompositeDistribution, ProbabilisticTensorDictModule, TensorDictSequential
from torch import distributions, nn
from torchrl.modules import EGreedyModule, SafeProbabilisticModule

from policy_export.program.epsilon_greedy import EpsilonGreedy, choices, of_epsilon_greedy, spec_of

Probabilities = dict[NestedKey, torch.Tensor]
CHOICES = (distributions.Categorical, distributions.OneHotCategorical, distributions.Bernoulli)


def of_distribution(distribution: Any) -> torch.Tensor | None:
    """Return the probabilities of a distribution of choices, or of bits to be 1; none of any other."""
    if isinstance(distribution, distributions.Independent):
        return of_distribution(distribution.base_dist)
    return distribution.probs if isinstance(distribution, CHOICES) else None


@contextmanager
def watching(policy: nn.Module, actions: Sequence[NestedKey]) -> Iterator[Probabilities]:
    """Yield what is filled with the probabilities of each action that the policy draws inside, by its key.

    An action that another module changes afterwards, beyond its form, is not among them.
    """
    wanted, found = [unravel_key(key) for key in actions], Probabilities()
    with ExitStack() as stack:
        for module in policy.modules():
            written = [key for key in map(unravel_key, getattr(module, "out_keys", ())) if key in wanted]
            if isinstance(module, TensorDictSequential) or getattr(module, "keeps_choice", False) or not written:
                continue
            if _computes_as(module, ProbabilisticTensorDictModule, SafeProbabilisticModule):
                stack.enter_context(_watch_distribution(module, written, found))
            elif _computes_as(module, EGreedyModule) or isinstance(module, EpsilonGreedy):
                stack.enter_context(_watch_exploration(module, written[0], found))
            else:
                forget = partial(_forget, written, found)
                stack.callback(module.register_forward_hook(forget).remove)
        yield found


def _computes_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a module is of a class, and not of one that computes something else."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _forget(written: list[NestedKey], found: Probabilities, *_: Any) -> None:
    for key in written:
        found.pop(key, None)


def _put(found: Probabilities, key: NestedKey, probabilities: torch.Tensor | None) -> None:
    if probabilities is None:
        found.pop(key, None)
    else:
        found[key] = probabilities


@contextmanager
def _watch_distribution(
    module: ProbabilisticTensorDictModule, written: list[NestedKey], found: Probabilities
) -> Iterator[None]:
    """Find the probabilities of the very distribution from which a module draws, which a copy need not share."""
    get_dist, seen = module.get_dist, list[Any]()

    def keep(*given: Any, **named: Any) -> Any:
        seen.append(get_dist(*given, **named))
        return seen[-1]

    def drawn(*_: Any) -> None:
        parts = seen[-1].dists if isinstance(seen[-1], CompositeDistribution) else dict.fromkeys(written, seen[-1])
        for key in written:
            _put(found, key, of_distribution(parts.get(key)))

    module.get_dist = keep
    hook = module.register_forward_hook(drawn)
    try:
        yield
    finally:
        hook.remove()
        del module.get_dist


@contextmanager
def _watch_exploration(module: EGreedyModule | EpsilonGreedy, key: NestedKey, found: Probabilities) -> Iterator[None]:
    """Find the probabilities after epsilon-greedy exploration of an action, which may itself have been drawn."""
    before = list[torch.Tensor]()

    def explores(_: nn.Module, given: tuple[TensorDictBase]) -> None:
        before.append(given[0][key])

    def explored(_: nn.Module, given: tuple[TensorDictBase], result: TensorDictBase) -> None:
        mask = None if module.action_mask_key is None else given[0][module.action_mask_key]
        twin = isinstance(module, EpsilonGreedy)
        if twin and key not in found and module.drawn_by in result.keys(include_nested=True):
            found[key] = result[module.drawn_by]  # the very tensor from which the twin draws
        else:
            spec, sizes = (module.spec, module.sizes) if twin else (spec_of(module), choices(spec_of(module)))
            known = of_epsilon_greedy(before[-1], spec, sizes, module.eps, mask, drawn_before=found.get(key))
            _put(found, key, known)

    hooks = module.register_forward_pre_hook(explores), module.register_forward_hook(explored)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
