"""Record on-policy episodes as seeds and actions: greedy ones, and ones with some random actions."""

from __future__ import annotations

from pathlib import Path

import torch

from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.env import environment_facts
from policy_export.environments.recording import play_episode
from policy_export.program.calls import wrap
from policy_export.program.policy import find_env
from policy_export.program.step import load_step
from policy_export.stage.command import run


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
