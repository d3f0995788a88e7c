"""Train a policy with the algorithm that its profile names, and measure how well it plays.

While the network learns from one rollout, a thread already collects the next one with the previous weights, so the
emulator and the learner are both busy all the time. It is fixed which weights act at which step, so timing does not
change what is learned.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import importlib
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from policy_export.algorithms.rollouts import Rollouts
from policy_export.config.errors import ProfileError
from policy_export.config.profile import BESIDE, Profile, RecordedEnv, load_profile, named_files, named_modules
from policy_export.config.training import Untrained
from policy_export.device.errors import UserError
from policy_export.device.torchrl_env import episode_ended, total_reward
from policy_export.environments.recording import MOST_STEPS
from policy_export.environments.transforms import freeze, statistics, transforms_of, unfreeze
from policy_export.program.copies import copied
from policy_export.program.driver import Driver
from policy_export.program.failures import in_one_line
from policy_export.program.policy import Agent, environment_of, make_agent
from policy_export.program.weights import save_weights
from policy_export.stage.files import in_memory, replacing, write_json, write_table
from policy_export.stage.sources import hash_files, needed_files
from policy_export.stage.stopping import Stopped

CHECKPOINTS = Path(".checkpoints")
CHECKPOINT_SECONDS = 15.0
PROGRESS_SECONDS = 5.0
LINE = "{desc}  {n_fmt}/{total_fmt} steps  {rate_noinv_fmt}{postfix}  ETA {remaining}"
CURVE_POINTS = 100
EVAL_SEED = 2_000_000_000  # beyond every seed that training uses


Row = dict[str, float]


class Checkpoint:
    """The state from which an interrupted training continues, kept outside the pipeline's outputs.

    The folder's name has a hash of the parameters, of what the modules of this project do that training runs (including
    the policy's own), and of the files that the policy's factory is given, so that another training never uses the
    checkpoint.
    """

    resumed: Sequence[int] = ()  # steps at which the training went on, after it had been interrupted
    reached: dict[str, Any] | None = None  # the state after the last rollout

    def __init__(self, policy: str, profile: Profile) -> None:
        algorithm = profile.train.algorithm
        modules = [__name__, *(f"policy_export.{room}.{algorithm}" for room in ("algorithms", "config.training"))]
        hashes = hash_files(needed_files([*modules, *named_modules(profile)]) | named_files(profile))
        content = profile.model_dump_json(exclude=BESIDE) + json.dumps(hashes)
        self.folder = CHECKPOINTS / f"{policy}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        self.path = self.folder / "checkpoint.pt"

    def save(self, state: dict[str, Any]) -> None:
        with replacing(self.path) as temporary, in_memory(temporary) as content:
            torch.save(state, content)

    @contextmanager
    def saved_where_stopped(self) -> Iterator[None]:
        """Save the state that was reached, if the stage is stopped inside."""
        try:
            yield
        except Stopped:
            if self.reached is not None:
                self.save(self.reached)
            raise

    def load(self) -> dict[str, Any] | None:
        """Return the state; none if there is none or it cannot be read."""
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch.load raises many kinds for a damaged file; starting anew is always right
            print(f"train: {self.path} is damaged and ignored ({type(error).__name__})", flush=True)
            return None
        self.resumed = [*state.get("resumed", []), state["steps"]]
        return state

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def alone(policy: str) -> Iterator[None]:
    """Train inside, and no other process the same policy.

    Raises:
        UserError: another trains it already.
    """
    path = CHECKPOINTS / f"{policy}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends, however it does
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"train: {policy} is being trained already, by the process {file.read()}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


class Progress:
    """A progress bar in a terminal; elsewhere a line every few seconds: steps, speed, return and the time left."""

    def __init__(self, policy: str, steps: int, total_steps: int) -> None:
        self.total_steps, terminal = total_steps, sys.stdout.isatty()
        self.bar = tqdm(
            desc=f"train {policy}",
            initial=steps,
            total=total_steps,
            unit=" steps",
            unit_scale=True,
            file=sys.stdout if terminal else _Lines(sys.stdout),
            mininterval=0.1 if terminal else PROGRESS_SECONDS,
            maxinterval=math.inf,
            miniters=0,
            dynamic_ncols=terminal,
            bar_format=None if terminal else LINE,
        )

    def report(self, row: Row) -> None:
        """Report a rollout; ``row`` has ``steps``, ``return`` and ``loss``."""
        self.bar.set_postfix_str(f"return {row['return']:+.2f}  loss {row['loss']:.4f}", refresh=False)
        self.bar.update(round(row["steps"]) - self.bar.n)
        if row["steps"] >= self.total_steps:
            self.bar.close()


class _Lines:
    """A stream that writes each state of a bar as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def learn(
    policy: str, profile: Profile, agent: Agent, make_learner: Callable[..., Any], checkpoint: Checkpoint
) -> tuple[int, list[Row]]:
    """Train the agent's actor in place, from the checkpoint if there is one; return steps and learning curve.

    A training that is stopped leaves a checkpoint of its last rollout.
    """
    train = profile.train
    assert not isinstance(train, Untrained)
    steps, curve, scores = 0, [], deque[float](maxlen=30)
    seed = train.seed * 1_000_000
    env = environment_of(profile, agent, train.num_envs, seed)
    unfreeze(transforms_of(env))
    learner = make_learner(agent.actor, train, env.observation_spec[0])
    acting = copied(learner.behaviour)
    if (saved := checkpoint.load()) is not None:
        learner.behaviour.load_state_dict(saved["behaviour"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        freeze(transforms_of(env), saved["statistics"])
        unfreeze(transforms_of(env))
        steps, curve = saved["steps"], saved["curve"]
        scores.extend(saved["scores"])
        env.set_seed(seed + steps % 900_000)
        print(f"train {policy}  resumes at {steps:,} steps", flush=True)
    if steps >= train.total_steps:  # it was interrupted while it was evaluated
        explore_as_at_the_end(learner, agent, steps)
        agent.statistics.update(statistics(transforms_of(env)))
        return steps, curve

    rollouts = Rollouts(env, acting, learner.keep, learner.value)
    progress, saved_at = Progress(policy, steps, train.total_steps), time.monotonic()

    def state() -> dict[str, Any]:
        told = {"steps": steps, "curve": list(curve), "scores": list(scores), "resumed": list(checkpoint.resumed)}
        learned = {"behaviour": learner.behaviour.state_dict(), "optimizer": learner.optimizer.state_dict()}
        return told | copy.deepcopy(learned | {"statistics": statistics(transforms_of(env))})

    def collect() -> Future[tuple[TensorDictBase, list[float]]]:
        acting.load_state_dict(learner.behaviour.state_dict())
        if learner.exploration is not None:
            learner.exploration.apply(acting, steps)
        return executor.submit(rollouts.collect, train.rollout_steps)

    # One mode for the whole process, so neither thread may change it while the other runs.
    with (
        set_exploration_type(ExplorationType.RANDOM),
        ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as executor,
        checkpoint.saved_where_stopped(),
    ):
        collecting = collect()
        while steps < train.total_steps:
            rollout, finished = collecting.result()
            scores.extend(finished)
            steps += rollout.numel()
            if steps < train.total_steps:
                collecting = collect()
            loss = learner.update(rollout, steps)
            score = sum(scores) / len(scores) if scores else math.nan
            row = {"steps": steps, "return": score, "loss": loss}
            if scores and steps * CURVE_POINTS // train.total_steps > len(curve):
                curve.append(row)
            progress.report(row)
            checkpoint.reached = state()
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS or steps >= train.total_steps:
                saved_at = time.monotonic()
                checkpoint.save(checkpoint.reached)
    explore_as_at_the_end(learner, agent, steps)
    agent.statistics.update(statistics(transforms_of(env)))
    return steps, curve


def explore_as_at_the_end(learner: Any, agent: Agent, steps: int) -> None:
    """Set the policy's exploration, which its weights may contain, to that of the end of its training."""
    if learner.exploration is not None:
        learner.exploration.apply(agent.actor, steps)


@torch.no_grad()
def evaluate(profile: Profile, agent: Agent) -> dict[str, float] | None:
    """Return scores of full episodes without exploration, each with its own seed; none without an environment.

    The score of an episode of several agents is the sum of theirs. An environment of a factory's that has a batch plays
    several rounds.

    Raises:
        ProfileError: an episode does not end, or its score is no number.
    """
    if isinstance(profile.env, RecordedEnv):
        return None
    agent.actor.eval()
    wanted, scores, steps = profile.train.eval_episodes, list[float](), 0
    while len(scores) < wanted:
        env = environment_of(profile, agent, wanted, EVAL_SEED + len(scores))
        played, taken = play_round(env, agent, getattr(profile.env, "max_episode_steps", None))
        scores += played
        steps += taken
    final = torch.tensor(scores[:wanted])
    if not final.isfinite().all():
        raise ProfileError(f"env: the score of an episode is {float(final[~final.isfinite()][0])}, must be a number")
    return {
        "mean_score": float(final.mean()),
        "std_score": float(final.std(correction=0)),
        "min_score": float(final.min()),
        "episodes": wanted,
        "steps": steps,
    }


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


def choose_device(wanted: str) -> torch.device:
    """Return the device to train on; ``auto`` is a GPU where PyTorch has one.

    Raises:
        ProfileError: a GPU is asked for and PyTorch has none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ProfileError("train.device: 'cuda': PyTorch finds no GPU here; use cpu or auto")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def describe_device(device: torch.device) -> str:
    """Return a device's name: ``cpu``, or what the GPU's driver calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def train(policy: str) -> None:
    """Train a policy, and write its weights, its learning curve and its scores."""
    profile = load_profile(policy)
    device = choose_device(profile.train.device)
    torch.set_num_threads(1)  # the emulators and the collecting thread fill the other cores
    learns = not isinstance(profile.train, Untrained)
    algorithm = importlib.import_module(f"policy_export.algorithms.{profile.train.algorithm}") if learns else None
    torch.manual_seed(profile.train.seed)  # after the imports, which may draw random numbers
    with alone(policy):
        with in_one_line(policy, "train"):
            agent = make_agent(policy, profile)
            agent.actor.to(device)
            checkpoint = Checkpoint(policy, profile)
            steps, curve = learn(policy, profile, agent, algorithm.Learner, checkpoint) if algorithm else (0, [])
            evaluation = evaluate(profile, agent)
        if evaluation is not None:
            score, episodes = evaluation["mean_score"], evaluation["episodes"]
            print(f"train {policy}  greedy score {score:+.2f} over {episodes} episodes")

        save_weights(Path("models", policy, "policy.safetensors"), policy, agent.actor, agent.statistics)
        write_table(Path("results", policy, "learning_curve.csv"), ["steps", "return", "loss"], curve)
        report: dict[str, Any] = {"evaluation": evaluation, "env_steps": steps, "device": describe_device(device)}
        if resumed := [place for place in checkpoint.resumed if place < steps]:  # in other episodes than it had begun
            report["resumed_at"] = resumed
        write_json(Path("results", policy, "train.json"), report)
        checkpoint.remove()
