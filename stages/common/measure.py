"""Measure one thing in a process of its own: ``python -m stages.common.measure <policy> <what>``; prints JSON.

What can be measured is a program's latency from raw observation to action (``eager``, ``pt2``, ``aoti``, ``onnx``) and
the decisions a second of a rollout (``emulator``, ``player``, ``torchrl``). PyTorch is imported only where it is
measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from play import Action, Player, make_environment, play, read_manifest
from stages.common import episodes, params, runtimes

LATENCIES = ("eager", *runtimes.PROGRAMS)
RANDOM_ACTIONS = 10_000  # drawn before the measurement
ROLLOUTS = ("emulator", "player", "torchrl")


def load(policy: str, program: str, threads: int) -> runtimes.Run:
    """A program, or the trained policy itself as eager PyTorch."""
    if program != "eager":
        return runtimes.load(Path("models", policy, runtimes.PROGRAMS[program]), threads)
    import torch

    from stages.common.profile import load_profile
    from stages.common.program import load_step

    torch.set_num_threads(threads)
    return runtimes.wrap(load_step(policy, load_profile(policy)))


def measure_latency(policy: str, program: str, manifest: dict[str, Any], settings: params.Bench) -> dict[str, float]:
    """Milliseconds to load, and percentiles in microseconds from raw observation to action, one at a time.

    The observations are those of the first recorded episode, again and again if it is shorter; the first
    ``warmup_steps`` decisions are not counted.
    """
    episode = episodes.load(Path("data", policy, "episodes.safetensors"), policy)[0]
    steps = settings.warmup_steps + settings.steps
    replayed = episodes.replay(episode, make_environment(manifest, episode.seed))
    observations = list(itertools.islice(replayed, steps))
    start = time.perf_counter()
    player = Player(load(policy, program, settings.threads), manifest)
    loaded = time.perf_counter() - start
    times = []
    for observation in itertools.islice(itertools.cycle(observations), steps):
        start = time.perf_counter()
        player.act(observation)
        times.append(time.perf_counter() - start)
    p50, p90, p99 = np.percentile(times[settings.warmup_steps :], [50, 90, 99]) * 1e6
    return {"load_ms": loaded * 1e3, "p50_us": p50, "p90_us": p90, "p99_us": p99}


def measure_rollout(policy: str, what: str, manifest: dict[str, Any], settings: params.Bench) -> dict[str, float]:
    """Decisions a second, ``rollout_steps`` of them after ``warmup_steps``, episode after episode."""
    warmup, steps = settings.warmup_steps, settings.rollout_steps
    if what == "torchrl":
        return {"decisions_per_s": torchrl_speed(policy, warmup, steps, settings.threads)}
    if what == "player":
        player = Player(load(policy, "onnx", settings.threads), manifest)
        decisions: Iterator[float] = (reward for seed in itertools.count() for reward, _ in play(player, seed))
    else:
        decisions = emulate(manifest)
    for _ in itertools.islice(decisions, warmup):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(decisions, steps):
        pass
    return {"decisions_per_s": steps / (time.perf_counter() - start)}


def emulate(manifest: dict[str, Any]) -> Iterator[float]:
    """The bare environment with random actions: the most that any player could reach."""
    random = np.random.default_rng(0)
    actions: list[Action] = [episodes.random_action(manifest, random) for _ in range(RANDOM_ACTIONS)]
    cycle = itertools.cycle(actions)
    for seed in itertools.count():
        environment = make_environment(manifest, seed)
        while not environment.done:
            yield environment.step(next(cycle))


def torchrl_speed(policy: str, warmup: int, steps: int, threads: int) -> float:
    """``env.rollout`` with the trained policy, in the environment that it was trained in."""
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
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        env.rollout(warmup, actor, break_when_any_done=False)
        start = time.perf_counter()
        env.rollout(steps, actor, break_when_any_done=False)
        return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("policy")
    parser.add_argument("what", choices=(*LATENCIES, *ROLLOUTS))
    arguments = parser.parse_args()
    measure = measure_latency if arguments.what in LATENCIES else measure_rollout
    manifest = read_manifest(Path("models", arguments.policy))
    print(json.dumps(measure(arguments.policy, arguments.what, manifest, params.load().bench)))


if __name__ == "__main__":
    main()
