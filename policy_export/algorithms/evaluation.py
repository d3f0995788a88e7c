"""How well a policy plays without exploration."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait

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
from policy_export.stage.processes import Reports, make_reports, processes, report
from policy_export.stage.progress import Progress

EVAL_SEED = 2_000_000_000  # beyond every seed that training uses
POLL_SECONDS = 0.5  # between looks at how many episodes have ended in other processes

Ended = Callable[[int], None]  # is told, at every step, how many episodes have ended
Played = tuple[list[float], int]  # the episodes' scores, and the steps of all


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
    shown = _Shown(policy, wanted)
    if len(parts) == 1:
        found = [play(profile, agent, parts[0], shown.add)]
    else:
        reports = make_reports()
        with processes(len(parts), reports=reports) as executor:
            given = as_arrays(agent.actor.state_dict()), as_arrays(agent.statistics)
            playing = [executor.submit(_play, policy, profile, part, *given) for part in parts]
            shown.follow(playing, reports)
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


class _Shown:
    """The number of episodes that have ended, as it is shown."""

    def __init__(self, policy: str, wanted: int) -> None:
        self.progress, self.ended = Progress(f"train {policy}  evaluating", wanted, "episodes"), 0

    def add(self, ended: int) -> None:
        self.ended += ended
        self.progress.show(self.ended)

    def follow(self, playing: list[Future[Played]], reports: Reports) -> None:
        """Show what other processes report, until they have played, or one has failed."""
        while True:
            done, going_on = wait(playing, POLL_SECONDS, FIRST_EXCEPTION)
            self.add(0)
            while not reports.empty():
                self.add(reports.get())
            if not going_on or any(each.exception() for each in done):
                return


def _report(ended: int) -> None:
    if ended:
        report(ended)


def _play(policy: str, profile: Profile, episodes: range, weights: Arrays, measured: Arrays) -> Played:
    torch.set_num_threads(1)
    with in_one_line(policy, "train"):
        agent = make_agent(policy, profile)
        agent.actor.load_state_dict(as_tensors(weights))
        agent.statistics.update(as_tensors(measured))
        return play(profile, agent, episodes, _report)


@torch.no_grad()
def play(profile: Profile, agent: Agent, episodes: range, tell: Ended) -> Played:
    """Play episodes, by their numbers, and tell of each that has ended."""
    agent.actor.eval()
    scores, steps = list[float](), 0
    while len(scores) < len(episodes):
        env = environment_of(profile, agent, len(episodes), EVAL_SEED + episodes[len(scores)])
        played, taken = play_round(env, agent, getattr(profile.env, "max_episode_steps", None), tell)
        scores += played
        steps += taken
    return scores[: len(episodes)], steps


def play_round(env: EnvBase, agent: Agent, limit: int | None, tell: Ended) -> Played:
    """Play one episode in every row of an environment, and tell of each that has ended.

    Raises:
        ProfileError: an episode does not end.
    """
    rows = env.batch_size.numel()
    scores, playing, steps, taken = torch.zeros(rows), torch.ones(rows, dtype=torch.bool), 0, 0
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        driver = Driver(env, agent.actor, ExplorationType.DETERMINISTIC, agent.given)
        while playing.any():
            outcome, _ = driver.act(driver.decide(driver.entries, driver.memory))
            scores += total_reward(outcome, env.reward_keys).reshape(rows).cpu() * playing
            steps += int(playing.sum())
            taken += 1
            ended = playing & (episode_ended(outcome, env.done_keys).reshape(rows).cpu() | (taken == limit))
            playing &= ~ended
            tell(int(ended.sum()))
            if taken == MOST_STEPS and playing.any():
                raise ProfileError(f"env: an episode has not ended after {MOST_STEPS:,} steps: give max_episode_steps")
    return scores.tolist(), steps
