"""Training: its targets, its reproducibility, and its interruption at any point."""

from __future__ import annotations

import csv
import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from pipeline_helpers import TINY, python, write_params
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite

from policy_export.algorithms.common import EpsilonSchedule, discount
from policy_export.algorithms.pqn import Learner
from policy_export.algorithms.rollouts import Rollouts
from policy_export.algorithms.training import Checkpoint, train
from policy_export.config.profile import Profile, load_profile
from policy_export.device.errors import UserError
from policy_export.environments.env import make_env
from policy_export.program.policy import make_agent
from policy_export.program.weights import load_weights

WEIGHTS = Path("models/dqn/policy.safetensors")
CURVE = Path("results/dqn/learning_curve.csv")
METRICS = Path("results/dqn/train.json")
TOTAL_STEPS = TINY["policies.dqn.train.total_steps"]
UPDATE_STEPS = TINY["policies.dqn.train.num_envs"] * TINY["policies.dqn.train.rollout_steps"]


@pytest.fixture
def profile(tmp_path, monkeypatch) -> Profile:
    write_params(tmp_path, TINY)
    monkeypatch.chdir(tmp_path)
    return load_profile("dqn")


def make_rollouts(profile: Profile, num_envs: int) -> Rollouts:
    actor = make_agent("dqn", profile).actor
    env = make_env(profile.env, profile.preprocess, num_envs, seed=1)
    return Rollouts(env, actor, Learner.keep, Learner.value)


def test_truncated_step_leads_to_the_old_episode(profile, monkeypatch):
    profile = profile.model_copy(update={"env": profile.env.model_copy(update={"max_episode_steps": 5})})
    rollouts = make_rollouts(profile, num_envs=2)
    step, old, new = rollouts.env.step_and_maybe_reset, [], []

    def spy(entries):
        stepped, following = step(entries)
        old.append(rollouts.decide(stepped["next"], rollouts.memory))
        new.append(rollouts.decide(following, rollouts.memory))
        return stepped, following

    monkeypatch.setattr(rollouts.env, "step_and_maybe_reset", spy)
    with torch.no_grad():
        rollout, scores = rollouts.collect(12)
    ends = [4, 9]
    assert rollout["done"].nonzero()[:, 1].tolist() == 2 * ends
    assert not rollout["terminated"].any()
    assert scores == [0.0] * 4
    before, after = (Learner.value(torch.stack(entries, 1)) for entries in (old, new))
    torch.testing.assert_close(rollout["next_value"], before)
    assert (before != after).nonzero()[:, 1].tolist() == 2 * ends


def lambda_returns(rollout: TensorDict, gamma: float, lambda_: float, *, ends_at_reward: bool) -> torch.Tensor:
    """Return the returns by definition, one step after the other: ``(num_envs, steps)``."""
    reward, value, done, terminated = (rollout[name][..., 0] for name in ("reward", "next_value", "done", "terminated"))
    returns = torch.zeros_like(reward)
    for env, step in torch.cartesian_prod(*map(torch.arange, reward.shape)).flip(0).tolist():
        here = env, step
        scored = ends_at_reward and reward[here] != 0
        ahead = value[here]
        if step + 1 < reward.shape[1] and not done[here]:
            ahead = (1 - lambda_) * ahead + lambda_ * returns[env, step + 1]
        returns[here] = reward[here] + (0 if terminated[here] or scored else gamma * ahead)
    return returns


@pytest.mark.parametrize("ends_at_reward", [True, False])
def test_network_learns_the_lambda_return(profile, ends_at_reward):
    """Check that a table with one value per step learns the returns of the definition."""
    envs, steps, actions = 2, 8, 3
    flags = torch.zeros(2, envs, steps, 1, dtype=torch.bool)
    flags[0, 0, 2] = flags[0, 1, 4] = flags[1, 1, 4] = True  # env 0 is truncated, env 1 comes to its end
    torch.manual_seed(0)
    rollout = TensorDict(
        {
            "pixels": torch.eye(envs * steps).unflatten(0, (envs, steps)),
            "action": torch.randint(actions, (envs, steps)),
            "reward": torch.tensor([[0, 0, 0, 1, 0, -1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]])[..., None].float(),
            "next_value": torch.randn(envs, steps, 1),
            "done": flags[0],
            "terminated": flags[1],
        },
        (envs, steps),
    )
    table = nn.Linear(envs * steps, actions, bias=False)
    actor = TensorDictSequential(TensorDictModule(table, in_keys=["pixels"], out_keys=["action_value"]))
    settings = {"learning_rate": 0.3, "total_steps": 400, "minibatch_size": envs * steps, "epochs": 1}
    settings |= {"gamma_start": profile.train.gamma}
    learner = Learner(
        actor,
        profile.train.model_copy(update=settings | {"return_ends_at_reward": ends_at_reward, "lambda_": 0.7}),
        Composite(),
    )
    for step in range(400):
        learner.update(rollout, step)
    learned = actor(rollout)["action_value"].gather(-1, rollout["action"][..., None])[..., 0]
    expected = lambda_returns(rollout, profile.train.gamma, 0.7, ends_at_reward=ends_at_reward)
    torch.testing.assert_close(learned, expected, atol=1e-3, rtol=0)


