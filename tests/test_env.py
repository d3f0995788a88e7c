from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.data import Categorical, OneHot
from torchrl.envs import GymEnv as LibraryGymEnv
from torchrl.envs import SerialEnv, check_env_specs

from policy_export.config.errors import ProfileError
from policy_export.config.profile import GymEnv
from policy_export.device.emulator import Emulator
from policy_export.device.environments import make_environment
from policy_export.device.errors import UserError
from policy_export.environments.env import AtariEnv, environment_facts, make_env, make_single_env
from policy_export.environments.preprocess import OBSERVATION, PIXELS, Screen
from policy_export.program.policy import make_agent

pytestmark = pytest.mark.slow

PONG = [0, 1, 3, 4, 11, 12]


def make_emulator(env, seed):
    knobs = env.model_dump(exclude={"id"})
    return Emulator("pong", PONG, **knobs, seed=seed)


def restart(emulator):
    emulator.ale.reset_game()
    emulator.ale.getScreenRGB(emulator.observation)


def random_actions(steps, rows, seed=0):
    return torch.randint(len(PONG), (steps, rows), generator=torch.Generator().manual_seed(seed))


def roll(env, entries, actions):
    """Return the screens that an environment shows, one after the other."""
    screens = []
    for action in actions:
        _, entries = env.step_and_maybe_reset(entries.set("action", action))
        screens.append(entries[OBSERVATION])
    return torch.stack(screens)


@pytest.mark.parametrize("transformed", [False, True])
def test_torchrl_accepts_the_environment(profile, transformed):
    env = make_env(profile.env, profile.preprocess, 2, 0) if transformed else AtariEnv(profile.env, 2, 0)
    check_env_specs(env)


@pytest.mark.parametrize(
    ("max_episode_steps", "ends", "at_least"),
    [(90, "truncated", 26), (27000, "terminated", 2)],  # these random actions lose a game in 1175 and in 1098 steps
)
def test_rows_are_the_emulator_that_devices_run(variant, max_episode_steps, ends, at_least):
    """Compare every row's screens, rewards and ends with the bare emulator's for its seed, over several episodes."""
    knobs = variant(env={"max_episode_steps": max_episode_steps}).env
    env = AtariEnv(knobs, 2, seed=5)
    emulators = [make_emulator(knobs, seed) for seed in (5, 6)]
    entries, episodes = env.reset(), 0
    for actions in random_actions(1200, 2):
        stepped, entries = env.step_and_maybe_reset(entries.set("action", actions))
        outcome = stepped["next"]
        for row, emulator in enumerate(emulators):
            reward = emulator.step(int(actions[row]))
            assert float(outcome["reward"][row]) == reward
            assert bool(outcome["done"][row]) == emulator.done
            if emulator.done:
                episodes += 1
                assert bool(outcome[ends][row])
            assert torch.equal(outcome[OBSERVATION][row], torch.tensor(emulator.observation))
            if emulator.done:
                restart(emulator)
            assert torch.equal(entries[OBSERVATION][row], torch.tensor(emulator.observation))
    assert episodes >= at_least


def test_rows_have_seeds_of_their_own(profile):
    env = AtariEnv(profile.env, 4, seed=0)
    screens = roll(env, env.reset(), random_actions(100, 1).expand(-1, 4))
    rows = [screens[:, row] for row in range(4)]
    assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))


def test_screens_stay_when_the_environment_goes_on(profile):
    env = AtariEnv(profile.env, 2, seed=0)
    entries = env.reset()
    stepped, entries = env.step_and_maybe_reset(entries.set("action", torch.tensor([2, 3])))
    seen, copy = stepped["next", OBSERVATION], stepped["next", OBSERVATION].clone()
    roll(env, entries, random_actions(20, 2))
    assert torch.equal(seen, copy)


@pytest.mark.parametrize("steps", [15, 30])
def test_same_seed_starts_the_same_games(variant, steps):
    """Check this also at the end of an episode, when the emulators have already begun the next one."""
    env = AtariEnv(variant(env={"max_episode_steps": 30}).env, 2, seed=7)
    actions = random_actions(60, 2)
    first = roll(env, env.reset(), actions)
    env.set_seed(7)
    entries = env.reset()
    for action in actions[:steps]:
        entries = env.step(entries.set("action", action))["next"]
    assert bool(entries["done"].all()) == (steps == 30)
    env.set_seed(7)
    assert torch.equal(roll(env, env.reset(), actions), first)


