"""Any environment, observation and action: the exported policy beside the actor in its training environment."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import environments
import numpy as np
import pytest
import torch
from pipeline_helpers import SHORT_CHECK
from safetensors.numpy import save_file
from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType

from policy_export.algorithms import evaluation, training
from policy_export.backends import onnx
from policy_export.config.errors import ProfileError
from policy_export.config.profile import Profile, check
from policy_export.device.environments import make_environment, play
from policy_export.device.errors import UserError
from policy_export.device.manifest import action_kinds, action_names, observation_names
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.env import environment_facts
from policy_export.environments.episodes import observe, random_action, replays
from policy_export.environments.recording import play_episode, recorded_episodes
from policy_export.environments.transforms import Acted, History, Observed
from policy_export.machine.tried_environment import check_recording, check_trainable, try_environments
from policy_export.parity.open_loop import OWNER, check_open_loop
from policy_export.parity.training_environment import check_training_environment
from policy_export.program.calls import wrap
from policy_export.program.export import export
from policy_export.program.policy import environment_of, find_env, make_agent
from policy_export.program.step import make_step
from policy_export.program.weights import read_weights, save_weights

POLE, PENDULUM = {"id": "CartPole-v1", "max_episode_steps": 30}, {"id": "Pendulum-v1", "max_episode_steps": 20}
SWING = {"factory": "environments:pendulum", "max_episode_steps": 20}


def profile_of(env, policy, **others):
    train = {"algorithm": "none", "device": "cpu", "seed": 0, "eval_episodes": 2}
    content = {"env": env, "preprocess": None, "policy": {"factory": f"environments:{policy}"}, "train": train}
    return check(Profile, content | others)


def panel(kind):
    return {"id": "Panel-v0", "max_episode_steps": 30, "kwargs": {"kind": kind}}


PROFILES = {
    "several observations": profile_of({"factory": "environments:robot"}, "masked"),
    "a batch of its own": profile_of({"factory": "environments:robot", "batch": [3]}, "masked"),
    "agents": profile_of({"factory": "environments:team"}, "teammates"),
    "MultiDiscrete": profile_of(panel("several"), "choose_several"),
    "MultiDiscrete of one size": profile_of(panel("alike"), "choose_alike"),
    "MultiBinary": profile_of(panel("bits"), "choose_bits"),
    "several actions": profile_of(panel("entries"), "choose_entries"),
    "a vector": profile_of(PENDULUM, "vector"),
    "doubles": profile_of({"id": "MountainCarContinuous-v0", "max_episode_steps": 20}, "vector"),
    "normalised": profile_of(POLE, "values", transforms={"factory": "environments:normalised"}),
    "history": profile_of(POLE, "values", transforms={"factory": "environments:history"}),
    "padded": profile_of(POLE, "values", transforms={"factory": "environments:history", "padding": "constant"}),
    **{kind: profile_of(SWING | {"kind": kind}, "vector") for kind in ("VecNorm", "VecNormV2", "ObservationNorm")},
    "ActionScaling": profile_of(SWING | {"kind": "ActionScaling"}, "vector"),
    "ActionDiscretizer": profile_of(SWING | {"kind": "ActionDiscretizer"}, "levels"),
    **{
        kind: profile_of({"factory": "environments:several", "kind": kind, "max_episode_steps": 20}, "vector")
        for kind in ("SerialEnv", "ParallelEnv")
    },
    "measured inside": profile_of({"factory": "environments:measured_inside", "max_episode_steps": 20}, "vector"),
    "levels": profile_of({"factory": "environments:dashboard", "intervals": [5, 3], "categorical": True}, "levels"),
    "one-hot levels": profile_of(
        {"factory": "environments:dashboard", "intervals": [4, 4], "categorical": False}, "levels"
    ),
    "CatTensors of what there is": profile_of(
        {"id": "MountainCarContinuous-v0", "max_episode_steps": 20},
        "vector",
        transforms={"factory": "environments:joined"},
    ),
    "a transform that makes two entries": profile_of(POLE, "values", transforms={"factory": "environments:halves"}),
    "a transform with specs of one row": profile_of(PENDULUM, "vector", transforms={"factory": "environments:turned"}),
    "history of flags": profile_of(
        {"factory": "environments:robot"}, "remembering", transforms={"factory": "environments:remembered"}
    ),
    "a mask of whole numbers": profile_of({"factory": "environments:robot", "whole": True}, "masked"),
    "ActionScaling of a batch": profile_of({"factory": "environments:wheels", "batch": [3]}, "steer"),
    "one environment's transforms": profile_of({"factory": "environments:breakout", "max_episode_steps": 20}, "values"),
}
NAMES = {
    "several observations": (["image", "vector", "inner_count", "inner_mask"], ["action"]),
    "agents": (["agents_observation"], ["agents_action"]),
    "several actions": (["screen", "inner_room"], ["gear", "wheel"]),
}


@functools.cache
def subject(name):
    """Return a policy that is not trained: its agent, the step, and what a manifest would say."""
    torch.manual_seed(0)
    agent = make_agent("mine", PROFILES[name])
    agent.policy.eval().requires_grad_(requires_grad=False)
    step = make_step(agent, ExplorationType.DETERMINISTIC)
    facts = environment_facts(find_env(PROFILES[name]))
    return agent, step, facts | {"policy": "mine"} | step.signature.as_dict()


def beside_the_actor(name, policy=None):
    """Compare a policy, or a changed one, with the actor in its training environment."""
    agent, step, manifest = subject(name)
    if policy is not None:
        step = make_step(dataclasses.replace(agent, policy=policy), ExplorationType.DETERMINISTIC)
        manifest |= step.signature.as_dict()
    return check_training_environment(PROFILES[name], agent, wrap(step), manifest, SHORT_CHECK)


@pytest.mark.parametrize("name", PROFILES)
def test_policy_does_what_the_actor_does(name):
    compared = beside_the_actor(name)
    assert compared.failures == []
    assert compared.observations >= 20


@pytest.mark.parametrize("name", PROFILES)
def test_program_plays_as_the_policy(name):
    """Check this over two episodes, in the environment of a device, with an exported program."""
    _, step, manifest = subject(name)
    program = wrap(export(step).module())
    eager, found = (Player(run, manifest) for run in (wrap(step), program))
    rewards = [[reward for reward, _ in play(player, seed=5)] for player in (eager, found)]
    assert len(rewards[0]) >= 5
    np.testing.assert_allclose(*rewards, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_inputs_and_outputs(name):
    _, _, manifest = subject(name)
    observations, actions = NAMES[name]
    assert (observation_names(manifest), action_names(manifest)) == (observations, actions)
    assert [spec["name"] for spec in manifest["inputs"]][: len(observations)] == observations
    assert [spec["name"] for spec in manifest["outputs"]][: len(actions)] == actions


@pytest.mark.parametrize("name", PROFILES)
def test_random_actions_are_taken(name):
    """Check that an environment, which says what it takes, takes them, and that a mask is kept."""
    _, _, manifest = subject(name)
    environment, random = make_environment(manifest, 1), np.random.default_rng(0)
    for _ in range(5):
        action = random_action(manifest, random, environment.observations)
        if "inner_mask" in environment.observations and not np.ndim(action):
            assert environment.observations["inner_mask"][action]
        environment.step(action)
    assert set(action_kinds(manifest)) == set(action_names(manifest))


def part(policy, kind):
    (found,) = (module for module in policy if isinstance(module, kind))
    return found


@pytest.mark.parametrize(
    ("name", "lost"),
    [("normalised", Observed), ("VecNormV2", Observed), ("ObservationNorm", Observed), ("ActionScaling", Acted)],
)
def test_transform_that_is_lost_is_found(name, lost):
    """Check that a policy without its normaliser, or without the scale of its action, does not pass."""
    agent, _, _ = subject(name)
    without = [module for module in agent.policy if not isinstance(module, lost)]
    assert len(without) == len(list(agent.policy)) - 1
    assert beside_the_actor(name, TensorDictSequential(*without)).failures


def test_history_in_the_wrong_order_is_found():
    agent, _, _ = subject("history")

    class Reversed(History):
        def forward(self, entries):
            entries = super().forward(entries)
            entries[self.out_keys[0]] = entries[self.out_keys[0]].unflatten(-1, (3, 4)).flip(-2).flatten(-2)
            return entries

    own = part(agent.policy, History)
    turned = Reversed.__new__(Reversed)
    turned.__dict__ = own.__dict__
    changed = [turned if module is own else module for module in agent.policy]
    assert beside_the_actor("history", TensorDictSequential(*changed)).failures


@pytest.mark.parametrize("kind", ["VecNorm", "VecNormV2", "ObservationNorm"])
def test_statistics_are_saved_with_the_weights(kind, tmp_path):
    """Check this with a factory that measures anew whenever it is called."""
    agent, step, _ = subject(kind)
    path = tmp_path / "policy.safetensors"
    save_weights(path, "mine", agent.actor, agent.statistics)
    _, saved = read_weights(path, "mine")
    torch.manual_seed(5)
    other = make_agent("mine", PROFILES[kind])
    again = make_agent("mine", PROFILES[kind], saved)
    assert all(torch.equal(again.statistics[name], tensor) for name, tensor in agent.statistics.items())
    assert any(not torch.equal(other.statistics[name], tensor) for name, tensor in agent.statistics.items())
    again.actor.load_state_dict(agent.actor.state_dict())
    inputs = {"observation": torch.randn(4, 3)}
    found = make_step(again, ExplorationType.DETERMINISTIC)(**inputs)
    assert all(torch.equal(found[name], tensor) for name, tensor in step(**inputs).items())


def test_environment_that_does_not_replay_is_kept_as_observations(tmp_path):
    profile = profile_of({"factory": "environments:robot", "seeded": False}, "masked")
    step = make_step(make_agent("mine", profile), ExplorationType.DETERMINISTIC)
    manifest = environment_facts(find_env(profile)) | step.signature.as_dict()
    episode = play_episode(Player(wrap(step), manifest), 3, 0.5, keep=True)
    assert not replays(episode, manifest)
    episodes.save(tmp_path / "episodes.safetensors", "mine", [episode])
    (found,) = episodes.load(tmp_path / "episodes.safetensors", "mine")
    shown = list(observe(found, manifest))
    assert len(shown) == environments.STEPS
    for name, array in episode.observations.items():
        np.testing.assert_array_equal(np.stack([each[name] for each in shown]), array)


def test_environment_that_replays_is_kept_as_seeds_and_actions():
    _, step, manifest = subject("several actions")
    episode = play_episode(Player(wrap(step), manifest), 3, 0.5, keep=True)
    assert replays(episode, manifest)
    assert {name: array.shape for name, array in episode.actions.items()} == {
        "gear": (environments.STEPS,),
        "wheel": (environments.STEPS, 2),
    }


@pytest.fixture
def recording(tmp_path):
    """Give a profile without an environment, and a function that writes what was recorded elsewhere."""
    path = tmp_path / "seen.safetensors"
    random = np.random.default_rng(0)
    arrays = {"observation": random.standard_normal((40, 4)).astype(np.float32), "is_init": np.arange(40) % 20 == 0}

    def write(**changes):
        kept = {name: array for name, array in (arrays | changes).items() if array is not None}
        save_file({name: np.ascontiguousarray(array) for name, array in kept.items()}, path)
        return profile_of({"recording": str(path), "actions": 2}, "values")

    return write


def test_recording_stands_for_an_environment(recording):
    """Check the owner's actions too: the same ones pass, another one is found."""
    profile = recording()
    torch.manual_seed(0)
    step = make_step(make_agent("mine", profile), ExplorationType.DETERMINISTIC)
    manifest = environment_facts(profile.env) | {"policy": "mine"} | step.signature.as_dict()
    own = step(
        observation=torch.from_numpy(
            np.stack(
                [
                    shown["observation"]
                    for episode in recorded_episodes(profile.env)
                    for shown in observe(episode, manifest)
                ]
            )
        )
    )
    actions = own["action"].numpy()
    for wrong in (False, True):
        taken = actions.copy()
        taken[7] = 1 - taken[7] if wrong else taken[7]
        recorded = list(recorded_episodes(recording(action=taken).env))
        assert [len(episode) for episode in recorded] == [20, 20]
        result = check_open_loop(wrap(step), {"pt2": wrap(step)}, recorded, manifest, SHORT_CHECK)
        assert (result["pt2"].observations, result["pt2"].failures) == (40, [])
        assert result[OWNER].different_actions == int(wrong)
    with pytest.raises(UserError, match="has no environment to play in"):
        make_environment(manifest, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_init": None}, "lacks 'is_init'"),
        ({"is_init": np.zeros(40, bool)}, "must be bool (steps,) and begin with true"),
        ({"observation": np.zeros((39, 4), np.float32)}, "'observation' has the shape [39, 4], must have 40 steps"),
        ({"observation": np.full((40, 4), np.nan, np.float32)}, "'observation' holds numbers that are not finite"),
        ({"observation": None}, "holds no observations, only is_init"),
    ],
)
def test_recording_that_cannot_be_used(recording, changes, message):
    with pytest.raises(UserError) as caught:
        make_agent("mine", recording(**changes))
    (line,) = str(caught.value).splitlines()
    assert message in line


