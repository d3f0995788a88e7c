"""TorchRL's transforms of an environment as modules of a program: pure functions, with memory as explicit states.

Observation transforms come before the policy, and action transforms behind it, as the environment inverts them.
Statistics are frozen. What only counts, rewards or ends episodes is dropped. A transform of one's own is taken for a
pure function; one that remembers has a method ``as_module``, which makes a module with the memory as states, and their
``state_spec``, as :class:`~policy_export.environments.preprocess.FrameStack` has them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import (
    ActionDiscretizer,
    ActionScaling,
    CatFrames,
    Compose,
    ObservationNorm,
    ObservationTransform,
    TensorDictPrimer,
    Transform,
    VecNorm,
    VecNormV2,
)

from policy_export.config.errors import ProfileError
from policy_export.device.errors import one_line
from policy_export.device.torchrl_env import flat_name
from policy_export.environments.preprocess import IS_INIT

Starts = dict[NestedKey, float | None]  # what states start with, by key; none for what is no constant

STATISTICS = (ObservationNorm, VecNorm, VecNormV2)
# Why a transform cannot be part of a program. What a program has no need of is not here.
STEPPING = "it changes how the environment steps, which a device's environment does not do"
DRAWING = "it draws random numbers"
REFUSED = {
    **dict.fromkeys(("FrameSkipTransform", "MultiAction", "ActionChunkTransform", "MacroPrimitiveTransform"), STEPPING),
    **dict.fromkeys(("ConditionalSkip", "ConditionalPolicySwitch"), STEPPING),
    **dict.fromkeys(("RandomCropTensorDict",), DRAWING),
    **dict.fromkeys(("TimeMaxPool", "NextObservationDelta"), "it keeps observations in itself; CatFrames is taken"),
    **dict.fromkeys(("Tokenizer", "Hash", "Timer"), "it is no function of numbers"),
}
# They ask one environment of a batch: each has its own.
OF_A_ROW = ("NoopResetEnv", "EndOfLifeTransform")
# What only the training has a use for: a policy that reads what they write is refused for that entry.
DROPPED = (
    *("StepCounter", "RewardSum", "InitTracker", "TrajCounter", "TensorDictPrimer", "gSDENoise", "Reward2GoTransform"),
    *("TargetReturn", "FiniteTensorDictCheck", "PinMemoryTransform", "DeviceCastTransform", "BurnInTransform"),
    *("NoopResetEnv", "EndOfLifeTransform", "AutoResetTransform", "VecGymEnvTransform", "TerminateTransform"),
    *("RandomTruncationTransform", "BatchSizeTransform", "RemoveEmptySpecs", "ExcludeTransform", "SelectTransform"),
    *("ActionMask", "RNDTransform"),
)


def flat_transforms(transform: Transform | Iterable[Transform] | None) -> list[Transform]:
    """Return transforms one by one, in the order in which observations pass them."""
    if transform is None:
        return []
    if isinstance(transform, nn.Module) and not isinstance(transform, Compose):
        return [transform]
    return [inner for each in transform for inner in flat_transforms(each)]


def transforms_of(env: EnvBase) -> list[Transform]:
    """Return an environment's transforms, the innermost first."""
    found: list[Transform] = []
    while isinstance(env, TransformedEnv):
        found = [*flat_transforms(env.transform), *found]
        env = env.base_env
    return found


def alone(*transforms: Transform) -> list[Transform]:
    """Return copies of transforms, one by one, that belong to no environment."""
    copies = [transform.clone() for transform in flat_transforms(transforms)]
    for each in copies:  # they are used in a batch here
        if isinstance(each, TensorDictPrimer) and each.expand_specs is None:
            each.expand_specs = True
        if isinstance(each, CatFrames):  # it has stacked those of another batch, if the environment was used
            for name in [name for name, _ in each.named_buffers(recurse=False) if name.startswith("_cat_buffers_")]:
                each.register_buffer(name, nn.parameter.UninitializedBuffer())
    for each in copies:
        if not type(each).__module__.startswith("torchrl."):
            each.__class__ = _of_rows(type(each))
    return [Levels.of(each) if type(each) is ActionDiscretizer else each for each in copies]