def test_row_that_is_reset_begins_and_the_other_goes_on(profile):
    env = AtariEnv(profile.env, 2, seed=5)
    emulators = [make_emulator(profile.env, seed) for seed in (5, 6)]
    entries = env.reset()
    for step, actions in enumerate(random_actions(100, 2)):
        if step == 40:
            restart(emulators[1])
            entries = env.reset(entries.set("_reset", torch.tensor([[False], [True]])))
        entries = env.step(entries.set("action", actions))["next"]
        for emulator, action, screen in zip(emulators, actions, entries[OBSERVATION], strict=True):
            emulator.step(int(action))
            assert torch.equal(screen, torch.tensor(emulator.observation))


@pytest.mark.parametrize("rows", [1, 3])
def test_saved_environment_goes_on(variant, rows):
    """Check it within sticky frames, where an episode has just ended, and over the ends of the next ones."""
    env = AtariEnv(variant(env={"max_episode_steps": 60}).env, rows, seed=3)
    other = AtariEnv(variant(env={"max_episode_steps": 60}).env, rows, seed=4)
    entries, actions = env.reset(), random_actions(260, rows)
    for start in range(0, 200, 20):
        saved, here = env.saved, entries.clone()
        first = roll(env, entries.clone(), actions[start : start + 60])
        other.restore(saved)
        assert torch.equal(roll(other, here, actions[start : start + 60]), first)
        env.restore(saved)
        for action in actions[start : start + 20]:
            _, entries = env.step_and_maybe_reset(entries.set("action", action))


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frames_are_stacked_row_by_row(variant, frames):
    """Check, with truncations and a requested reset, that a new row shows its first frame and others do not change."""
    profile = variant(env={"max_episode_steps": 25}, preprocess={"frames": frames}, policy={"conv": []})
    env = make_env(profile.env, profile.preprocess, 2, seed=1)
    raw = AtariEnv(profile.env, 2, seed=1)
    screen = Screen(profile.preprocess, out_key=PIXELS)
    entries, shown = env.reset(), raw.reset()
    expected = screen(shown.clone())[PIXELS].repeat(1, frames, 1, 1)
    for step, action in enumerate(random_actions(60, 2)):
        assert torch.equal(entries[PIXELS], expected), step
        stepped, entries = env.step_and_maybe_reset(entries.set("action", action))
        _, shown = raw.step_and_maybe_reset(shown.set("action", action))
        begins = stepped["next", "done"].clone()
        if step == 10:
            begins[1] = True
            entries = env.reset(entries.set("_reset", begins))
            shown = raw.reset(shown.set("_reset", begins))
        frame = screen(shown.clone())[PIXELS]
        continued = torch.cat([expected[:, 1:], frame], 1)
        expected = torch.where(begins[..., None, None], frame.expand_as(continued), continued)


def test_transformed_environment_keeps_only_what_the_network_reads(profile):
    entries = make_env(profile.env, profile.preprocess, 2, 0).rollout(3)
    kept = {"pixels", "done", "terminated", "truncated"}
    assert set(entries.keys()) == kept | {"action", "next"}
    assert set(entries["next"].keys()) == kept | {"reward"}


def test_facts_that_a_device_needs(profile):
    facts = environment_facts(profile.env)
    assert facts["environment"] == {"id": "ALE/Pong-v5", "rom": "pong"} | profile.env.model_dump(exclude={"id"})
    names = ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert facts["actions"] == [
        {"index": index, "name": name, "ale_id": ale_id}
        for index, (name, ale_id) in enumerate(zip(names, PONG, strict=True))
    ]


@pytest.mark.parametrize("env_id", ["ALE/Nosuch-v5", "ALE/Pong-v99"])
def test_unknown_game(variant, env_id):
    with pytest.raises(ProfileError) as caught:
        environment_facts(variant(env={"id": env_id}).env)
    assert str(caught.value) == f"env.id: {env_id!r}: is no Atari environment, such as 'ALE/Pong-v5'"
    with pytest.raises(UserError, match=rf"^params\.yaml: policies\.mine: env\.id: '{env_id}': is no Atari"):
        make_agent("mine", variant(env={"id": env_id}))


def gym(env_id, max_episode_steps=20):
    return GymEnv(id=env_id, max_episode_steps=max_episode_steps)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Nosuch-v0", "gymnasium does not make it"),
        ("nosuch:Pong-v0", "gymnasium does not make it"),
        ("", "gymnasium does not make it"),
        ("Blackjack-v1", "its observations are a Tuple"),
    ],
)
def test_environment_that_cannot_be_used(env_id, message):
    with pytest.raises(ProfileError) as caught:
        make_single_env(gym(env_id), None, None)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"env.id: {env_id!r}: ")
    assert message in line