def test_discount_rises_with_its_horizon(profile):
    settings = profile.train.model_copy(update={"gamma_start": 0.9, "gamma": 0.99, "total_steps": 90})
    horizons = [1 / (1 - discount(settings, steps)) for steps in (0, 45, 90, 100)]
    assert horizons == pytest.approx([10, 55, 100, 100])


def test_epsilon_falls_linearly_to_the_policy_s_and_stays_there(profile):
    actor = make_agent("dqn", profile).actor
    size = profile.train.num_envs * profile.train.rollout_steps
    schedule = EpsilonSchedule(actor, profile.train.model_copy(update={"epsilon_steps": 9 * size}))
    seen = [schedule.apply(actor, rollout * size) for rollout in range(12)]
    expected = [1 - 0.99 * rollout / 9 for rollout in range(10)] + [0.01, 0.01]
    assert seen == pytest.approx(expected, abs=1e-6)
    assert float(actor[-1].eps) == pytest.approx(0.01)


def test_loss_on_one_rollout_falls(profile):
    torch.manual_seed(0)
    rollouts = make_rollouts(profile, num_envs=4)
    rollout, _ = rollouts.collect(32)
    learner = Learner(rollouts.policy, profile.train, Composite())
    losses = [learner.update(rollout, steps=0) for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]


def test_checkpoint_is_kept_until_it_is_removed(profile):
    checkpoint = Checkpoint("dqn", profile)
    assert checkpoint.load() is None
    checkpoint.save({"steps": 1})
    checkpoint.save({"steps": 2})
    assert Checkpoint("dqn", profile).load() == {"steps": 2}
    checkpoint.remove()
    assert checkpoint.load() is None
    assert list(Path(".checkpoints").iterdir()) == []


def test_checkpoint_is_of_one_policy_one_profile_and_one_code(profile):
    Checkpoint("dqn", profile).save({"steps": 1})
    assert Checkpoint("other", profile).load() is None
    other = profile.model_copy(update={"train": profile.train.model_copy(update={"gamma": 0.5})})
    assert Checkpoint("dqn", other).load() is None
    Path("mine.py").write_text("import layers")
    layers, weights = Path("layers.py"), Path("weights.bin")
    mine = Profile.model_validate(profile.model_dump() | {"policy": {"factory": "mine:make", "weights": str(weights)}})
    for path in (layers, weights):
        path.write_text("1")
        Checkpoint("dqn", mine).save({"steps": 1})
        path.write_text("2")
        assert Checkpoint("dqn", mine).load() is None


def test_checkpoint_outlives_a_reworded_error(profile):
    """Check that a changed text does not make a checkpoint invalid, but changed code does."""
    mine = Profile.model_validate(profile.model_dump() | {"policy": {"factory": "mine:make"}})
    source = 'def make(spec):\n    """Make it."""\n    if spec is None:\n        raise ValueError("no spec")\n'
    Path("mine.py").write_text(source)
    Checkpoint("dqn", mine).save({"steps": 1})
    Path("mine.py").write_text(source.replace("no spec", "a spec is needed").replace("Make it.", "Make the policy."))
    assert Checkpoint("dqn", mine).load() == {"steps": 1}
    Path("mine.py").write_text(source.replace("is None", "is not None"))
    assert Checkpoint("dqn", mine).load() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can be had here")