def test_recording_that_is_too_short(recording):
    with pytest.raises(
        ProfileError, match=r"holds 40 observations, parity_check\.min_observations asks for 41: record"
    ):
        check_recording(recording().env, 41)
    check_recording(recording().env, 40)


def try_profile(profile):
    agent = make_agent("mine", profile)
    return try_environments(find_env(profile), agent, environment_of(profile, agent, 1, 0))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (profile_of({"factory": "environments:robot", "fault": "reset"}, "masked"), "fails: no robot here"),
        (profile_of({"factory": "environments:robot", "fault": "step"}, "masked"), "fails: no power"),
        (
            profile_of({"factory": "environments:robot", "fault": "dtype"}, "masked"),
            "float32[3], but declares float64[3]",
        ),
        (profile_of({"factory": "environments:robot", "fault": "nan"}, "masked"), "vector with what is no number"),
        (profile_of({"factory": "environments:robot", "batches": 3}, "masked"), "env.batches: 3: unknown key"),
        (profile_of({"factory": "environments:shared"}, "masked"), "makes the same environment again"),
        (profile_of({"factory": "environments:nosuch"}, "masked"), "has no attribute 'nosuch'"),
        (profile_of({"factory": "environments:masked"}, "masked"), "env._observations: missing, must be given"),
        (profile_of({"factory": "environments:normalised"}, "masked"), "makes a list, must make an EnvBase"),
        (
            profile_of({"factory": "environments:robot"}, "privileged"),
            "the policy reads ['state'], the environment has",
        ),
        (
            profile_of(POLE, "counted", transforms={"factory": "environments:normalised"}),
            "by one of the transforms StepCounter, RewardSum",
        ),
        (
            profile_of(POLE, "values", transforms={"factory": "environments:skipping"}),
            "FrameSkipTransform cannot be part",
        ),
        (
            profile_of(POLE, "values", transforms={"factory": "environments:astray"}),
            "ObservationNorm reads 'vector', the environment has 'observation'",
        ),
        (
            profile_of(POLE, "values", transforms={"factory": "environments:robot"}),
            "makes a Robot, must make a Transform",
        ),
        (profile_of({"factory": "environments:unmeasured"}, "vector"), "VecNorm has no statistics: let env.factory"),
        (
            profile_of(POLE, "values", transforms={"factory": "environments:nothing_given"}),
            "ObservationNorm has no statistics: give loc and scale, or call init_stats in env.factory",
        ),
        (
            profile_of({"factory": "environments:wheels", "batch": [3], "alike": False}, "steer"),
            "ActionScaling has other numbers for each environment of a batch",
        ),
        (profile_of(PENDULUM, "values"), "object has no attribute 'n'"),
        (profile_of(POLE, "choose_bits"), "the policy reads"),
        (profile_of(panel("shifted"), "choose_bits"), "its actions are a Discrete(3, start=-1), must start at 0"),
        (profile_of(panel("nosuch"), "choose_bits"), "gymnasium does not make it: 'nosuch'"),
        (
            profile_of(panel("bits"), "choose_alike"),
            "the policy's action is int64[batch, 2], the environment takes int8[batch, 3]",
        ),
    ],
)
def test_mistake_is_one_line(profile, message):
    with pytest.raises(UserError) as caught:
        try_profile(profile)
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_agents_are_not_trained_here():
    agent, _, _ = subject("agents")
    with pytest.raises(ProfileError, match="give algorithm none"):
        check_trainable(PROFILES["agents"], agent)


