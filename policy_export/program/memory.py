"""The memory that a policy passes from one step to the next: declared, or written in place.

A policy declares a state by reading a key and writing it under ``("next", key)``. Some of TorchRL's modules write the
key itself instead, as ``OrnsteinUhlenbeckProcessModule`` does with its noise, and rely on the environment to pass the
entry back at the next step. Such an entry is found by trying: it is a state if what the policy decides depends on its
old value. What a module keeps in itself, outside of the entries, is found as well, and refused: a program has no such
place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tensordict import NestedKey, TensorDict, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.nn.parameter import is_lazy
from torchrl.data import Binary, Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import Compose, TensorDictPrimer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.utils import get_primers_from_module

from policy_export.config.errors import ProfileError
from policy_export.device.errors import UserError
from policy_export.environments.preprocess import IS_INIT
from policy_export.environments.transforms import Starts, primer_starts
from policy_export.program.copies import copied, settle_weights
from policy_export.program.decisions import VALUES
from policy_export.program.failures import explain

Entries = dict[NestedKey, torch.Tensor]

ROWS = 3  # of a trial; no size that a policy is likely to have by chance
SEED = 20


def next_key(key: NestedKey) -> NestedKey:
    """Return the key under which a policy writes the next value of a state that it declares."""
    return unravel_key(("next", key))


def state_keys(policy: TensorDictModuleBase) -> list[NestedKey]:
    """Return the keys of the states that a policy declares."""
    return [key for key in policy.in_keys if next_key(key) in policy.out_keys]


def _primers(policy: TensorDictModuleBase) -> list[TensorDictPrimer]:
    found = get_primers_from_module(policy, warn=False)
    return list(found) if isinstance(found, Compose) else [found] if found else []


def state_spec(policy: TensorDictModuleBase) -> Composite:
    """Return shape and dtype of the states that a policy's modules declare by TorchRL's primers, without batch."""
    spec = Composite()
    for primer in _primers(policy):
        spec.update(primer.primers)
    return spec


def state_starts(policy: TensorDictModuleBase) -> Starts:
    """Return what the states start with that a policy's modules declare by TorchRL's primers."""
    return {key: start for primer in _primers(policy) for key, start in primer_starts(primer).items()}


@dataclass(frozen=True)
class Memory:
    """The states of a policy under one exploration type.

    Attributes:
        observations: keys of what the policy reads of its environment.
        written: key of each state, and the key under which the policy writes its next value.
        spec: shape and dtype of every state, without batch.
        starts: of the states that the policy does not reset itself, by key, the number that they start with.
        overwritten: keys of the tensors that the policy changes in place.
        restarts: whether an episode's first step must be computed without the entries that are written in place, as
            the policy starts them otherwise than with zeros.
    """

    observations: list[NestedKey]
    written: dict[NestedKey, NestedKey] = field(default_factory=dict)
    spec: Composite = field(default_factory=Composite)
    starts: dict[NestedKey, float] = field(default_factory=dict)
    overwritten: list[NestedKey] = field(default_factory=list)
    restarts: bool = False

    @property
    def in_place(self) -> list[NestedKey]:
        """Return the keys of the states that the policy overwrites."""
        return [key for key, written in self.written.items() if key == written]

    def example(self, input_spec: Composite) -> Entries:
        """Return any entries in the middle of an episode, always the same, ``(ROWS, ...)`` each."""
        entries = {key: example(input_spec, key) for key in self.observations}
        entries |= {key: example(self.spec, key) for key in self.written}
        return entries | {IS_INIT: torch.zeros(ROWS, 1, dtype=torch.bool)}


class Trial:
    """A copy of a policy that is tried out; the policy, and PyTorch's random numbers, stay as they are."""

    def __init__(self, policy: TensorDictModuleBase, exploration_type: ExplorationType) -> None:
        self.policy, self.exploration_type = copied(policy).eval(), exploration_type
        for module in self.policy.modules():
            settle_weights(module)

    def __call__(self, entries: Entries) -> Entries:
        """Return all entries after a call, which always draws the same random numbers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            given = {key: tensor.clone() for key, tensor in entries.items()}
            return call(self.policy, given, self.exploration_type)

    def overwritten(self, entries: Entries) -> list[NestedKey]:
        """Return the keys of the tensors that the policy changes in place."""
        given = {key: tensor.clone() for key, tensor in entries.items()}
        with torch.random.fork_rng(devices=[]):
            call(self.policy, given, self.exploration_type)
        return [key for key, tensor in given.items() if not torch.equal(tensor, entries[key])]

    def kept(self) -> dict[str, torch.Tensor]:
        """Return copies of the tensors that the policy's modules hold in addition to their weights, by name."""
        found = dict(self.policy.named_buffers())
        for name, value in self._attributes():
            for place, tensor in enumerate(held := _contents(value)):
                if isinstance(tensor, torch.Tensor) and not isinstance(tensor, nn.Parameter):
                    found[f"{name}[{place}]" if len(held) > 1 else name] = tensor
        # TorchRL's networks of several agents hold a network without values, into which they put each agent's weights.
        return {name: tensor.detach().clone() for name, tensor in found.items() if not tensor.is_meta}

    def counted(self) -> dict[str, list[object]]:
        """Return numbers and texts, and how much else, that the attributes of the policy's modules hold, by name."""
        return {
            name: [each if isinstance(each, int | float | str) else None for each in _contents(value)]
            for name, value in self._attributes()
        }

    def _attributes(self) -> Iterator[tuple[str, object]]:
        modules_own = vars(nn.Module())
        for path, module in self.policy.named_modules():
            for name, value in vars(module).items():
                if name not in modules_own:
                    yield f"{path}.{name}".removeprefix("."), value


