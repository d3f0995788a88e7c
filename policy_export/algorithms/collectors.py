"""Rollouts from processes of their own, which collect while the network learns.

Each process has a share of the environments and a copy of what acts. It is fixed which weights act at which step, so
timing does not change what is learned.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policy_export.algorithms.rollouts import Rollouts
from policy_export.config.errors import ProfileError
from policy_export.config.profile import Profile
from policy_export.config.training import Learning
from policy_export.environments.env import AtariEnv
from policy_export.environments.transforms import freeze, statistics, transforms_of, unfreeze
from policy_export.program.failures import in_one_line
from policy_export.program.policy import environment_of, make_agent
from policy_export.stage.processes import processes

Tensors = Mapping[Any, torch.Tensor]
Arrays = dict[Any, npt.NDArray[Any]]
Sent = tuple[Arrays, list[float], Arrays, bytes]  # from a process: what Collected has, with one state, or nothing


class Collected(NamedTuple):
    """What one process, or all of them, have collected.

    Attributes:
        rollout: as :meth:`Rollouts.collect` returns it.
        scores: of the episodes that ended.
        statistics: of the environment's transforms.
        states: of each process afterwards, from which another continues to the bit; none where an environment has a
            state that cannot be kept.
    """

    rollout: TensorDictBase
    scores: list[float]
    statistics: dict[str, torch.Tensor]
    states: list[bytes]


class Collector:
    """What collects in one process.

    Args:
        policy: name of the policy.
        profile: its profile, which trains it.
        rows: number of environments.
        seed: of the first environment, and of all that is drawn.
        saved: statistics of the environment's transforms; none at the start of a training.
        state: one of :attr:`Collected.states`; nothing for new episodes.

    Raises:
        ProfileError: the environments have a number of their own.
    """

    def __init__(self, policy: str, profile: Profile, rows: int, seed: int, *, saved: Tensors, state: bytes) -> None:
        train = profile.train
        assert isinstance(train, Learning)
        agent = make_agent(policy, profile)
        self.env = environment_of(profile, agent, rows, seed)
        if train.collectors > 1 and (self.env.batch_size[0] != rows or statistics(transforms_of(self.env))):
            raise ProfileError("train.collectors: must be 1 for an environment with a batch or statistics of its own")
        if saved:
            freeze(transforms_of(self.env), saved)
        unfreeze(transforms_of(self.env))
        algorithm = importlib.import_module(f"policy_export.algorithms.{train.algorithm}")
        self.learner = algorithm.Learner(agent.actor, train, self.env.observation_spec[0])
        self.rollouts = Rollouts(self.env, self.learner.behaviour, self.learner.keep, self.learner.value)
        bare = getattr(self.env, "base_env", self.env)
        self.console = bare if isinstance(bare, AtariEnv) and profile.transforms is None else None
        torch.manual_seed(seed)
        if state:
            self.restore(state)

    def collect(self, weights: Arrays, steps: int, length: int) -> Sent:
        """Collect ``length`` steps of every environment, with weights, and the exploration after ``steps`` steps."""
        behaviour, exploration = self.learner.behaviour, self.learner.exploration
        behaviour.load_state_dict(as_tensors(weights))
        if exploration is not None:
            exploration.apply(behaviour, steps)
        with set_exploration_type(ExplorationType.RANDOM):
            rollout, scores = self.rollouts.collect(length)
        entries = as_arrays(dict(rollout.items(include_nested=True, leaves_only=True)))
        return entries, scores, as_arrays(statistics(transforms_of(self.env))), self.state

    @property
    def state(self) -> bytes:
        """Return the state; nothing where it cannot be kept."""
        if self.console is None:
            return b""
        state = {"random": torch.get_rng_state(), "env": self.console.saved, "rollouts": self.rollouts.saved}
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()

    def restore(self, state: bytes) -> None:
        """Go on where another collector was."""
        assert self.console is not None
        saved = torch.load(io.BytesIO(state), weights_only=True)
        self.console.restore(saved["env"])
        self.rollouts.restore(saved["rollouts"])
        torch.set_rng_state(saved["random"])


def as_arrays(tensors: Mapping[Any, torch.Tensor]) -> Arrays:
    """Return copies of tensors for another process: PyTorch would share memory, of which a container has little."""
    return {key: tensor.detach().cpu().numpy().copy() for key, tensor in tensors.items()}


def as_tensors(arrays: Arrays) -> dict[Any, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def shares(number: int, parts: int) -> list[range]:
    """Split what is numbered from 0 into up to ``parts`` consecutive parts of nearly one size, none of them empty."""
    bounds = itertools.pairwise(number * part // parts for part in range(parts + 1))
    return [range(first, end) for first, end in bounds if end > first]


_here: Collector | None = None  # in a process that collects


def _begin(policy: str, *arguments: Any, **named: Any) -> None:
    global _here  # noqa: PLW0603 - it is what such a process is for
    torch.set_num_threads(1)
    with in_one_line(policy, "train"):
        _here = Collector(policy, *arguments, **named)


def _collect(policy: str, *arguments: Any) -> Sent:
    assert _here is not None
    with in_one_line(policy, "train"):
        return _here.collect(*arguments)


class Collectors:
    """The processes that collect for one training: see :func:`collectors`."""

    def __init__(self, policy: str, length: int, executors: Sequence[ProcessPoolExecutor]) -> None:
        self.policy, self.length, self.executors = policy, length, executors
        self.pending: list[Future[Sent]] = []

    def begin(self, weights: Tensors, steps: int) -> None:
        """Begin to collect, with weights, which may change afterwards, and the exploration after ``steps`` steps."""
        arguments = self.policy, as_arrays(weights), steps, self.length
        self.pending = [executor.submit(_collect, *arguments) for executor in self.executors]

    def result(self) -> Collected:
        """Return what has been collected since, when it is there."""
        parts = [future.result() for future in self.pending]
        rollouts = [TensorDict(as_tensors(entries), entries["reward"].shape[:2]) for entries, *_ in parts]
        scores = [score for _, finished, *_ in parts for score in finished]
        states = [state for *_, state in parts if state]
        return Collected(torch.cat(rollouts), scores, as_tensors(parts[0][2]), states)


@contextlib.contextmanager
def collectors(
    policy: str, profile: Profile, seed: int, saved: Tensors, states: Sequence[bytes]
) -> Iterator[Collectors]:
    """Yield processes that collect for a training.

    Args:
        policy: name of the policy.
        profile: its profile.
        seed: of the first environment; the others' follow from it.
        saved: statistics of the environments' transforms; none at the start of a training.
        states: the processes' own, as they were; none for new episodes.

    Raises:
        UserError: a process was ended from outside.
    """
    train = profile.train
    assert isinstance(train, Learning)
    rows = shares(train.num_envs, train.collectors)
    with contextlib.ExitStack() as stack:
        executors = [stack.enter_context(processes(1)) for _ in rows]
        begun = [
            executor.submit(_begin, policy, profile, len(share), seed + share.start, saved=saved, state=state)
            for executor, share, state in zip(executors, rows, states or [b""] * len(rows), strict=True)
        ]
        for each in begun:
            each.result()
        yield Collectors(policy, train.rollout_steps, executors)