def _of_rows(kind: type[Transform]) -> type[Transform]:
    """Return a user's class of transforms, which may write specs as for one environment, for a batch of them."""
    return kind if issubclass(kind, OfRows) else type(kind.__name__, (OfRows, kind), {"__module__": kind.__module__})


class OfRows(Transform):
    """Gives a transform the specs of one row if it does not write those of a batch."""

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        return self._by_row(super().transform_output_spec, output_spec)

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        return self._by_row(super().transform_input_spec, input_spec)

    @staticmethod
    def _by_row(transform: Callable[[Composite], Composite], spec: Composite) -> Composite:
        batch = spec.shape
        if not batch:
            return transform(spec)
        try:
            return transform(spec.clone())
        except (ValueError, RuntimeError):
            return transform(spec[(0,) * len(batch)].clone()).expand(batch)


class Levels(ActionDiscretizer):
    """TorchRL's ``ActionDiscretizer`` for any batch, and for one-hot choices without a mask that picks them.

    TorchRL's own takes no batch where the numbers of a vector have different numbers of levels. Actions of more
    dimensions are left to it.
    """

    @classmethod
    def of(cls, transform: ActionDiscretizer) -> Levels:
        if transform.sampling == cls.SamplingStrategy.RANDOM:
            raise ProfileError(f"transforms: ActionDiscretizer cannot be part of a program: {DRAWING}")
        return cls(
            transform.num_intervals,
            transform.action_key,
            transform.out_action_key,
            transform.sampling,
            transform.categorical,
        )

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        spec = super().transform_input_spec(input_spec)
        levels = self.intervals
        tables = levels if isinstance(levels, list) else levels.view(-1, levels.shape[-1]) if levels.ndim < 3 else []
        self.sizes = [len(table) for table in tables]
        for number, table in enumerate(tables):
            self.register_buffer(f"levels_{number}", table)
        return spec

    def _inv_call(self, entries: TensorDictBase) -> TensorDictBase:
        if not hasattr(self, "sizes"):
            self._init()
        if not self.sizes:
            return super()._inv_call(entries)
        chosen = entries[self.out_keys_inv[0]]
        if not self.categorical:
            chosen = torch.stack([part.long().argmax(-1) for part in chosen.split(self.sizes, -1)], -1)
        elif not self.n_act:
            chosen = chosen.unsqueeze(-1)
        tables = [getattr(self, f"levels_{number}") for number in range(len(self.sizes))]
        taken = torch.stack([table[choice] for table, choice in zip(tables, chosen.unbind(-1), strict=True)], -1)
        return entries.set(self.in_keys_inv[0], taken if self.n_act else taken.squeeze(-1))


class OneHotActions(Transform):
    """Lets a policy choose by a one-hot vector where the environment takes an index."""

    def __init__(self) -> None:
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])

    def _inv_apply_transform(self, action: torch.Tensor) -> torch.Tensor:
        return action.long().argmax(-1)

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        spec = input_spec["full_action_spec", "action"]
        assert isinstance(spec, Categorical)
        input_spec["full_action_spec", "action"] = OneHot(spec.n, shape=(*spec.shape, spec.n))
        return input_spec


def one_row(env: EnvBase, spec: Composite) -> Composite:
    """Return a spec of an environment without the environment's batch."""
    return spec[(0,) * len(env.batch_size)] if env.batch_size else spec


class Keys(NamedTuple):
    """What a transform reads and writes."""

    read: list[NestedKey]
    written: list[NestedKey]

    @classmethod
    def known(cls, ones: Sequence[NestedKey] | None, others: Sequence[NestedKey] | None, known: set[NestedKey]) -> Keys:
        """Return the keys that are read and known, each with its own that is written; if there are others, with all."""
        read, written = _keys(ones), _keys(others) or _keys(ones)
        there = [key for key in read if key in known]
        if len(read) == len(written):
            return cls(there, [made for key, made in zip(read, written, strict=True) if key in known])
        return cls(there, written if there else [])