def test_score_that_is_no_number():
    profile = profile_of({"factory": "environments:robot", "fault": "reward"}, "masked")
    with pytest.raises(ProfileError, match="the score of an episode is nan, must be a number"):
        evaluation.evaluate("mine", profile, make_agent("mine", profile))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            profile_of({"factory": "environments:robot", "fault": "nan later"}, "masked"),
            "shows vector with what is no number (nan), at step 5 of the episode with seed 7",
        ),
        (
            profile_of({"factory": "environments:robot"}, "beyond"),
            "the policy's action is 4, at step 8 of the episode with seed 7: the environment takes 0 to 3",
        ),
        (profile_of(PENDULUM | {"max_episode_steps": 5}, "endless"), ": not every number is finite"),
    ],
)
def test_what_is_no_number_or_no_action_is_told_while_recording(profile, message):
    agent = make_agent("mine", profile)
    agent.policy.eval().requires_grad_(requires_grad=False)
    step = make_step(agent, ExplorationType.DETERMINISTIC)
    manifest = environment_facts(find_env(profile)) | {"policy": "mine"} | step.signature.as_dict()
    with pytest.raises(UserError) as caught:
        play_episode(Player(wrap(step), manifest), 7, 0.0)
    assert message in str(caught.value)


def test_module_that_is_a_program_already_is_refused():
    agent = make_agent("mine", profile_of({"factory": "environments:robot"}, "scripted"))
    with pytest.raises(UserError, match=r"the policy's module \S+ is TorchScript, which does not export"):
        export(make_step(agent, ExplorationType.DETERMINISTIC))