def test_gpu_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    write_params(tmp_path, TINY | {"policies.dqn.train.device": "cuda"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train\.device: 'cuda': PyTorch finds no GPU here; use cpu or auto"):
        train("dqn")
    assert not Path("results").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoint_is_ignored_and_said_so(profile, capsys, content):
    checkpoint = Checkpoint("dqn", profile)
    checkpoint.save({"steps": 1})
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert checkpoint.load() is None
    assert f"{checkpoint.path} is damaged and ignored" in capsys.readouterr().out


def curve(folder: Path) -> list[dict[str, float]]:
    with (folder / CURVE).open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_complete(folder: Path) -> None:
    """Check all outputs of a training, with a row in the curve for every update since the first episodes ended."""
    profile = load_profile("dqn", folder / "params.yaml")
    load_weights(folder / WEIGHTS, "dqn", make_agent("dqn", profile).actor)
    metrics = json.loads((folder / METRICS).read_text())
    assert metrics["env_steps"] == TOTAL_STEPS
    assert metrics["device"] == "cpu"
    assert metrics["seed"] == profile.train.seed
    assert metrics["processor"]
    assert metrics["versions"]["torch"] == metadata.version("torch")
    assert metrics["evaluation"]["episodes"] == TINY["policies.dqn.train.eval_episodes"]
    rows = curve(folder)
    first = TINY["policies.dqn.env.max_episode_steps"] * TINY["policies.dqn.train.num_envs"]
    updates = range(-(-first // UPDATE_STEPS), TOTAL_STEPS // UPDATE_STEPS + 1)
    assert [row["steps"] for row in rows] == [update * UPDATE_STEPS for update in updates]


@pytest.mark.slow
def test_training_gives_the_same_again(tmp_path, monkeypatch):
    found = []
    for name in ("once", "again"):
        folder = tmp_path / name
        folder.mkdir()
        write_params(folder, TINY)
        monkeypatch.chdir(folder)
        train("dqn")
        assert_complete(folder)
        found.append([path.read_bytes() for path in (WEIGHTS, CURVE, METRICS)])
    assert found[0] == found[1]


# Saves a checkpoint after every update, and dies without notice after one of them, within one, or within an output.
DIES = """
import itertools, os, signal, sys
from pathlib import Path
import policy_export.program.weights, policy_export.algorithms.training

def die(owner, name, calls, halfway):
    write, counter = getattr(owner, name), itertools.count(1)
    def wrapped(first, second, **options):
        write(first, second, **options)
        if next(counter) == calls:
            if halfway:
                path = first if isinstance(first, Path) else second
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, wrapped)

die(*{
    "rollout": (policy_export.algorithms.training.Checkpoint, "save", 8, False),
    "checkpoint": (Path, "write_bytes", 8, True),
    "output": (policy_export.program.weights, "save_file", 1, True),
}[sys.argv[1]])
policy_export.algorithms.training.CHECKPOINT_SECONDS = 0
policy_export.algorithms.training.train("dqn")
"""
GOES_ON = "import policy_export.algorithms.training; policy_export.algorithms.training.train('dqn')"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_params(folder, TINY)
    python("-c", GOES_ON, cwd=folder)
    return [(folder / path).read_bytes() for path in (WEIGHTS, CURVE, METRICS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "updates"), [("rollout", 8), ("checkpoint", 7), ("output", TOTAL_STEPS // UPDATE_STEPS)]
)
@pytest.mark.usefixtures("profile")
def test_killed_training_goes_on(tmp_path, where, updates, uninterrupted):
    """Check that it gives the same bytes as one that nobody has interrupted."""
    python("-c", DIES, where, cwd=tmp_path, status=-9)
    assert not any(path.exists() for path in (WEIGHTS, CURVE, METRICS))
    done = python("-c", GOES_ON, cwd=tmp_path)
    assert f"train dqn  resumes at {updates * UPDATE_STEPS:,} steps" in done.stdout
    assert_complete(tmp_path)
    assert [path.read_bytes() for path in (WEIGHTS, CURVE, METRICS)] == uninterrupted
    assert list(Path(".checkpoints").iterdir()) == []
    assert list(WEIGHTS.parent.iterdir()) == [WEIGHTS]


PPO = {
    "policies.ppo.env.max_episode_steps": 100,
    "policies.ppo.train.total_steps": 4096,
    "policies.ppo.train.num_envs": 8,
    "policies.ppo.train.rollout_steps": 64,
    "policies.ppo.train.eval_episodes": 2,
}


@pytest.mark.slow
def test_killed_ppo_training_goes_on(tmp_path):
    """Check the same of an algorithm that draws its actions and has a second network."""
    found = []
    for name in ("killed", "whole"):
        folder = tmp_path / name
        folder.mkdir()
        write_params(folder, PPO)
        if name == "killed":
            python("-c", DIES.replace("dqn", "ppo"), "rollout", cwd=folder, status=-9)
        done = python("-c", GOES_ON.replace("dqn", "ppo"), cwd=folder)
        assert ("resumes at " in done.stdout) == (name == "killed")
        found.append([(folder / str(path).replace("dqn", "ppo")).read_bytes() for path in (WEIGHTS, CURVE, METRICS)])
    assert found[0] == found[1]


@pytest.mark.slow
def test_more_collectors_than_environments(tmp_path):
    few = {"policies.dqn.train.num_envs": 1, "policies.dqn.train.eval_episodes": 1, "policies.dqn.train.collectors": 3}
    write_params(tmp_path, TINY | few | {"policies.dqn.train.total_steps": 512})
    python("-c", GOES_ON, cwd=tmp_path)
    assert json.loads((tmp_path / METRICS).read_text())["env_steps"] == 512