def _contents(value: object) -> list[object]:
    """Return what a container holds, or the value itself."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | deque) else [value]


def initialise(policy: TensorDictModuleBase, input_spec: Composite) -> None:
    """Give the policy's lazy layers their sizes, in place, by a call with any entries; do nothing if there are none.

    Raises:
        ProfileError: the policy fails.
    """
    if not any(is_lazy(tensor) for tensor in (*policy.parameters(), *policy.buffers())):
        return
    keys = [unravel_key(key) for key in input_spec.keys(include_nested=True, leaves_only=True)]
    entries = {key: example(input_spec, key) for key in keys} | {IS_INIT: torch.ones(ROWS, 1, dtype=torch.bool)}
    modes = {module: module.training for module in policy.modules()}
    policy.eval()  # no statistics of what nobody has seen
    try:
        call(policy, entries, ExplorationType.DETERMINISTIC)
    finally:
        for module, mode in modes.items():
            module.training = mode


def call(policy: TensorDictModuleBase, entries: Entries, exploration_type: ExplorationType) -> Entries:
    """Return all entries after a call of the policy with tensors of ``ROWS`` rows, without gradients.

    Raises:
        KeyError: the policy reads an entry that is not there.
        ProfileError: the policy fails otherwise.
    """
    given = TensorDict({}, batch_size=[ROWS])
    for key, tensor in entries.items():
        given[key] = tensor
    try:
        with torch.no_grad(), set_exploration_type(exploration_type):
            after = policy(given)
    except (KeyError, UserError):
        raise
    except Exception as error:  # a user's module may fail in any way
        raise ProfileError(f"the policy fails: {explain(error)}") from error
    return {unravel_key(key): after[key] for key in after.keys(include_nested=True, leaves_only=True)}


def is_value(key: NestedKey) -> bool:
    """Return whether an entry is what an action was chosen by, by the last part of its key."""
    return (key if isinstance(key, str) else key[-1]) in VALUES


def find_memory(
    policy: TensorDictModuleBase,
    input_spec: Composite,
    exploration_type: ExplorationType,
    actions: Sequence[NestedKey] = ("action",),
    starts: Starts | None = None,
) -> Memory:
    """Return the states of a policy, found by trying it out.

    Args:
        policy: reads observations, states and ``is_init``; its lazy layers are initialised.
        input_spec: of the observations, and of the states as far as they are declared, without batch.
        exploration_type: under which the policy is called; what only explores keeps its states only then.
        actions: keys of its actions.
        starts: what its states start with, by key; zero where nothing is given.

    Raises:
        ProfileError: a module keeps a memory in itself, a state starts with no constant, or the policy reads an entry
            that is neither an observation nor a state of known shape.
    """
    declared = state_keys(policy)
    known = {unravel_key(key) for key in input_spec.keys(include_nested=True, leaves_only=True)}
    if undeclared := [key for key in declared if key not in known]:
        raise ProfileError(
            f"the policy has states {undeclared} of unknown shape; the module that keeps them needs the method "
            "make_tensordict_primer, as TorchRL's LSTMModule has it"
        )
    primed = [unravel_key(key) for key in state_spec(policy).keys(include_nested=True, leaves_only=True)]
    primed = [key for key in primed if key not in declared and key in known]
    read = [key for key in policy.in_keys if key in known and key not in declared and key not in primed]
    trial = Trial(policy, exploration_type)
    entries = {key: example(input_spec, key) for key in [*read, *declared]}
    entries[IS_INIT] = torch.zeros(ROWS, 1, dtype=torch.bool)
    zeros = {key: torch.zeros_like(example(input_spec, key)) for key in primed}
    kept, errors = trial.kept(), list[Exception]()
    # Some modules do not start in the middle of an episode without the entries that they have written before.
    for given in (entries, entries | zeros, entries | zeros | {IS_INIT: torch.ones(ROWS, 1, dtype=torch.bool)}):
        try:
            first = trial(given)
        except (KeyError, UserError) as error:
            errors.append(error)
        else:
            break
    else:
        nested = {unravel_key(key)[0] for key in policy.out_keys if not isinstance(unravel_key(key), str)}
        missing = [key for key in policy.in_keys if key not in entries and key not in zeros and key not in nested]
        if not missing and isinstance(errors[0], UserError):
            raise errors[0]
        has = sorted((key for key in known if key not in declared and key not in primed), key=str)
        raise ProfileError(f"the policy reads {missing or errors[0]}, the environment has {has}")
    refuse_hidden(trial, kept, first, given)
    overwritten = trial.overwritten(given)
    entries = given | {IS_INIT: entries[IS_INIT]}

    decisions = [*actions, *filter(is_value, first), *map(next_key, declared)]
    others = [key for key in first if key not in entries and key not in decisions and key[0] != "next"]
    candidates = {key: first[key] for key in [*others, *primed] if key in first}
    in_place = depending(trial, entries, candidates, decisions) if candidates else []
    written = {key: next_key(key) for key in declared} | {key: key for key in in_place}
    spec = Composite({key: input_spec[key] for key in declared})
    for key in in_place:
        spec[key] = unbatched(first[key])
    begin = {key: (starts or {}).get(key, 0.0) for key in written}
    known_starts = {key: start for key, start in begin.items() if start is not None}
    if unknown := [key for key in begin if key not in known_starts]:
        raise ProfileError(
            f"the state {unknown[0]!r} starts with random numbers, or with what a function returns, and that of a "
            "program with a constant: give its TensorDictPrimer a number as default_value"
        )
    kept_on = [*in_place, *left_over(trial, entries, declared, decisions)]
    restarts = bool(in_place) and starts_otherwise(trial, entries, in_place, decisions, begin)
    return Memory(read, written, spec, {key: known_starts[key] for key in kept_on}, overwritten, restarts)


def example(spec: Composite, key: NestedKey) -> torch.Tensor:
    """Return any values of an entry, always the same, ``(ROWS, ...)``."""
    entry, generator = spec[key], torch.Generator().manual_seed(SEED)
    shape = (ROWS, *entry.shape)
    if entry.dtype == torch.uint8:
        return torch.randint(256, shape, dtype=entry.dtype, generator=generator)
    if is_flags(entry):
        values = torch.randint(2, shape, generator=generator).to(entry.dtype)
        if shape[-1] > 1:
            values[..., 0] = 1  # a mask leaves one choice at least
        return values
    if not entry.dtype.is_floating_point:
        return least(entry).expand(shape).clone()
    values = torch.randn(shape, dtype=entry.dtype, generator=generator)
    if isinstance(entry, Bounded):
        values = values.clamp(entry.space.low, entry.space.high)
    return values


def is_flags(spec: TensorSpec) -> bool:
    """Return whether an entry holds flags, as a mask does, of whatever dtype."""
    if spec.dtype == torch.bool or isinstance(spec, Binary):
        return True
    whole = isinstance(spec, Bounded) and not spec.dtype.is_floating_point
    return whole and bool((spec.space.low == 0).all() and (spec.space.high == 1).all())


def least(spec: TensorSpec) -> torch.Tensor:
    """Return the smallest whole numbers that an entry may hold, or zeros where there is no bound, without batch."""
    values = torch.zeros(spec.shape, dtype=torch.int64)  # PyTorch computes nothing in uint16 and the like
    return (torch.maximum(values, spec.space.low.to(torch.int64)) if isinstance(spec, Bounded) else values).to(
        spec.dtype
    )


def disturbed(tensor: torch.Tensor) -> torch.Tensor:
    """Return other values with a tensor's shape and dtype."""
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.dtype.is_floating_point:
        return (tensor.to(torch.int64) + 7).to(tensor.dtype)
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def unbatched(tensor: torch.Tensor) -> TensorSpec:
    return Unbounded(tensor.shape[1:], dtype=tensor.dtype)


