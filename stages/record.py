"""Record on-policy episodes as seeds and actions: greedy ones, and ones with some random actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from play import Player, make_environment
from stages.common import episodes, params
from stages.common.env import environment_facts
from stages.common.episodes import Episode, hash_state, random_action
from stages.common.errors import run
from stages.common.policy import find_env
from stages.common.profile import load_profile
from stages.common.program import load_step
from stages.common.runtimes import wrap


def play_episode(player: Player, seed: int, epsilon: float) -> Episode:
    """One full episode; each action is replaced by a random one with probability ``epsilon``."""
    environment, random = make_environment(player.manifest, seed), np.random.default_rng(seed)
    actions, rewards, state_hashes = [], [], []
    player.reset()
    while not environment.done:
        action = player.act(environment.observation)
        if random.random() < epsilon:
            action = random_action(player.manifest, random)
        actions.append(action)
        rewards.append(environment.step(action))
        state_hashes.append(hash_state(environment))
    kind = np.int16 if isinstance(action, int) else np.float32
    return Episode(
        seed, epsilon, np.array(actions, kind), np.array(rewards, np.float32), np.array(state_hashes, np.uint64)
    )


def record(policy: str) -> None:
    profile, settings = load_profile(policy), params.load().record
    torch.set_num_threads(1)
    step = load_step(policy, profile)
    manifest = environment_facts(find_env(profile)) | step.signature.as_dict()
    player = Player(wrap(step), manifest)
    epsilons = [0.0] * settings.greedy_episodes + [settings.epsilon] * settings.epsilon_episodes
    recorded = []
    for seed, epsilon in enumerate(epsilons, start=settings.seed):
        episode = play_episode(player, seed, epsilon)
        recorded.append(episode)
        print(
            f"record {policy}  seed {seed}  epsilon {epsilon}  score {episode.rewards.sum():+g}  "
            f"steps {len(episode.actions)}",
            flush=True,
        )
    episodes.save(Path("data", policy, "episodes.safetensors"), policy, recorded)


if __name__ == "__main__":
    run(record, __doc__)