class _Part(TensorDictModuleBase):
    """A transform as a module, with the keys that it reads and writes."""

    def __init__(self, transform: Transform, keys: Keys) -> None:
        super().__init__()
        self.transform = transform
        self.in_keys, self.out_keys = keys.read, keys.written


class Observed(_Part):
    """An observation transform as a module."""

    def forward(self, entries: TensorDictBase) -> TensorDictBase:
        return self.transform._call(entries)  # noqa: SLF001  as an environment does; `forward` is for replay buffers


class Acted(_Part):
    """An action transform as a module: from what the policy writes to what the environment takes."""

    def forward(self, entries: TensorDictBase) -> TensorDictBase:
        return self.transform._inv_call(entries)  # noqa: SLF001  as an environment does


class History(TensorDictModuleBase):
    """``CatFrames`` with its frames as a state.

    Args:
        transform: of the environment.
        key: of what is stacked.
        written: of the stack.
        size: of ``key``, along the stack's dimension.
        state: key of the older frames, the oldest first.
    """

    def __init__(self, transform: CatFrames, key: NestedKey, written: NestedKey, size: int, state: str) -> None:
        super().__init__()
        self.dim, self.older, self.size = transform.dim, transform.N - 1, size
        self.padding = None if transform.padding == "same" else float(transform.padding_value)
        self.in_keys, self.out_keys = [key, state, IS_INIT], [written, ("next", state)]

    def forward(self, entries: TensorDictBase) -> TensorDictBase:
        frame, older, begins = (entries[key] for key in self.in_keys)
        first = torch.cat([frame] * self.older, self.dim)
        if self.padding is not None:
            first = torch.full_like(first, self.padding)
        begins = begins.view(-1, *[1] * (frame.ndim - 1))
        stack = torch.cat([torch.where(begins, first, older), frame], self.dim)
        entries[self.out_keys[0]] = stack
        entries[self.out_keys[1]] = stack.narrow(self.dim, self.size, self.older * self.size)
        return entries


@dataclass(frozen=True)
class Parts:
    """An environment's transforms, as modules.

    Attributes:
        before: from what the environment shows to what the policy reads.
        behind: from what the policy writes to the environment's action.
        states: their memory, without batch.
        primed: the states of policies that the environment has by TorchRL's primers, without batch.
        starts: what these start with.
        dropped: names of the transforms that no program has.
    """

    before: list[nn.Module]
    behind: list[nn.Module]
    states: Composite
    primed: Composite
    starts: Starts
    dropped: list[str]


def primer_starts(primer: TensorDictPrimer) -> Starts:
    """Return what a primer starts each of its entries with."""
    defaults = primer.default_value
    found: Starts = {}
    for key in map(unravel_key, primer.primers.keys(include_nested=True, leaves_only=True)):
        start = defaults if primer.single_default_value else defaults[key]
        found[key] = None if primer.random or callable(start) else float(start)
    return found


def env_starts(env: EnvBase) -> Starts:
    """Return what an environment's primers start the states of policies with."""
    primers = [transform for transform in transforms_of(env) if isinstance(transform, TensorDictPrimer)]
    return {key: start for primer in primers for key, start in primer_starts(primer).items()}


def program_parts(env: EnvBase) -> Parts:
    """Return an environment's transforms as modules of a program.

    Raises:
        ProfileError: one of them cannot be part of a program; it is named.
    """
    before: list[nn.Module] = []
    behind: list[nn.Module] = []
    states, primed, dropped = Composite(), Composite(), list[str]()
    for transform in transforms_of(env):
        name = type(transform).__name__
        if name in REFUSED:
            raise ProfileError(f"transforms: {name} cannot be part of a program: {REFUSED[name]}")
        if name in DROPPED:
            dropped.append(name)
            if isinstance(transform, TensorDictPrimer):
                primed.update(one_row(_inside(transform), transform.primers))
            continue
        outside = _inside(transform)
        known = {unravel_key(key) for key in outside.observation_spec.keys(include_nested=True, leaves_only=True)}
        keys = Keys.known(transform.in_keys, transform.out_keys, known)
        actions = {unravel_key(key) for key in outside.action_keys}
        _check_keys(transform, outside, known)
        taken, given = Keys.known(transform.in_keys_inv, transform.out_keys_inv, actions)
        if hasattr(transform, "as_module"):
            before.append(transform.clone().as_module())
            states.update(getattr(transform, "state_spec", Composite()))
        elif isinstance(transform, CatFrames):
            modules, own = _histories(transform, keys, outside, states)
            before += modules
            states.update(own)
        elif keys.read:
            before += _observed(transform, keys)
        if taken:
            behind.insert(0, Acted(_of_one_row(transform), Keys(given, taken)))
    return Parts(before, behind, states, primed, env_starts(env), dropped)


