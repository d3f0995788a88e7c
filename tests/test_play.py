from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import play
import pytest
from PIL import Image

from policy_export.config.profile import load_profile
from policy_export.program.calls import wrap
from policy_export.program.step import load_step

# The player as a device has it: nothing of this repository, and none of what only training needs.
ON_A_DEVICE = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchrl", "tensordict", "gymnasium", "stages", "pydantic", "onnx"):
            raise ModuleNotFoundError(f"{name} is not on the device", name=name)

sys.meta_path.insert(0, Absent())
runpy.run_path("play.py", run_name="__main__")
"""


@pytest.fixture
def device(model, root):
    """A folder with ``play.py`` and a model folder, and nothing else."""
    folder = model.parents[1]
    shutil.copyfile(root / "play.py", folder / "play.py")
    return folder


@pytest.fixture
def play_there(device):
    def run(*arguments):
        command = [sys.executable, "-c", ON_A_DEVICE, *arguments]
        return subprocess.run(command, cwd=device, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.fixture
def refuse(model, capfd):
    """Run the player here, expect one line of error; returns it. Libraries may not add lines of their own."""

    def run(*arguments):
        status = play.main([str(model), *arguments])
        output = capfd.readouterr()
        assert status == 1
        (line,) = output.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


def change_manifest(model, change):
    path = model / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def seal(model, name="policy.onnx"):
    """Make the manifest's hash that of the file as it is."""
    change_manifest(model, lambda manifest: manifest["files"][name].update(sha256=play.sha256(model / name)))


def eager_episode(workspace, monkeypatch, seed):
    """Score and number of decisions of the policy itself, on an emulator of its own."""
    monkeypatch.chdir(workspace)
    manifest = play.read_manifest(workspace / "models/dqn")
    player = play.Player(wrap(load_step("dqn", load_profile("dqn"))), manifest)
    rewards = [reward for reward, _ in play.play(player, seed)]
    return sum(rewards), len(rewards)


def test_plays_on_a_device_what_the_policy_plays(play_there, device, workspace, monkeypatch):
    done = play_there("models/dqn", "--episodes", "2", "--seed", "5", "--gif", "pong.gif")
    assert (done.returncode, done.stderr) == (0, "")
    *episodes, mean = done.stdout.splitlines()
    expected = [eager_episode(workspace, monkeypatch, seed) for seed in (5, 6)]
    found = [tuple(map(int, re.findall(r"score (\S+)  decisions (\d+)", line)[0])) for line in episodes]
    assert found == expected
    scores = [score for score, _ in expected]
    assert mean.startswith(f"mean score {sum(scores) / 2:.2f}  ")
    assert f"min {min(scores)}  max {max(scores)}" in mean

    with Image.open(device / "pong.gif") as gif:
        assert gif.format == "GIF"
        assert gif.size == (160, 210)
        assert gif.n_frames > 100
        milliseconds = 0
        for frame in range(gif.n_frames):  # like screens in a row are one frame, shown longer
            gif.seek(frame)
            milliseconds += gif.info["duration"]
    assert milliseconds == pytest.approx(expected[0][1] * 4 * 1000 / 60, rel=0.15)  # GIF counts in 10 ms


def test_missing_file_on_a_device(play_there, device):
    (device / "models/dqn/policy.onnx").unlink()
    done = play_there("models/dqn")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: models/dqn/policy.onnx: ")


@pytest.mark.parametrize("episodes", ["0", "-1", "1.5"])
def test_number_of_episodes_that_cannot_be(model, capfd, episodes):
    with pytest.raises(SystemExit) as caught:
        play.main([str(model), "--episodes", episodes])
    assert caught.value.code == 2
    assert "--episodes" in capfd.readouterr().err


def test_missing_folder(model, refuse):
    shutil.rmtree(model)
    assert f"{model / 'manifest.json'}: " in refuse()


def test_missing_manifest(model, refuse):
    (model / "manifest.json").unlink()
    assert f"{model / 'manifest.json'}: " in refuse()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"schema_version": 1}'])
def test_damaged_manifest(model, refuse, content):
    (model / "manifest.json").write_bytes(content)
    assert f"{model / 'manifest.json'}: " in refuse()


def test_truncated_manifest(model, refuse, truncate):
    truncate(model / "manifest.json")
    assert f"{model / 'manifest.json'}: damaged" in refuse()


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_manifest_of_another_schema(model, refuse, version):
    change_manifest(model, lambda manifest: manifest.update(schema_version=version))
    line = refuse()
    assert f"{model / 'manifest.json'}: schema_version is {version!r}" in line
    assert line.endswith("reads 1")


def test_manifest_without_the_program(model, refuse):
    change_manifest(model, lambda manifest: manifest["files"].pop("policy.onnx"))
    assert f"{model / 'manifest.json'}: lists no policy.onnx" in refuse()


