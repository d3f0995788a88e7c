"""Train a policy with the algorithm that its profile names, and measure how well it plays.

While the network learns from one rollout, other processes already collect the next one with the previous weights.
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
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from policy_export.algorithms.collectors import collectors
from policy_export.algorithms.evaluation import evaluate
from policy_export.config.errors import ProfileError
from policy_export.config.profile import BESIDE, Profile, load_profile, named_files, named_modules
from policy_export.config.training import Untrained
from policy_export.device.errors import UserError
from policy_export.program.failures import in_one_line
from policy_export.program.policy import Agent, environment_of, make_agent
from policy_export.program.weights import save_weights
from policy_export.stage.files import in_memory, replacing, write_json, write_table
from policy_export.stage.progress import Progress, or_dash
from policy_export.stage.sources import hash_files, needed_files
from policy_export.stage.stopping import Stopped

CHECKPOINTS = Path(".checkpoints")
CHECKPOINT_SECONDS = 15.0
CURVE_POINTS = 100


Row = dict[str, float | None]  # of the learning curve: none where a number is not known yet


class Checkpoint:
    """The state from which an interrupted training continues, kept outside the pipeline's outputs.

    The folder's name has a hash of the parameters, of what the modules of this project do that training runs (including
    the policy's own), and of the files that the policy's factory is given, so that another training never uses the
    checkpoint.
    """

    resumed: Sequence[int] = ()  # steps at which the training went on otherwise than without an interruption
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
        self.resumed = [*state.get("resumed", []), *([] if state.get("states") else [state["steps"]])]
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


def learn(
    policy: str, profile: Profile, agent: Agent, make_learner: Callable[..., Any], checkpoint: Checkpoint
) -> tuple[int, list[Row]]:
    """Train the agent's actor in place, from the checkpoint if there is one; return steps and learning curve.

    A training that is stopped leaves a checkpoint of its last rollout.
    """
    train = profile.train
    assert not isinstance(train, Untrained)
    steps, curve, scores = 0, [], deque[float](maxlen=30)
    seed, measured, states = train.seed * 1_000_000, {}, []
    learner = make_learner(agent.actor, train, environment_of(profile, agent, 1, seed).observation_spec[0])
    weights = learner.behaviour.state_dict()
    if (saved := checkpoint.load()) is not None:
        learner.behaviour.load_state_dict(saved["behaviour"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        learner.generator.set_state(saved["generator"])
        weights, measured, states = saved["weights"], saved["statistics"], saved["states"]
        steps, curve = saved["steps"], saved["curve"]
        scores.extend(saved["scores"])
        seed += 0 if states else steps % 900_000
        print(f"train {policy}  resumes at {steps:,} steps", flush=True)
    if steps < train.total_steps:  # else it was interrupted while it was evaluated
        progress = Progress(f"train {policy}", train.total_steps, "steps", steps)
        saved_at = time.monotonic()
        with collectors(policy, profile, seed, measured, states) as collecting, checkpoint.saved_where_stopped():
            collecting.begin(weights, steps)
            while steps < train.total_steps:
                rollout, finished, measured, states = collecting.result()
                scores.extend(finished)
                steps += rollout.numel()
                if steps < train.total_steps:
                    weights = copy.deepcopy(learner.behaviour.state_dict())
                    collecting.begin(weights, steps)
                loss = learner.update(rollout.to(next(agent.actor.parameters()).device), steps)
                score = sum(scores) / len(scores) if scores else None
                check_finite(steps, score, loss)
                row: Row = {"steps": steps, "return": score, "loss": loss}
                if scores and steps * CURVE_POINTS // train.total_steps > len(curve):
                    curve.append(row)
                progress.show(steps, f"return {or_dash(score, '+.2f')}  loss {or_dash(loss, '.4f')}")
                told = {"steps": steps, "curve": list(curve), "scores": list(scores), "resumed": checkpoint.resumed}
                learned = {"behaviour": learner.behaviour.state_dict(), "optimizer": learner.optimizer.state_dict()}
                checkpoint.reached = told | {
                    **copy.deepcopy(learned),
                    "generator": learner.generator.get_state(),
                    "weights": weights,
                    "statistics": measured,
                    "states": [] if learner.replays else states,  # what it replays is too much to be saved
                }
                if time.monotonic() - saved_at > CHECKPOINT_SECONDS or steps >= train.total_steps:
                    saved_at = time.monotonic()
                    checkpoint.save(checkpoint.reached)
    explore_as_at_the_end(learner, agent, steps)
    agent.statistics.update(measured)
    return steps, curve


def check_finite(steps: int, score: float | None, loss: float | None) -> None:
    """Fail where a training has gone wrong beyond repair.

    Raises:
        ProfileError: the episodes' score or the loss is no number.
    """
    if score is not None and not math.isfinite(score):
        raise ProfileError(f"env: the mean score of episodes is {score} after {steps:,} steps, must be a number")
    if loss is not None and not math.isfinite(loss):
        raise ProfileError(
            f"train: the loss is {loss} after {steps:,} steps, must be a number: lower learning_rate or max_grad_norm"
        )


def explore_as_at_the_end(learner: Any, agent: Agent, steps: int) -> None:
    """Set the policy's exploration, which its weights may contain, to that of the end of its training."""
    if learner.exploration is not None:
        learner.exploration.apply(agent.actor, steps)


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
    torch.set_num_threads(1)  # the collectors fill the other cores
    learns = not isinstance(profile.train, Untrained)
    algorithm = importlib.import_module(f"policy_export.algorithms.{profile.train.algorithm}") if learns else None
    torch.manual_seed(profile.train.seed)  # after the imports, which may draw random numbers
    with alone(policy):
        with in_one_line(policy, "train"):
            agent = make_agent(policy, profile)
            agent.actor.to(device)
            checkpoint = Checkpoint(policy, profile)
            steps, curve = learn(policy, profile, agent, algorithm.Learner, checkpoint) if algorithm else (0, [])
            evaluation = evaluate(policy, profile, agent)
        if evaluation is not None:
            score, episodes = evaluation["mean_score"], evaluation["episodes"]
            print(f"train {policy}  greedy score {score:+.2f} over {episodes} episodes")

        save_weights(Path("models", policy, "policy.safetensors"), policy, agent.actor, agent.statistics)
        write_table(Path("results", policy, "learning_curve.csv"), ["steps", "return", "loss"], curve)
        report: dict[str, Any] = {"evaluation": evaluation, "env_steps": steps, "device": describe_device(device)}
        if resumed := [place for place in checkpoint.resumed if place < steps]:
            report["resumed_at"] = resumed
        write_json(Path("results", policy, "train.json"), report)
        scores = {f"score_{name}": round(evaluation[f"{name}_score"], 1) for name in ("mean", "std") if evaluation}
        write_json(Path("results", policy, "metrics", "train.json"), {policy: scores})
        checkpoint.remove()