def differing(ones: Entries, others: Entries, keys: Iterable[NestedKey]) -> set[NestedKey]:
    """Return the keys whose tensors differ; a missing tensor counts as different."""
    return {
        key
        for key in keys
        if (key in ones) != (key in others)
        or (key in ones and not torch.allclose(ones[key], others[key], rtol=0, atol=0, equal_nan=True))
    }


def depending(trial: Trial, entries: Entries, candidates: Entries, decisions: list[NestedKey]) -> list[NestedKey]:
    """Return the candidates whose old entry, by its value or existence, changes a decision in one step or several.

    The effect of an entry may depend on others; for example, a count of steps decides whether a plan is read at all. So
    each entry is changed, and left out, with several values of the others.
    """
    watched = [*decisions, *candidates]
    reached: dict[NestedKey, set[NestedKey]] = {key: set() for key in candidates}
    others = {key: disturbed(tensor) for key, tensor in candidates.items()}
    for values in ({key: torch.zeros_like(tensor) for key, tensor in candidates.items()}, candidates, others):
        given = entries | values
        if (expected := attempt(trial, given)) is None:  # not every entry may have any value
            continue
        for key in candidates:
            changed = attempt(trial, given | {key: others[key]})
            if changed is not None:
                reached[key] |= differing(changed, expected, watched)
            missing = attempt(trial, {other: tensor for other, tensor in given.items() if other != key})
            reached[key] |= set(watched) if missing is None else differing(missing, expected, watched)
    found, wanted = list[NestedKey](), set(decisions)
    while new := [key for key, keys in reached.items() if key not in found and keys & wanted]:
        found += new
        wanted |= set(new)
    return [key for key in candidates if key in found]


