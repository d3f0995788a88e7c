"""Record on-policy episodes as seeds and actions: greedy ones, and ones with some random actions."""

from __future__ import annotations

from pathlib import Path

import torch

from policy_export.config import params
from policy_export.config.errors import under
from policy_export.config.profile import RecordedEnv, env_key, load_profile
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.env import environment_facts
from policy_export.environments.recording import record_episodes, recorded_episodes
from policy_export.program.calls import wrap
from policy_export.program.failures import in_one_line
from policy_export.program.policy import find_env
from policy_export.program.step import load_step
from policy_export.stage.command import run


def record(policy: str) -> None:
    profile, settings = load_profile(policy), params.load()
    if isinstance(profile.env, RecordedEnv):
        recorded = list(recorded_episodes(profile.env))
    else:
        torch.set_num_threads(1)
        step = load_step(policy, profile)
        manifest = environment_facts(find_env(profile)) | step.signature.as_dict()
        player = Player(wrap(step), manifest)
        with under(env_key(profile.env)), in_one_line(policy, "record"):
            recorded = record_episodes(player, settings.record, settings.parity_check.min_observations)
    for episode in recorded:
        print(
            f"record {policy}  seed {episode.seed}  epsilon {episode.epsilon}  score {episode.rewards.sum():+g}  "
            f"steps {len(episode)}",
            flush=True,
        )
    episodes.save(Path("data", policy, "episodes.safetensors"), policy, recorded)


if __name__ == "__main__":
    run(record, __doc__)
