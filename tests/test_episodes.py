from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest

from policy_export.device.environments import make_environment
from policy_export.device.errors import UserError
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.env import environment_facts
from policy_export.environments.recording import play_episode

STEPS = 60


@pytest.fixture(scope="module")
def manifest(variant):
    screen = {"name": "observation", "dtype": "uint8", "shape": ["batch", 210, 160, 3]}
    facts = environment_facts(variant(env={"max_episode_steps": STEPS}).env)
    return facts | {"inputs": [screen], "outputs": [], "states": []}


@pytest.fixture(scope="module")
def record(manifest):
    """Give a function that plays an episode; returns it and the screens that were acted on."""

    def play(seed, epsilon=0.5):
        screens = []

        def act(inputs):
            screens.append(inputs["observation"][0].copy())
            return {"action": np.array([len(screens) // 4 % 6])}

        return play_episode(Player(act, manifest), seed, epsilon), screens

    return play


@pytest.fixture(scope="module")
def recorded(record):
    return [record(seed, epsilon)[0] for seed, epsilon in ((1000, 0.0), (1001, 0.5), (1002, 1.0))]


@pytest.fixture
def path(tmp_path, recorded):
    path = tmp_path / "data" / "episodes.safetensors"
    episodes.save(path, "dqn", recorded)
    return path


def assert_same(found, expected):
    for attribute in dataclasses.fields(episodes.Episode):
        values = [getattr(episode, attribute.name) for episode in (found, expected)]
        assert type(values[0]) is type(values[1])
        np.testing.assert_array_equal(*values, strict=isinstance(values[1], np.ndarray), err_msg=attribute.name)


def refuse(path, policy="dqn"):
    with pytest.raises(UserError) as caught:
        episodes.load(path, policy)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    return line


def test_episodes_come_back(path, recorded):
    found = episodes.load(path, "dqn")
    assert len(found) == len(recorded)
    for episode, expected in zip(found, recorded, strict=True):
        assert_same(episode, expected)


def test_same_episodes_make_the_same_file(path, tmp_path, recorded):
    episodes.save(tmp_path / "again.safetensors", "dqn", recorded)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_episodes_of_other_lengths(tmp_path, recorded):
    short = dataclasses.replace(recorded[0], **{name: getattr(recorded[0], name)[:7] for name in episodes.ARRAYS})
    episodes.save(tmp_path / "file", "dqn", [short, recorded[1]])
    for episode, expected in zip(episodes.load(tmp_path / "file", "dqn"), [short, recorded[1]], strict=True):
        assert_same(episode, expected)


def test_full_episode_is_recorded(record):
    episode, screens = record(seed=3)
    assert len(screens) == len(episode.actions) == len(episode.rewards) == len(episode.state_hashes) == STEPS
    assert episode.actions.dtype == np.int16


def test_epsilon_is_the_share_of_random_actions(record):
    policy = np.array([step // 4 % 6 for step in range(1, STEPS + 1)])
    np.testing.assert_array_equal(record(0, epsilon=0.0)[0].actions, policy)
    changed = sum((record(seed, epsilon=0.5)[0].actions != policy).mean() for seed in range(5)) / 5
    assert 0.25 < changed < 0.58  # 0.5 * 5/6 of 300 decisions, five standard deviations wide


@pytest.mark.parametrize("seed", [0, 7])
def test_replay_shows_the_same_screens(record, manifest, seed):
    episode, screens = record(seed)
    replayed = list(episodes.replay(episode, make_environment(manifest, seed)))
    np.testing.assert_array_equal([shown["observation"] for shown in replayed], screens)


def test_replay_survives_the_file(path, record, manifest):
    episode = episodes.load(path, "dqn")[1]
    _, screens = record(1001, epsilon=0.5)
    replayed = episodes.replay(episode, make_environment(manifest, 1001))
    np.testing.assert_array_equal([shown["observation"] for shown in replayed], screens)


def changed(episode, name, step):
    array = getattr(episode, name).copy()
    array[step] = 5 - array[step] if name == "actions" else array[step] + np.ones(1, array.dtype)[0]
    return dataclasses.replace(episode, **{name: array})


@pytest.mark.parametrize("step", [0, 20, STEPS - 1])
@pytest.mark.parametrize("name", ["rewards", "state_hashes"])
def test_replay_notices_another_result_at_its_step(record, manifest, name, step):
    episode, _ = record(4)
    replayed = episodes.replay(changed(episode, name, step), make_environment(manifest, 4))
    with pytest.raises(UserError, match=f"seed 4 does not replay: step {step} differs"):
        list(replayed)


def test_replay_notices_another_action(record, manifest):
    episode, _ = record(4)
    with pytest.raises(UserError, match="seed 4 does not replay"):
        list(episodes.replay(changed(episode, "actions", 20), make_environment(manifest, 4)))


def test_replay_notices_another_seed(record, manifest):
    episode, _ = record(4)
    with pytest.raises(UserError, match="does not replay"):
        list(episodes.replay(episode, make_environment(manifest, 5)))


def test_missing(path):
    path.unlink()
    assert "no such file" in refuse(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged" in refuse(path)


def test_other_policy(path):
    assert "'dqn', expected 'pong'" in refuse(path, policy="pong")


def test_file_of_something_else(path):
    from safetensors.numpy import save_file

    save_file({"actions": np.zeros(3, np.uint8)}, path)
    refuse(path)


def test_any_damage_to_the_header_is_a_user_error_at_most(path):
    """Check that no other error is raised; a changed seed or epsilon shows only when the episode is replayed."""
    content = path.read_bytes()
    for position in range(8 + int.from_bytes(content[:8], "little")):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            episodes.load(path, "dqn")