def test_value_with_the_name_of_an_observation_has_no_place_in_onnx():
    class Reads(torch.nn.Module):
        def forward(self, loc):
            return {"action": loc + 1, "loc": 2 * loc}

    program = torch.export.export(Reads(), (), {"loc": torch.zeros(2, 3)})
    onnx.refuse(program, [{"name": "place"}])
    with pytest.raises(UserError, match=r"export_onnx: the policy reads 'loc' and writes a value of that name"):
        onnx.refuse(program, [{"name": "loc"}])


def test_environment_that_fails_later_is_one_line(tmp_path, monkeypatch):
    profile = profile_of({"factory": "environments:robot", "fault": "later"}, "masked")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "load_profile", lambda _: profile)
    with pytest.raises(UserError, match=r"^train: RuntimeError: no power, at .*environments.py:\d+; the whole trace: "):
        training.train("mine")
    assert "no power" in Path("results/mine/failures/train.txt").read_text()
    assert not Path("models").exists()


@pytest.mark.parametrize(
    ("kind", "shape", "action"),
    [
        ({"kind": "indices", "sizes": [3, 3]}, (2, 3), [1, 2]),
        ({"kind": "indices", "sizes": [4, 2]}, (6,), [1, 1]),
        ({"kind": "one_hot", "sizes": [4, 2], "shape": []}, (6,), [0, 1, 0, 0, 0, 1]),
        ({"kind": "one_hot", "sizes": [3], "shape": [2]}, (2, 3), [[0, 1, 0], [0, 0, 1]]),
    ],
)
def test_random_actions_keep_to_a_mask(kind, shape, action):
    manifest = {"action_names": ["action"], "actions": {"entries": {"action": kind}}}
    shown = {"action_mask": np.array([0, 1, 0, 0, 0, 1], bool).reshape(shape)}
    random = np.random.default_rng(0)
    for _ in range(10):
        np.testing.assert_array_equal(random_action(manifest, random, shown), action)
