"""Measure one thing, in a process that does nothing else.

What can be measured is a program's latency from raw observation to action (``eager``, ``pt2``, ``aoti``, ``onnx``) and
the decisions a second of a rollout (``emulator``, ``player``, ``torchrl``). PyTorch is imported only where it is
measured, and what is measured is loaded once a process.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from play import Action, Player, make_environment, play, read_manifest
from stages.common import episodes, params, runtimes

LATENCIES = ("eager", *runtimes.PROGRAMS)
RANDOM_ACTIONS = 10_000  # drawn before the measurement
ROLLOUTS = ("emulator", "player", "torchrl")


def load_player(policy: str, program: str, threads: int) -> Player:
    return Player(runtimes.load_by_name(policy, program, threads), read_manifest(Path("models", policy)))


@functools.cache
def first_observations(policy: str, steps: int) -> list[npt.NDArray[Any]]:
    """Those of the first recorded episode, ``steps`` of them or all there are."""
    episode = episodes.load(Path("data", policy, "episodes.safetensors"), policy)[0]
    environment = make_environment(read_manifest(Path("models", policy)), episode.seed)
    return list(itertools.islice(episodes.replay(episode, environment), steps))


def measure_load(policy: str, program: str, settings: params.Bench) -> float:
    """Milliseconds to load a program in a process that has just started, PyTorch included where the program needs it.

    NumPy and ONNX Runtime, which every such process has, are there already.
    """
    start = time.perf_counter()
    load_player(policy, program, settings.threads)
    return (time.perf_counter() - start) * 1e3


def measure_latency(policy: str, program: str, settings: params.Bench) -> dict[str, float]:
    """Percentiles in microseconds from raw observation to action, one at a time.

    The observations are those of the first recorded episode, again and again if it is shorter; the first
    ``warmup_steps`` decisions are not counted.
    """
    steps = settings.warmup_steps + settings.steps
    observations, player = first_observations(policy, steps), load_player(policy, program, settings.threads)
    times = []
    for observation in itertools.islice(itertools.cycle(observations), steps):
        start = time.perf_counter()
        player.act(observation)
        times.append(time.perf_counter() - start)
    p50, p90, p99 = np.percentile(times[settings.warmup_steps :], [50, 90, 99]) * 1e6
    return {"p50_us": p50, "p90_us": p90, "p99_us": p99}


def measure_rollout(policy: str, what: str, settings: params.Bench) -> float:
    """Decisions a second, ``rollout_steps`` of them after ``warmup_steps``, episode after episode."""
    if what == "torchrl":
        roll_out = torchrl_rollout(policy, settings.threads)
    else:
        manifest = read_manifest(Path("models", policy))
        decisions = emulate(manifest) if what == "emulator" else play_on(load_player(policy, "onnx", settings.threads))

        def roll_out(steps: int) -> None:
            for _ in itertools.islice(decisions, steps):
                pass

    roll_out(settings.warmup_steps)
    start = time.perf_counter()
    roll_out(settings.rollout_steps)
    return settings.rollout_steps / (time.perf_counter() - start)


def play_on(player: Player) -> Iterator[float]:
    """The rewards of episode after episode."""
    return (reward for seed in itertools.count() for reward, _ in play(player, seed))


def emulate(manifest: dict[str, Any]) -> Iterator[float]:
    """The bare environment with random actions: the most that any player could reach."""
    random = np.random.default_rng(0)
    actions: list[Action] = [episodes.random_action(manifest, random) for _ in range(RANDOM_ACTIONS)]
    cycle = itertools.cycle(actions)
    for seed in itertools.count():
        environment = make_environment(manifest, seed)
        while not environment.done:
            yield environment.step(next(cycle))


@functools.cache
def torchrl_rollout(policy: str, threads: int) -> Callable[[int], object]:
    """``env.rollout`` for some steps with the trained policy, in the environment that it was trained in."""
    import torch
    from torchrl.envs import InitTracker, TransformedEnv
    from torchrl.envs.utils import ExplorationType, set_exploration_type
    from torchrl.modules.utils import get_primers_from_module

    from stages.common.env import make_env
    from stages.common.policy import state_keys
    from stages.common.profile import load_profile
    from stages.common.program import load_agent

    torch.set_num_threads(threads)
    profile = load_profile(policy)
    actor = load_agent(policy, profile).actor
    env = make_env(profile.env, profile.preprocess, num_envs=1, seed=0)
    if state_keys(actor):
        env = TransformedEnv(TransformedEnv(env, InitTracker()), get_primers_from_module(actor))

    def roll_out(steps: int) -> None:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            env.rollout(steps, actor, break_when_any_done=False)

    return roll_out
