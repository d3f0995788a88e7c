"""Decisions per second of whole rollouts: the bare ``emulator``, the ``player`` without PyTorch, and ``torchrl``.

Each of them is loaded once per process, and continues from call to call.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from policy_export.backends import runtimes
from policy_export.backends.registry import backends, deterministic
from policy_export.config import params
from policy_export.device.arrays import Action
from policy_export.device.environments import is_playable, make_environment, play
from policy_export.device.manifest import observation_names, read_manifest
from policy_export.device.player import Player
from policy_export.environments import episodes

PR_SET_PDEATHSIG = 1  # prctl(2)
RANDOM_ACTIONS = 10_000  # drawn before the measurement
PLAYING = "playing"  # what the process that plays meanwhile prints once it does
EMULATOR, TORCHRL, PLAYER = "emulator", "torchrl", "player_"  # and the program that the player plays with


def players(manifest: Mapping[str, Any]) -> list[str]:
    """Return the player with each of the programs that it runs, such as ``player_onnx``."""
    return [f"{PLAYER}{name}" for name in deterministic(manifest) if backends()[name].on_device]


def rollout_names(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of all rollouts: the bare emulator, the players, and TorchRL's own; none without environment."""
    if not is_playable(manifest):
        return []
    return [EMULATOR, *players(manifest), TORCHRL]


def measure_rollout(policy: str, what: str, settings: params.Bench) -> float:
    """Return decisions per second of ``rollout_steps``, after ``warmup_queries``; the next call goes on from there."""
    roll_out = load_rollout(policy, what, settings.threads)
    roll_out(settings.warmup_queries)
    start = time.perf_counter()
    roll_out(settings.rollout_steps)
    return settings.rollout_steps / (time.perf_counter() - start)


@functools.cache
def load_rollout(policy: str, what: str, threads: int) -> Callable[[int], object]:
    """Return a function that plays a given number of decisions, episode after episode."""
    if what == TORCHRL:
        return torchrl_rollout(policy, threads)
    manifest = read_manifest(Path("models", policy))
    if what == EMULATOR:
        decisions = emulate(manifest)
    else:
        decisions = play_on(Player(runtimes.load_by_name(policy, what.removeprefix(PLAYER), threads), manifest))
    return lambda steps: collections.deque(itertools.islice(decisions, steps), maxlen=0)


def play_on(player: Player) -> Iterator[float]:
    """Return the rewards of episode after episode."""
    return (reward for seed in itertools.count() for reward, _ in play(player, seed))


def emulate(manifest: dict[str, Any]) -> Iterator[float]:
    """Play the bare environment with random actions, which is the limit for any player, and yield the rewards.

    Without an environment, copy as much as an observation holds instead.
    """
    random = np.random.default_rng(0)
    if not is_playable(manifest):
        blank = [np.zeros(spec["shape"][1:], spec["dtype"]) for spec in manifest["inputs"]]
        while True:
            yield float(sum(array.copy().nbytes for array in blank))
    masked = any("mask" in name for name in observation_names(manifest))
    actions: list[Action] = [episodes.random_action(manifest, random) for _ in range(RANDOM_ACTIONS)]
    cycle = itertools.cycle(actions)
    for seed in itertools.count():
        environment = make_environment(manifest, seed)
        while not environment.done:
            shown = environment.observations
            yield environment.step(episodes.random_action(manifest, random, shown) if masked else next(cycle))


def torchrl_rollout(policy: str, threads: int) -> Callable[[int], object]:
    """Return a function to run ``env.rollout`` for some steps with the trained policy, in its training environment."""
    import torch
    from torchrl.envs import Compose, InitTracker, TransformedEnv
    from torchrl.envs.utils import ExplorationType, set_exploration_type
    from torchrl.modules.utils import get_primers_from_module

    from policy_export.config.profile import load_profile
    from policy_export.program.policy import environment_of
    from policy_export.program.step import load_agent

    torch.set_num_threads(threads)
    profile = load_profile(policy)
    agent = load_agent(policy, profile)
    actor, env = agent.actor, environment_of(profile, agent, 1, seed=0)
    primers = get_primers_from_module(actor, warn=False)
    if primers is not None and "is_init" not in env.observation_spec.keys():  # else the environment has its own
        env = TransformedEnv(env, Compose(InitTracker(), primers), auto_unwrap=True)

    last = env.reset()

    def roll_out(steps: int) -> None:
        nonlocal last
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            played = env.rollout(steps, actor, tensordict=last, auto_reset=False, break_when_any_done=False)
            last = env.step_mdp(played[..., -1])

    return roll_out


def run_emulator(policy: str, starter: int) -> None:
    """Keep a core busy with the policy's environment, until the process with the id ``starter``, its parent, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # reaches it while it is paused, too
    if os.getppid() != starter:
        return
    decisions = emulate(read_manifest(Path("models", policy)))
    next(decisions)
    print(PLAYING, flush=True)
    collections.deque(decisions, maxlen=0)


if __name__ == "__main__":
    run_emulator(sys.argv[1], int(sys.argv[2]))