def test_facts_of_a_choice_and_of_a_vector():
    assert environment_facts(gym("CartPole-v1")) == {
        "environment": {"id": "CartPole-v1", "max_episode_steps": 20},
        "actions": [{"index": 0, "name": "0"}, {"index": 1, "name": "1"}],
    }
    assert environment_facts(gym("Pendulum-v1"))["actions"] == {"low": [-2.0], "high": [2.0]}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_row_is_the_environment_that_devices_run(env_id):
    """Compare observations, rewards and ends until the first episode ends."""
    env = make_env(gym(env_id), None, 2, seed=7)
    entries = env.reset()
    device = make_environment(environment_facts(gym(env_id)), 0)
    device.env.reset(seed=7)  # TorchRL resets once to seed, and again when asked
    device.observations = {OBSERVATION: device.env.reset()[0]}
    while not device.done:
        assert torch.equal(entries[OBSERVATION][0], torch.tensor(device.observation))
        action = env.action_spec.rand()
        stepped, entries = env.step_and_maybe_reset(entries.set("action", action))
        reward = device.step(action[0].numpy() if action.ndim > 1 else int(action[0]))
        assert float(stepped["next", "reward"][0]) == pytest.approx(reward)
        assert bool(stepped["next", "done"][0]) == device.done


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_environment_is_the_one_that_torchrl_makes(env_id):
    """Compare the specs and, with the same seed, every entry of some episodes."""
    library = SerialEnv(3, lambda: LibraryGymEnv(env_id, max_episode_steps=20, categorical_action_encoding=True))
    library.set_seed(5)
    rollouts = []
    for env in (library, make_env(gym(env_id), None, 3, seed=5)):
        torch.manual_seed(0)
        rollouts.append(env.rollout(50, break_when_any_done=False))
        assert env.specs == library.specs
    assert bool((rollouts[0] == rollouts[1]).all())


class Bare(gymnasium.Env):
    """An environment without ``__init__``, whose observations have another dtype than its space says."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 2), float(action), False, False, {}


@pytest.fixture
def _bare():
    gymnasium.register("Bare-v0", entry_point=Bare)
    yield
    del gymnasium.registry["Bare-v0"]


@pytest.mark.usefixtures("_bare")
def test_class_without_init():
    check_env_specs(make_env(gym("Bare-v0"), None, 2, seed=0))
    device = make_environment(environment_facts(gym("Bare-v0")), 0)
    assert device.observation.dtype == np.float32
    assert device.step(2) == 2.0
    assert device.observation.dtype == np.float32


@pytest.mark.parametrize("made", ["atari", "preprocessed", "gym"])
def test_actions_may_be_one_hot(profile, made):
    """Check that the same actions in both encodings lead to the same entries."""
    env, preprocess = {
        "atari": (profile.env, None),
        "preprocessed": (profile.env, profile.preprocess),
        "gym": (gym("CartPole-v1"), None),
    }[made]
    index, one_hot = (make_env(env, preprocess, 2, seed=3, one_hot=one_hot) for one_hot in (False, True))
    check_env_specs(one_hot)
    one_hot.set_seed(3)
    assert isinstance(index.action_spec, Categorical)
    actions = index.action_spec.n
    assert isinstance(one_hot.action_spec, OneHot)
    assert one_hot.action_spec.shape == (2, actions)
    here, there = index.reset(), one_hot.reset()
    for _ in range(40):
        action = torch.randint(actions, (2,))
        vector = torch.nn.functional.one_hot(action, actions).to(one_hot.action_spec.dtype)
        stepped, here = index.step_and_maybe_reset(here.set("action", action))
        other, there = one_hot.step_and_maybe_reset(there.set("action", vector))
        assert bool((stepped["next"] == other["next"]).all())


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        (
            "nosuch:Pong-v0",
            "'nosuch:Pong-v0' needs the module 'nosuch', which is not there: put it next to the folder `player`",
        ),
        ("half_there:Pong-v0", "'half_there:Pong-v0' needs the module 'nosuch', which is not there"),
        ("Nosuch-v0", "gymnasium does not make 'Nosuch-v0': Environment `Nosuch` doesn't exist"),
    ],
)
def test_device_without_the_environment(tmp_path, monkeypatch, env_id, message):
    (tmp_path / "half_there.py").write_text("import nosuch\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        make_environment({"environment": {"id": env_id, "max_episode_steps": 5}}, 0)
    assert str(caught.value).startswith(message)
