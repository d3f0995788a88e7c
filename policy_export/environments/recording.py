"""Recording of a player's episodes."""

from __future__ import annotations

import numpy as np

from policy_export.device.environments import make_environment
from policy_export.device.player import Player
from policy_export.environments.episodes import Episode, hash_state, random_action


def play_episode(player: Player, seed: int, epsilon: float) -> Episode:
    """Play one full episode; each action is replaced by a random one with probability ``epsilon``."""
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
