"""Every algorithm learns, on CartPole and Pendulum, and refuses policies that it cannot train."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from pipeline_helpers import ROOT
from ruamel.yaml import YAML
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite, OneHot
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, OneHotCategorical, ProbabilisticActor, QValueModule

from policy_export.algorithms import dqn, ppo, pqn
from policy_export.algorithms.rollouts import Rollouts
from policy_export.algorithms.training import train
from policy_export.config.profile import Profile, check, load_profile, read
from policy_export.device.errors import UserError
from policy_export.environments.env import make_env
from policy_export.program.policy import make_agent
from policy_export.program.weights import load_weights

PROFILES = read(ROOT / "params.yaml")["policies"]
VECTOR = {"env": {"id": "CartPole-v1", "max_episode_steps": 200}, "preprocess": None}
RECURRENT = {
    "factory": "policy_export.policies.recurrent_q_value:make_policy",
    "conv": [],
    "hidden": [32],
    "rnn": "gru",
    "rnn_size": 32,
    "epsilon": 0.02,
}
ACTOR = {"factory": "policy_export.policies.actor:make_policy", "conv": [], "hidden": [64]}
SHORT = {"total_steps": 50000, "eval_episodes": 5}


def profile(policy: dict, train: dict) -> dict:
    return VECTOR | {"policy": policy, "train": train}


LEARN = {
    "pqn": profile(PROFILES["cartpole"]["policy"], PROFILES["cartpole"]["train"] | SHORT | {"gamma": 0.95}),
    "recurrent pqn": profile(RECURRENT, PROFILES["cartpole"]["train"] | SHORT | {"gamma": 0.95}),
    "ppo": profile(ACTOR, PROFILES["pendulum"]["train"] | SHORT | {"gamma_start": 0.98, "gamma": 0.98}),
    "dqn": profile(
        PROFILES["cartpole"]["policy"],
        PROFILES["dqn_replay"]["train"]
        | SHORT
        | {"num_envs": 8, "epsilon_steps": 15000, "return_ends_at_reward": False}
        | {"learning_starts": 2000, "learning_rate": 1e-3, "tau": 0.02, "gamma_start": 0.98, "gamma": 0.98},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARN)
def test_algorithm_learns(tmp_path, monkeypatch, name):
    """Check the mean score: a random policy keeps the pole up for 22 steps on average, at most 70 in 5 episodes."""
    monkeypatch.chdir(tmp_path)
    YAML().dump({"policies": {"small": LEARN[name]}}, Path("params.yaml"))
    train("small")
    assert json.loads(Path("results/small/train.json").read_text())["evaluation"]["mean_score"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARN)
def test_same_parameters_give_the_same_weights(tmp_path, monkeypatch, name):
    """Check that the timing of the learning thread and the collecting thread has no effect."""
    weights = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        monkeypatch.chdir(tmp_path / run)
        shorter = LEARN[name] | {"train": LEARN[name]["train"] | {"total_steps": 10_000, "epsilon_steps": 5000}}
        if name == "ppo":
            del shorter["train"]["epsilon_steps"]
        YAML().dump({"policies": {"small": shorter}}, Path("params.yaml"))
        train("small")
        weights.append(Path("models/small/policy.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_returns_of_several_steps_end_where_they_end():
    """Compare targets with the definition: rewards up to an end, or over ``n`` steps plus the value from there."""
    torch.manual_seed(0)
    gamma, n, (rows, steps), value = 0.9, 3, (4, 12), 10.0
    reward, ends = torch.randn(rows, steps, 1), torch.rand(rows, steps, 1) < 0.2
    following = {"observation": torch.zeros(rows, steps, 1), "reward": reward, "done": ends, "terminated": ends}
    samples = TensorDict({"observation": torch.zeros(rows, steps, 1), "next": following}, (rows, steps))
    summed = dqn.sum_rewards(samples, gamma, n)
    reached = gamma ** summed["steps_to_next_obs"].reshape(rows, steps, 1) * value
    targets = summed["next", "reward"] + reached * ~summed["next", "terminated"]
    assert torch.equal(summed["next", "done"], summed["next", "terminated"])
    for row in range(rows):
        for step in range(steps):
            expected, at = 0.0, step
            while True:
                expected += gamma ** (at - step) * float(reward[row, at])
                at += 1
                if ends[row, at - 1]:
                    break
                if at - step == n or at == steps:
                    expected += gamma ** (at - step) * value
                    break
            assert float(targets[row, step]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("learner", "policy", "section", "message"),
    [
        (pqn.Learner, ACTOR, "pqn", "must make a TensorDictSequential that writes 'action_value'"),
        (dqn.Learner, ACTOR, "dqn", "must make a TensorDictSequential that writes 'action_value'"),
        (dqn.Learner, RECURRENT, "dqn", "'dqn' is for policies without memory, found ['hidden0']"),
        (ppo.Learner, RECURRENT, "ppo", "'ppo' is for policies without memory"),
        (
            ppo.Learner,
            PROFILES["cartpole"]["policy"],
            "ppo",
            "so policy.factory must make a policy that draws",
        ),
    ],
)
def test_policy_that_cannot_be_trained(learner, policy, section, message):
    made = check(Profile, profile(policy, LEARN[section]["train"]))
    agent = make_agent("small", made)
    with pytest.raises(UserError) as caught:
        learner(agent.actor, made.train, Composite())
    assert message in str(caught.value)


def test_epsilon_may_not_rise():
    made = check(Profile, LEARN["pqn"] | {"train": LEARN["pqn"]["train"] | {"epsilon_start": 0.01}})
    with pytest.raises(UserError, match=r"policy.epsilon: 0.02: must be at most train.epsilon_start \(0.01\)"):
        pqn.Learner(make_agent("small", made).actor, made.train, Composite())


def test_memory_of_a_row_that_begins_is_empty():
    made = check(Profile, LEARN["recurrent pqn"])
    torch.manual_seed(0)
    actor = make_agent("small", made).actor
    rollouts = Rollouts(make_env(made.env, None, 4, seed=0), actor, pqn.Learner.keep, pqn.Learner.value)
    rollout, scores = rollouts.collect(60)
    assert len(scores) >= 4
    begins = rollout["is_init"][..., 0]
    assert torch.equal(begins[:, 1:], rollout["done"][:, :-1, 0])
    assert begins[:, 0].all()
    assert (rollout["hidden0"][begins] == 0).all()
    assert (rollout["hidden0"][~begins] != 0).any(-1).all()


def test_what_a_cut_off_episode_led_to_is_valued_with_its_own_memory(monkeypatch):
    made = check(Profile, LEARN["recurrent pqn"] | {"env": VECTOR["env"] | {"max_episode_steps": 5}})
    torch.manual_seed(0)
    actor = make_agent("small", made).actor
    rollouts, led_to = Rollouts(make_env(made.env, None, 4, seed=0), actor, pqn.Learner.keep, pqn.Learner.value), []
    act = rollouts.act

    def watch(decision):
        outcome, after = act(decision)
        entries = outcome.select("observation").set("hidden0", decision["next", "hidden0"])
        led_to.append(entries.set("is_init", torch.zeros(4, 1, dtype=torch.bool)))
        return outcome, after

    monkeypatch.setattr(rollouts, "act", watch)
    rollout, _ = rollouts.collect(12)
    assert rollout["done"][:, 4].all()
    with torch.no_grad():
        for step, entries in enumerate(led_to):
            torch.testing.assert_close(rollout["next_value"][:, step], pqn.Learner.value(actor(entries)))


def one_hot_values(*_specs):
    """Return a policy with values as in TorchRL's tutorials, and TorchRL's default encoding of an action."""
    return TensorDictSequential(
        TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["action_value"]),
        QValueModule(action_space="one_hot"),
        EGreedyModule(OneHot(2), eps_init=0.1, eps_end=0.1),
    )


def one_hot_actor(*_specs):
    return ProbabilisticActor(
        TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )


@pytest.mark.parametrize(("name", "make"), [("pqn", one_hot_values), ("dqn", one_hot_values), ("ppo", one_hot_actor)])
def test_policy_whose_actions_are_one_hot(tmp_path, monkeypatch, name, make):
    """Check that it is trained and evaluated like any other policy."""
    monkeypatch.chdir(tmp_path)
    short = {"total_steps": 512, "num_envs": 4, "rollout_steps": 16, "eval_episodes": 2}
    short |= {"learning_starts": 100} if name == "dqn" else {"minibatch_size": 32}
    factory = {"factory": f"{__name__}:{make.__name__}"}
    small = LEARN[name] | {"policy": factory, "train": LEARN[name]["train"] | short}
    YAML().dump({"policies": {"small": small}}, Path("params.yaml"))
    train("small")
    told = json.loads(Path("results/small/train.json").read_text())
    assert (told["env_steps"], told["evaluation"]["episodes"]) == (512, 2)
    made = load_profile("small")
    torch.manual_seed(made.train.seed)
    agent = make_agent("small", made)
    assert agent.one_hot
    before = {key: tensor.clone() for key, tensor in agent.actor.state_dict().items() if key.endswith("weight")}
    load_weights(Path("models/small/policy.safetensors"), "small", agent.actor)
    after = agent.actor.state_dict()
    assert before
    assert all(not torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("algorithm", [pqn, dqn])
def test_encodings_of_an_action_are_learned_from_alike(algorithm):
    made = check(Profile, LEARN[algorithm.__name__.rpartition(".")[2]])
    train = made.train.model_copy(update={"learning_starts": 0, "updates": 2} if algorithm is dqn else {})
    losses, weights = [], []
    for one_hot in (False, True):
        torch.manual_seed(0)
        actor = one_hot_values()
        learner = algorithm.Learner(actor, train, Composite())
        env = make_env(made.env, None, 4, seed=0, one_hot=True)
        with set_exploration_type(ExplorationType.RANDOM):
            rollout, _ = Rollouts(env, actor, learner.keep, learner.value).collect(16)
        if not one_hot:
            rollout["action"] = rollout["action"].argmax(-1)
        torch.manual_seed(1)
        losses.append(learner.update(rollout, 64))
        weights.append(copy.deepcopy(actor.state_dict()))
    assert losses[0] == losses[1]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