def attempt(trial: Trial, entries: Entries) -> Entries | None:
    """Return all entries after a call, or none if the policy fails."""
    try:
        return trial(entries)
    except (KeyError, UserError):
        return None


def left_over(trial: Trial, entries: Entries, declared: list[NestedKey], decisions: list[NestedKey]) -> list[NestedKey]:
    """Return the states that the policy does not reset itself where ``is_init`` is true.

    A module that is not told where an episode begins cannot reset any.
    """
    begins = entries | {IS_INIT: torch.ones(ROWS, 1, dtype=torch.bool)}
    expected, others = attempt(trial, begins), {key: disturbed(entries[key]) for key in declared}
    found = []
    for key in declared:
        values = (others[key], torch.zeros_like(entries[key]), torch.full_like(entries[key], 100))
        changes = [attempt(trial, begins | {key: value}) for value in values]
        changes.append(attempt(trial, begins | others))
        depends = expected is None or any(
            changed is None or differing(changed, expected, decisions) for changed in changes
        )
        if depends or not is_told(trial.policy, key):
            found.append(key)
    return found


def is_told(policy: TensorDictModuleBase, key: NestedKey) -> bool:
    """Return whether all innermost modules that read an entry read ``is_init`` as well."""
    readers = [
        module
        for module in policy.modules()
        if isinstance(module, TensorDictModuleBase) and key in map(unravel_key, module.in_keys)
    ]
    inner = [one for one in readers if not any(other is not one and other in readers for other in one.modules())]
    return all(IS_INIT in module.in_keys for module in inner)


def starts_otherwise(
    trial: Trial, entries: Entries, in_place: list[NestedKey], decisions: list[NestedKey], starts: Starts
) -> bool:
    """Return whether a policy decides differently without the entries that it writes in place than as they start."""
    begins = entries | {IS_INIT: torch.ones(ROWS, 1, dtype=torch.bool)}
    try:
        missing = trial({key: tensor for key, tensor in begins.items() if key not in in_place})
    except (KeyError, UserError):  # the environment must provide them: by TorchRL's primers, with zeros
        return False
    started = trial(begins | {key: torch.full_like(missing[key], starts[key] or 0) for key in in_place})
    return bool(differing(missing, started, [*decisions, *in_place]))


def refuse_hidden(trial: Trial, kept: dict[str, torch.Tensor], first: Entries, entries: Entries) -> None:
    """Compare a second call with the first.

    Raises:
        ProfileError: a module keeps something from call to call, or draws random numbers that are not PyTorch's.
    """
    now, counted = trial.kept(), trial.counted()
    names = [name for name in now if name not in kept or not torch.equal(now[name], kept[name])]
    different = bool(differing(first, trial(entries), first))
    again = trial.counted()
    names += [name for name, held in again.items() if name not in names and held != counted.get(name, held)]
    if names:
        raise ProfileError(
            f"the policy's modules write into themselves ({', '.join(names)}), and a program has no such memory: read "
            "a state under a key, write its next value under ('next', key), and declare it by make_tensordict_primer; "
            "a transform of the environment gives its memory by as_module and state_spec"
        )
    if different:
        raise ProfileError(
            "the policy decides otherwise when it is called again with the same entries and the same random seed: it "
            "keeps a memory in itself, or draws random numbers that are not PyTorch's, and a program has neither"
        )