def _check_keys(transform: Transform, outside: EnvBase, known: set[NestedKey]) -> None:
    """Check that what a transform reads is there.

    Raises:
        ProfileError: it is not.
    """
    there = {*known, *map(unravel_key, (*outside.action_keys, *outside.reward_keys, *outside.done_keys))}
    missing = [key for key in _keys(transform.in_keys) if key not in there]
    if missing and isinstance(transform, ObservationTransform):
        name, shown = type(transform).__name__, ", ".join(sorted(map(repr, known)))
        raise ProfileError(f"transforms: {name} reads {missing[0]!r}, the environment has {shown}")


def _keys(keys: Sequence[NestedKey] | None) -> list[NestedKey]:
    return [unravel_key(key) for key in keys or ()]


def _inside(transform: Transform) -> EnvBase:
    """Return the environment below a transform."""
    parent = transform.parent
    assert parent is not None
    return parent


def _observed(transform: Transform, keys: Keys) -> list[nn.Module]:
    """Return an observation transform as modules, with frozen statistics."""
    if not isinstance(transform, VecNorm | VecNormV2):
        return [Observed(_of_one_row(transform), keys)]
    loc, scale = transform.loc, transform.scale
    return [
        Observed(
            ObservationNorm(
                loc=_one_row(loc[given], transform),
                scale=_one_row(scale[given], transform),
                standard_normal=True,
                in_keys=[given],
                out_keys=[made],
            ),
            Keys([given], [made]),
        )
        for given, made in zip(*keys, strict=True)
    ]


def _of_one_row(transform: Transform) -> Transform:
    """Return a copy of a transform whose numbers, if they come from the environment's specs, are those of one row."""
    copy, batch = transform.clone(), _inside(transform).batch_size
    if isinstance(transform, ActionScaling | ObservationNorm):
        for name in ("loc", "scale"):
            numbers = getattr(copy, name)
            for _ in batch if numbers.shape[: len(batch)] == batch else ():
                if not (numbers == numbers[:1]).all():
                    raise _each_its_own(transform)
                numbers = numbers[0]
            copy.register_buffer(name, numbers.clone())
    return copy


def _each_its_own(transform: Transform, advice: str = "") -> ProfileError:
    return ProfileError(
        f"transforms: {type(transform).__name__} has other numbers for each environment of a batch, and a program is "
        f"for one{advice}"
    )


def _one_row(statistics: torch.Tensor, transform: VecNorm | VecNormV2) -> torch.Tensor:
    """Return statistics without the dimensions of the environment's batch.

    Raises:
        ProfileError: every row of the batch has its own.
    """
    if isinstance(transform, VecNorm) or transform.reduce_batch_dims:
        return statistics.clone()
    for _ in _inside(transform).batch_size:
        if statistics.ndim and statistics.shape[0] > 1:
            raise _each_its_own(transform, ": give it reduce_batch_dims=True")
        statistics = statistics[0]
    return statistics.clone()


def _histories(
    transform: CatFrames, keys: Keys, outside: EnvBase, known: Composite
) -> tuple[list[nn.Module], Composite]:
    if transform.as_inverse or transform.future or transform.mask_key is not None:
        raise ProfileError("transforms: CatFrames cannot be part of a program with as_inverse, future or mask_key")
    modules, states = list[nn.Module](), Composite()
    for given, made in zip(*keys, strict=True):
        spec = outside.observation_spec[given]
        shape = list(spec.shape[len(outside.batch_size) :])
        size, state = shape[transform.dim], f"{flat_name(given)}_frames"
        while state in known.keys():  # of a history of histories
            state += "_again"
        shape[transform.dim] = size * (transform.N - 1)
        modules.append(History(transform, given, made, size, state))
        states[state] = Unbounded(shape, dtype=spec.dtype)
    return modules, states