def test_truncated_program(model, refuse, truncate):
    truncate(model / "policy.onnx")
    assert f"{model / 'policy.onnx'}: damaged" in refuse()


def test_program_of_another_policy(model, refuse):
    path = model / "policy.onnx"
    path.write_bytes(path.read_bytes().replace(b"dqn", b"ppo"))
    assert f"{path}: damaged or from another policy" in refuse()


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_program_that_onnx_runtime_does_not_load(model, refuse, kept):
    path = model / "policy.onnx"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    seal(model)
    assert f"{path}: not a program that ONNX Runtime loads" in refuse()


def test_gif_in_a_folder_that_is_not_there(refuse, tmp_path):
    assert str(tmp_path / "nosuch") in refuse("--gif", str(tmp_path / "nosuch" / "pong.gif"))


@pytest.mark.parametrize("seed", [str(2**31), str(-(2**31) - 1)])
def test_seed_that_the_emulator_does_not_take(model, capfd, seed):
    try:
        status = play.main([str(model), "--seed", seed])
    except SystemExit as exit_:
        status = exit_.code
    assert status in (1, 2)
    assert seed in capfd.readouterr().err


@pytest.fixture
def manifest(workspace):
    return play.read_manifest(workspace / "models/dqn")


def screens(manifest, actions, seed=0):
    emulator = play.make_environment(manifest, seed)
    shown = []
    for action in actions:
        emulator.step(action)
        shown.append(emulator.observation.copy())
    return np.stack(shown)


def test_action_index_goes_through_the_manifest(manifest):
    """Index 2 is ALE's action 3; with the table turned round the same game takes the mirrored indices."""
    assert [action.value for action in play.make_environment(manifest, 0).actions] == [0, 1, 3, 4, 11, 12]
    actions = [step // 5 % 6 for step in range(60)]
    played = screens(manifest, actions)
    turned = manifest | {"actions": manifest["actions"][::-1]}
    assert [action.value for action in play.make_environment(turned, 0).actions] == [12, 11, 4, 3, 1, 0]
    assert not np.array_equal(screens(turned, actions), played)
    assert np.array_equal(screens(turned, [5 - action for action in actions]), played)


def test_game_is_the_seed_s(manifest):
    actions = [step // 5 % 6 for step in range(60)]
    for seed in (0, 1):
        assert np.array_equal(screens(manifest, actions, seed), screens(manifest, actions, seed))
    assert not np.array_equal(screens(manifest, actions, 0), screens(manifest, actions, 1))


def test_episode_ends_after_its_steps(manifest):
    emulator = play.make_environment(manifest, 0)
    steps = 0
    while not emulator.done:
        emulator.step(0)
        steps += 1
    assert steps == manifest["environment"]["max_episode_steps"]


@pytest.mark.filterwarnings("ignore:Rom nosuch not supported:UserWarning")  # ale-py's own
def test_game_that_is_not_there(manifest):
    with pytest.raises(play.UserError, match="nosuch"):
        play.make_environment(manifest | {"environment": manifest["environment"] | {"rom": "nosuch"}}, 0)


class TestPlayer:
    """The memory, with a program that tells what it was given."""

    MANIFEST = {  # noqa: RUF012
        "inputs": [
            {"name": "observation", "dtype": "uint8", "shape": ["batch", 2]},
            {"name": "count", "dtype": "float32", "shape": ["batch", 1]},
            {"name": "is_init", "dtype": "bool", "shape": ["batch", 1]},
        ],
        "states": [{"input": "count", "output": "next_count"}],
    }

    @staticmethod
    def count(inputs):
        """Steps since the start of each episode."""
        steps = np.where(inputs["is_init"], 0, inputs["count"]) + 1
        return {"action": steps[:, 0].astype(np.int64), "next_count": steps.astype(np.float32)}

    def decide(self, player):
        return player.step(np.zeros((player.feed["count"].shape[0], 2), np.uint8))["action"].tolist()

    def test_states_go_round(self):
        player = play.Player(self.count, self.MANIFEST, batch=2)
        assert [self.decide(player) for _ in range(3)] == [[1, 1], [2, 2], [3, 3]]

    def test_reset_starts_anew(self):
        player = play.Player(self.count, self.MANIFEST)
        decided = [self.decide(player), self.decide(player)]
        player.reset()
        assert [*decided, self.decide(player)] == [[1], [2], [1]]

    def test_rows_that_are_kept_go_on_in_the_order_given(self):
        player = play.Player(self.count, self.MANIFEST, batch=3)
        self.decide(player)
        player.feed["count"][:, 0] = [10, 20, 30]
        player.keep([2, 0])
        assert self.decide(player) == [31, 11]
