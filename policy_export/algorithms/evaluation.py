"""How well a policy plays without exploration."""

from __future__ import annotations

import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policy_export.algorithms.collectors import Arrays, as_arrays, as_tensors, shares
from policy_export.config.errors import ProfileError
from policy_export.config.profile import Profile, RecordedEnv
from policy_export.device.torchrl_env import episode_ended, total_reward
from policy_export.environments.recording import MOST_STEPS
from policy_export.program.driver import Driver
from policy_export.program.failures import in_one_line
from policy_export.program.policy import Agent, environment_of, make_agent
from policy_export.stage.processes import processes

EVAL_SEED = 2_000_000_000  # beyond every seed that training uses


def evaluate(policy: str, profile: Profile, agent: Agent) -> dict[str, float] | None:
    """Return scores of full episodes without exploration, each with its own seed; none without an environment.

    The score of an episode of several agents is the sum of theirs. An environment of a factory's that has a batch plays
    several rounds.

    Raises:
        ProfileError: an episode does not end, or its score is no number.
    """
    if isinstance(profile.env, RecordedEnv):
        return None
    wanted = profile.train.eval_episodes
    parts = shares(wanted, getattr(profile.train, "collectors", 1))
    if len(parts) == 1:
        found = [play(profile, agent, parts[0])]
    else:
        with processes(len(parts)) as executor:
            given = as_arrays(agent.actor.state_dict()), as_arrays(agent.statistics)
            playing = [executor.submit(_play, policy, profile, part, *given) for part in parts]
            found = [each.result() for each in playing]
    scores, steps = [score for played, _ in found for score in played], sum(taken for _, taken in found)
    final = torch.tensor(scores)
    if not final.isfinite().all():
        raise ProfileError(f"env: the score of an episode is {float(final[~final.isfinite()][0])}, must be a number")
    return {
        "mean_score": float(final.mean()),
        "std_score": float(final.std(correction=0)),
        "min_score": float(final.min()),
        "episodes": wanted,
        "steps": steps,
    }


def _play(policy: str, profile: Profile, episodes: range, weights: Arrays, measured: Arrays) -> tuple[list[float], int]:
    torch.set_num_threads(1)
    with in_one_line(policy, "train"):
        agent = make_agent(policy, profile)
        agent.actor.load_state_dict(as_tensors(weights))
        agent.statistics.update(as_tensors(measured))
        return play(profile, agent, episodes)


@torch.no_grad()
def play(profile: Profile, agent: Agent, episodes: range) -> tuple[list[float], int]:
    """Play episodes, by their numbers; return their scores, and the steps of all."""
    agent.actor.eval()
    scores, steps = list[float](), 0
    while len(scores) < len(episodes):
        env = environment_of(profile, agent, len(episodes), EVAL_SEED + episodes[len(scores)])
        played, taken = play_round(env, agent, getattr(profile.env, "max_episode_steps", None))
        scores += played
        steps += taken
    return scores[: len(episodes)], steps


def play_round(env: EnvBase, agent: Agent, limit: int | None) -> tuple[list[float], int]:
    """Play one episode in every row of an environment; return the scores, and the steps of all.

    Raises:
        ProfileError: an episode does not end.
    """
    rows = env.batch_size.numel()
    scores, playing, steps, taken = torch.zeros(rows), torch.ones(rows, dtype=torch.bool), 0, 0
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        driver = Driver(env, agent.actor, ExplorationType.DETERMINISTIC, agent.given)
        while playing.any() and taken != limit:
            outcome, _ = driver.act(driver.decide(driver.entries, driver.memory))
            scores += total_reward(outcome, env.reward_keys).reshape(rows).cpu() * playing
            steps += int(playing.sum())
            playing &= ~episode_ended(outcome, env.done_keys).reshape(rows).cpu()
            taken += 1
            if taken == MOST_STEPS:
                raise ProfileError(f"env: an episode has not ended after {MOST_STEPS:,} steps: give max_episode_steps")
    return scores.tolist(), steps