def _numbered(transforms: Iterable[Transform]) -> Iterator[tuple[int, Transform]]:
    """Return transforms with their numbers, the same ones in a batch and alone."""
    return enumerate(each for each in transforms if type(each).__name__ not in OF_A_ROW)


def statistics(transforms: Iterable[Transform]) -> dict[str, torch.Tensor]:
    """Return the statistics of transforms by name, such as ``transforms/0.loc``.

    Raises:
        ProfileError: some have none yet.
    """
    found = {}
    for place, transform in _numbered(transforms):
        if isinstance(transform, STATISTICS):
            for name, tensor in _statistics(transform).items():
                found[f"transforms/{place}.{name}"] = tensor.detach().cpu().clone()
    return found


def refuse_unmeasured(transforms: Iterable[Transform]) -> None:
    """Refuse normalisation without numbers, which does not even know what it makes of an observation.

    Raises:
        ProfileError: there is some.
    """
    if any(isinstance(each, ObservationNorm) and not each.initialized for each in transforms):
        raise ProfileError(
            "transforms: ObservationNorm has no statistics: give loc and scale, or call init_stats in env.factory"
        )


def _statistics(transform: Transform) -> dict[str, torch.Tensor]:
    if isinstance(transform, ObservationNorm):
        return {"loc": transform.loc, "scale": transform.scale}
    if not _has_measured(transform):
        raise ProfileError(
            f"transforms: {type(transform).__name__} has no statistics: let env.factory roll out the environment once, "
            "behind this transform, or take ObservationNorm with loc and scale"
        )
    return dict(transform.get_extra_state())


def freeze(transforms: Iterable[Transform], saved: Mapping[str, torch.Tensor] | None = None) -> None:
    """Freeze the statistics of transforms, in place.

    Args:
        transforms: of an environment.
        saved: what they are to be, as :func:`statistics` has returned them; none for what they are.

    Raises:
        ProfileError: the statistics are of other transforms.
    """
    for place, transform in _numbered(transforms):
        if not isinstance(transform, STATISTICS):
            continue
        if saved is not None:
            start = f"transforms/{place}."
            own = {name.removeprefix(start): tensor.clone() for name, tensor in saved.items() if name.startswith(start)}
            try:
                _restore(transform, own)
            except Exception as error:  # names and shapes of another transform's statistics
                raise ProfileError(
                    f"transforms: {type(transform).__name__}: the saved statistics do not fit: {one_line(error)}; "
                    "train it again"
                ) from error
        if not isinstance(transform, ObservationNorm):
            transform.freeze()


def unfreeze(transforms: Iterable[Transform]) -> None:
    """Let transforms measure on, in place."""
    for transform in transforms:
        if isinstance(transform, VecNorm | VecNormV2):
            transform.unfreeze()


def measures(transforms: Iterable[Transform]) -> bool:
    """Return whether some transforms measure while the environment steps, and have not done so yet."""
    return any(isinstance(each, VecNorm | VecNormV2) and not _has_measured(each) for each in transforms)


def _has_measured(transform: Transform) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is nothing yet
        state = transform.get_extra_state() or {}
    counts = [tensor for name, tensor in state.items() if "count" in name]
    return bool(counts) and all(bool((count > 0).any()) for count in counts)


def _restore(transform: Transform, own: dict[str, Any]) -> None:
    if isinstance(transform, ObservationNorm):
        transform.register_buffer("loc", own["loc"])
        transform.register_buffer("scale", own["scale"])
        return
    for name in ("_td", "_loc"):  # what is there already may have another shape
        if hasattr(transform, name):
            setattr(transform, name, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other processes do not share them
        transform.set_extra_state({name: tensor.share_memory_() for name, tensor in own.items()})
