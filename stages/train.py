"""Train a policy: on-policy Q-learning with lambda returns, without replay and without target network.

The algorithm is PQN (Gallici et al., 2024, "Simplifying Deep Temporal Difference Learning"). While the network learns
from one rollout, a thread already collects the next one with the weights from before, so emulator and learner both
have work all the time; which weights act when is fixed, so timing does not change what is learned.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import math
import shutil
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.value.functional import vec_td_lambda_return_estimate

from stages.common import params
from stages.common.env import environment_facts, make_env
from stages.common.errors import run
from stages.common.files import replacing, write_json, write_text
from stages.common.params import Profile, Train
from stages.common.policy import Agent, EpsilonGreedy, make_agent, save_weights

CHECKPOINTS = Path(".checkpoints")
CHECKPOINT_SECONDS = 15.0
PROGRESS_SECONDS = 5.0
CURVE_POINTS = 100
EVAL_SEED = 2_000_000_000  # beyond every seed that training uses


Row = dict[str, float]


class Rollouts:
    """Consecutive rollouts of a vectorised environment.

    Args:
        env: transformed environment of batch size ``(num_envs,)``.
        actor: writes ``action_value`` and the greedy ``action``.
        explore: replaces some of the actions.
    """

    def __init__(self, env: EnvBase, actor: TensorDictSequential, explore: EpsilonGreedy) -> None:
        self.env, self.keys = env, actor.in_keys
        self.policy = TensorDictSequential(actor, explore)
        self.device = next(actor.parameters()).device
        self.entries = env.reset()
        self.scores = torch.zeros(env.batch_size)

    def decide(self, entries: TensorDictBase) -> TensorDictBase:
        return self.policy(entries.select(*self.keys).to(self.device))

    @torch.no_grad()
    def collect(self, steps: int) -> tuple[TensorDictBase, list[float]]:
        """``steps`` steps of every environment, and the scores of the episodes that ended.

        Returns:
            entries ``(num_envs, steps)``: the actor's inputs, ``action``, and, each ``(num_envs, steps, 1)``,
            ``reward``, ``done``, ``terminated`` and ``next_value``, the greedy value of where the step led to.
        """
        rows, finished = [], []
        with set_exploration_type(ExplorationType.RANDOM):
            decision = self.decide(self.entries)
            for _ in range(steps):
                row = decision.select(*self.keys, "action")
                stepped, self.entries = self.env.step_and_maybe_reset(self.entries.set("action", row["action"].cpu()))
                outcome = stepped["next"]
                done = outcome["done"][:, 0]
                self.scores += outcome["reward"][:, 0]
                finished += self.scores[done].tolist()
                self.scores[done] = 0
                decision = self.decide(self.entries)
                value = greedy_value(decision)
                if outcome["truncated"].any():  # the entries are a new episode's; what counts is where the old one was
                    value = torch.where(outcome["truncated"].to(self.device), greedy_value(self.decide(outcome)), value)
                row.update(outcome.select("reward", "done", "terminated").to(self.device)).set("next_value", value)
                rows.append(row)
        return torch.stack(rows, 1), finished


def greedy_value(entries: TensorDictBase) -> torch.Tensor:
    """``(*batch, 1)`` float32."""
    return entries["action_value"].amax(-1, keepdim=True)


def discount(train: Train, steps: int) -> float:
    """The discount after ``steps`` of the training: its horizon, ``1 / (1 - gamma)`` steps, grows linearly.

    What is near is learned first, and sooner than with the long horizon from the start (François-Lavet et al., 2015,
    "How to Discount Deep Reinforcement Learning").
    """
    start, end = 1 / (1 - train.gamma_start), 1 / (1 - train.gamma)
    return 1 - 1 / (start + (end - start) * min(1.0, steps / train.total_steps))


class Learner:
    """The network, its optimiser, and how a rollout changes them."""

    def __init__(self, actor: TensorDictSequential, train: Train) -> None:
        self.actor, self.train = actor, train
        self.optimizer = torch.optim.RAdam(actor.parameters(), lr=train.learning_rate, foreach=True)
        self.generator = torch.Generator().manual_seed(train.seed)  # of its own: the collecting thread draws too

    def update(self, rollout: TensorDictBase, steps: int) -> float:
        """Learn from one rollout, collected up to ``steps`` of the training; returns the mean loss."""
        train = self.train
        done, terminated = rollout["done"], rollout["terminated"]
        if train.return_ends_at_reward:
            scored = rollout["reward"] != 0
            done, terminated = done | scored, terminated | scored
        gamma = discount(train, steps)
        target = vec_td_lambda_return_estimate(
            gamma, train.lambda_, rollout["next_value"], rollout["reward"], done, terminated
        )
        samples = rollout.select(*self.actor.in_keys, "action").set("target", target).flatten()
        for group in self.optimizer.param_groups:
            group["lr"] = train.learning_rate * max(0.0, 1 - steps / train.total_steps)
        losses = []
        for _ in range(train.epochs):
            order = torch.randperm(len(samples), generator=self.generator)
            for indices in order.split(train.minibatch_size):
                sample = samples[indices.to(samples["target"].device)]
                value = self.actor(sample.select(*self.actor.in_keys))["action_value"]
                chosen = value.gather(-1, sample["action"].unsqueeze(-1))
                loss = 0.5 * nn.functional.mse_loss(chosen, sample["target"])
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.actor.parameters(), train.max_grad_norm)
                self.optimizer.step()
                losses.append(loss.detach())
        return float(torch.stack(losses).mean())


class Checkpoint:
    """Where an interrupted training goes on, kept outside of the pipeline's outputs.

    The folder is named by a hash of the parameters and of the source of every module of this project that training
    runs, so that a checkpoint is never taken up by another training.
    """

    def __init__(self, policy: str, profile: Profile) -> None:
        sha = hashlib.sha256(profile.model_dump_json().encode())
        for name in sorted(name for name in sys.modules if name.startswith("stages") or name == "__main__"):
            if source := getattr(sys.modules[name], "__file__", None):
                sha.update(Path(source).read_bytes())
        self.folder = CHECKPOINTS / f"{policy}-{sha.hexdigest()[:16]}"
        self.path = self.folder / "checkpoint.pt"

    def save(self, state: dict[str, Any]) -> None:
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def load(self) -> dict[str, Any] | None:
        """The state, or nothing where there is none or where it cannot be read."""
        try:
            return torch.load(self.path, weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch.load raises many kinds for a damaged file; starting anew is always right
            print(f"train: {self.path} is damaged and ignored ({type(error).__name__})", flush=True)
            return None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Progress:
    """One line every few seconds: steps, speed, return and the time that is left."""

    def __init__(self, policy: str, steps: int, total_steps: int) -> None:
        self.policy, self.start_steps, self.total_steps = policy, steps, total_steps
        self.start = self.printed = time.monotonic()

    def report(self, row: Row) -> None:
        now, steps = time.monotonic(), round(row["steps"])
        if now - self.printed < PROGRESS_SECONDS and steps < self.total_steps:
            return
        self.printed = now
        speed = (steps - self.start_steps) / (now - self.start)
        left = timedelta(seconds=round(max(0, self.total_steps - steps) / speed))
        print(
            f"train {self.policy}  {steps:>9,}/{self.total_steps:,} steps  {speed:,.0f} steps/s  "
            f"return {row['return']:+.2f}  epsilon {row['epsilon']:.3f}  loss {row['loss']:.4f}  ETA {left}",
            flush=True,
        )


def learn(policy: str, profile: Profile, agent: Agent, checkpoint: Checkpoint) -> tuple[int, list[Row]]:
    """Train the agent's network in place, from the checkpoint if there is one; returns steps and learning curve."""
    train = profile.train
    device = next(agent.network.parameters()).device
    learner = Learner(agent.actor, train)
    acting = copy.deepcopy(agent.actor)
    updates_to_anneal = max(1, train.epsilon_steps // (train.num_envs * train.rollout_steps))
    explore = EpsilonGreedy(agent.num_actions, train.epsilon_start, profile.policy.epsilon, updates_to_anneal)
    explore.to(device)
    steps, curve, scores = 0, [], deque[float](maxlen=30)
    if (saved := checkpoint.load()) is not None:
        agent.network.load_state_dict(saved["network"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        explore.load_state_dict(saved["explore"])
        steps, curve = saved["steps"], saved["curve"]
        scores.extend(saved["scores"])
        print(f"train {policy}  resumes at {steps:,} steps", flush=True)
    if steps >= train.total_steps:
        return steps, curve

    env = make_env(profile.env, profile.preprocess, train.num_envs, seed=train.seed * 1_000_000 + steps % 900_000)
    rollouts = Rollouts(env, acting, explore)
    progress, saved_at = Progress(policy, steps, train.total_steps), time.monotonic()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        acting.load_state_dict(agent.actor.state_dict())
        collecting = executor.submit(rollouts.collect, train.rollout_steps)
        while steps < train.total_steps:
            rollout, finished = collecting.result()
            scores.extend(finished)
            steps += rollout.numel()
            explore.step()
            acting.load_state_dict(agent.actor.state_dict())
            if steps < train.total_steps:
                collecting = executor.submit(rollouts.collect, train.rollout_steps)
            loss = learner.update(rollout, steps)
            score = sum(scores) / len(scores) if scores else math.nan
            row = {"steps": steps, "return": score, "epsilon": float(explore.eps), "loss": loss}
            if scores and steps * CURVE_POINTS // train.total_steps > len(curve):
                curve.append(row)
            progress.report(row)
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS or steps >= train.total_steps:
                saved_at = time.monotonic()
                state = {"steps": steps, "curve": curve, "scores": list(scores)}
                state |= {"network": agent.network.state_dict(), "explore": explore.state_dict()}
                checkpoint.save(state | {"optimizer": learner.optimizer.state_dict()})
    return steps, curve


@torch.no_grad()
def evaluate(profile: Profile, agent: Agent) -> dict[str, float]:
    """Greedy scores of full episodes, one in each of as many environments, all with different seeds."""
    episodes = profile.train.eval_episodes
    env = make_env(profile.env, profile.preprocess, episodes, EVAL_SEED)
    device = next(agent.network.parameters()).device
    entries = env.reset()
    scores, playing, steps = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool), 0
    while playing.any():
        action = agent.actor(entries.select(*agent.actor.in_keys).to(device))["action"]
        stepped, entries = env.step_and_maybe_reset(entries.set("action", action.cpu()))
        scores += stepped["next", "reward"][:, 0] * playing
        steps += int(playing.sum())
        playing &= ~stepped["next", "done"][:, 0]
    return {
        "mean_score": float(scores.mean()),
        "std_score": float(scores.std(correction=0)),
        "min_score": float(scores.min()),
        "episodes": episodes,
        "steps": steps,
    }


def train(policy: str) -> None:
    profile = params.load().profile(policy)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # the emulators and the collecting thread fill the other cores
    torch.manual_seed(profile.train.seed)
    agent = make_agent(profile, num_actions=len(environment_facts(profile.env)["actions"]))
    agent.network.to(device)
    checkpoint = Checkpoint(policy, profile)
    steps, curve = learn(policy, profile, agent, checkpoint)
    evaluation = evaluate(profile, agent)
    print(f"train {policy}  greedy score {evaluation['mean_score']:+.2f} over {evaluation['episodes']} episodes")

    save_weights(Path("models", policy, "policy.safetensors"), policy, agent.network)
    table = io.StringIO()
    writer = csv.DictWriter(table, ["steps", "return", "epsilon", "loss"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    write_text(Path("results", policy, "learning_curve.csv"), table.getvalue())
    write_json(Path("results", policy, "train.json"), {"evaluation": evaluation, "env_steps": steps})
    checkpoint.remove()


if __name__ == "__main__":
    run(train, __doc__)
