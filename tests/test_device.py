"""The player, from the repository and as the copy that lies in a model folder."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image, ImageSequence
from pipeline_helpers import change_manifest

from policy_export.config.profile import load_profile
from policy_export.device.command import load_program, main
from policy_export.device.environments import make_environment, play
from policy_export.device.errors import UserError
from policy_export.device.manifest import read_manifest, sha256
from policy_export.device.native_library import NATIVE
from policy_export.device.player import Player
from policy_export.program.calls import wrap
from policy_export.program.step import load_step

pytestmark = pytest.mark.slow

# The player as a device has it: nothing else of this repository, and none of what only training needs.
ON_A_DEVICE = """
import runpy, sys

ABSENT = ("torch", "torchrl", "tensordict", "gymnasium", "stages", "studies", "pydantic", "onnx", "safetensors")

class Absent:
    def find_spec(self, name, path=None, target=None):
        top, _, room = name.partition(".")
        if top in ABSENT or top == "policy_export" and (COPIED or room and room.partition(".")[0] != "device"):
            raise ModuleNotFoundError(f"{name} is not on the device", name=name)

sys.meta_path.insert(0, Absent())
"""
WAYS = {
    "copy": ON_A_DEVICE + "COPIED = True\nrunpy.run_path('models/dqn/player', run_name='__main__')\n",
    "package": ON_A_DEVICE + "COPIED = False\nrunpy.run_module('policy_export.device', run_name='__main__')\n",
}


@pytest.fixture
def device(model):
    """Give a folder with a model folder, and nothing else."""
    return model.parents[1]


@pytest.fixture
def start(device, root, tmp_path_factory):
    """Start Python in that folder, where it finds the repository only if ``way`` is the package."""
    absent = tmp_path_factory.mktemp("absent")  # though the repository is installed
    (absent / "policy_export.py").write_text("""raise ModuleNotFoundError("No module named 'policy_export'")""")

    def run(*words, way="copy", cwd=device):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"PYTHONPATH": str({"package": root}.get(way, absent))}
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


@pytest.fixture(params=WAYS)
def play_there(request, start):
    return lambda *arguments: start("-c", WAYS[request.param], *arguments, way=request.param)


@pytest.fixture
def refuse(model, capfd):
    """Run the player here, expect one line of error; returns it. Libraries may not add lines of their own."""

    def run(*arguments):
        status = main([str(model), *arguments])
        output = capfd.readouterr()
        assert status == 1
        (line,) = output.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


def change_facts(model, **facts):
    """Change what both the manifest and policy.onnx say."""
    program = onnx.load(model / "policy.onnx")
    told = {prop.key: prop.value for prop in program.metadata_props}
    told["facts"] = json.dumps(json.loads(told["facts"]) | facts)
    onnx.helper.set_model_props(program, told)
    onnx.save(program, model / "policy.onnx")
    change_manifest(model, lambda manifest: manifest.update(facts))
    seal(model)


def seal(model, name="policy.onnx"):
    """Make the manifest's hash that of the file as it is."""
    change_manifest(model, lambda manifest: manifest["files"][name].update(sha256=sha256(model / name)))


def eager_episode(workspace, monkeypatch, seed):
    """Return the score and the number of decisions of the policy itself, on an emulator of its own."""
    monkeypatch.chdir(workspace)
    manifest = read_manifest(workspace / "models/dqn")
    player = Player(wrap(load_step("dqn", load_profile("dqn"))), manifest)
    rewards = [reward for reward, _ in play(player, seed)]
    return sum(rewards), len(rewards)


def test_plays_on_a_device_what_the_policy_plays(play_there, device, workspace, monkeypatch):
    done = play_there("models/dqn", "--episodes", "2", "--seed", "5", "--gif", "pong.gif")
    assert (done.returncode, done.stderr) == (0, "")
    *episodes, mean = done.stdout.splitlines()
    expected = [eager_episode(workspace, monkeypatch, seed) for seed in (5, 6)]
    assert played(episodes) == expected
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


def test_stopped_by_ctrl_c(model):
    command = [sys.executable, str(model / "player"), "--episodes", "1000"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as playing:
        assert playing.stdout.readline().startswith("episode 1/1000")
        playing.send_signal(signal.SIGINT)
        _, told = playing.communicate()
    assert (playing.returncode, told) == (130, "error: stopped by SIGINT\n")


def test_missing_file_on_a_device(play_there, device):
    (device / "models/dqn/policy.onnx").unlink()
    done = play_there("models/dqn")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: models/dqn/policy.onnx: ")


def played(lines):
    """Return the score and the number of decisions of each episode."""
    return [tuple(map(int, re.findall(r"score (\S+)  decisions (\d+)", line)[0])) for line in lines]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("package", ["-m", "policy_export.device", "models/dqn"]),
        ("copy", ["models/dqn/player", "--episodes", "1"]),
        ("copy", ["models/dqn/player/__main__.py", "models/dqn"]),
        ("copy", ["-m", "models.dqn.player"]),
    ],
)
def test_ways_to_start_it(start, workspace, monkeypatch, way, words):
    done = start(*words, way=way)
    assert (done.returncode, done.stderr) == (0, "")
    assert played(done.stdout.splitlines()[:-1]) == [eager_episode(workspace, monkeypatch, 0)]


def test_model_folder_is_all_that_a_device_needs(start, model, tmp_path, workspace, monkeypatch):
    place = tmp_path / "empty"
    place.mkdir()
    model.rename(place / "dqn")
    assert "No module named 'policy_export'" in start("-c", "import policy_export", cwd=place).stderr
    done = start("dqn/player", "--episodes", "1", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert played(done.stdout.splitlines()[:-1]) == [eager_episode(workspace, monkeypatch, 0)]
    assert [path.name for path in place.iterdir()] == ["dqn"]


def test_info_tells_what_the_folder_holds(start, model):
    facts = {"unit": "rad", "gains": [20.0, 0.5]}
    change_manifest(model, lambda manifest: manifest.update(facts=facts, license="MIT", control_rate_hz=15.0))
    done = start("models/dqn/player", "--info")
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert told[:3] == ["policy dqn", "environment ALE/Pong-v5", "input observation uint8[batch, 210, 160, 3]"]
    assert f"facts {json.dumps(facts)}" in told
    assert {'license "MIT"', "control_rate_hz 15.0"} <= set(told)
    manifest = json.loads((model / "manifest.json").read_text())
    (line,) = (line for line in told if line.startswith("file policy.onnx "))
    assert manifest["files"]["policy.onnx"]["sha256"] in line
    assert "not checked: there is no verdict.json; `dvc repro` writes it" in told


def test_info_tells_what_the_check_has_found(start, model):
    manifest = json.loads((model / "manifest.json").read_text())
    program = {"file": "policy.onnx", "sha256": "ab", "passed": True, "decisions": 2000, "different": 0, "ties": 1}
    verdict = {"passed": True, "digest": manifest["digest"], "programs": {"onnx": program}}
    verdict |= {"report": "results/dqn/parity.json", "report_sha256": "cd"}

    def told(verdict):
        (model / "verdict.json").write_text(json.dumps(verdict))
        done = start("models/dqn/player", "--info")
        assert (done.returncode, done.stderr) == (0, "")
        return [line for line in done.stdout.splitlines() if "checked: " in line]

    assert told(verdict) == [
        "checked: passed, report results/dqn/parity.json, sha256 cd",
        "checked: onnx passed, 2,000 decisions, 0 other, 1 at ties, sha256 ab",
    ]
    program |= {"passed": False, "different": 3}
    assert told(verdict | {"passed": False})[1].startswith("checked: onnx FAILED, 2,000 decisions, 3 other")
    assert told(verdict | {"digest": "0"}) == ["not checked: verdict.json is of other files; run `dvc repro`"]
    assert told([]) == ["not checked: verdict.json is damaged: TypeError"]


@pytest.mark.parametrize("content", [b"def damaged(:", b"\xff", None], ids=["no Python", "no text", "missing"])
def test_damaged_file_of_the_copy_is_named_before_it_is_run(start, model, content):
    path = model / "player/gif.py"
    kept = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    done = start("models/dqn/player", "--info")
    path.write_bytes(kept)
    (told,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert told.startswith(
        f"error: {path.resolve()}: {'No such file' if content is None else 'damaged: its SHA-256 is '}"
    )


def test_copy_plays_the_folder_that_is_named(start, model):
    """Check that it plays its own folder only if none is named."""
    other = shutil.copytree(model, model.with_name("other"))
    (other / "policy.onnx").unlink()
    done = start("models/dqn/player", "models/other")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: models/other/policy.onnx: ")
    assert start("models/other/player", "models/dqn").returncode == 0
    done = start("models/other/player")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {other.resolve()}/policy.onnx: ")


@pytest.mark.parametrize(
    ("way", "words", "program", "folder"),
    [
        ("package", ["-m", "policy_export.device"], "python -m policy_export.device", "folder"),
        ("copy", ["models/dqn/player"], "python models/dqn/player", "[folder]"),
    ],
)
def test_usage_tells_how_it_is_started(start, way, words, program, folder):
    told = " ".join(start(*words, "--help", way=way).stdout.split())
    assert told.startswith(f"usage: {program} [-h] ")
    assert f" {folder} Play with an exported policy, without PyTorch. " in told
    done = start(*words, "--episodes", "0", way=way)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{program}: error: " in done.stderr


@pytest.mark.parametrize(("way", "words"), [("package", ["-m", "policy_export.device"]), ("copy", ["models/player"])])
def test_folder_is_required_outside_of_a_model_folder(start, model, way, words):
    (model / "player").rename(model.parent / "player")
    done = start(*words, way=way)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(": error: the following arguments are required: folder\n")
    assert start(*words, "models/dqn", way=way).returncode == 0


MINE = """
import gymnasium
import numpy as np


class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict(observation=gymnasium.spaces.Box(0, 255, (210, 160, 3), np.uint8))
    action_space = gymnasium.spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        return {"observation": np.zeros((210, 160, 3), np.uint8)}, {}

    def step(self, action):
        return {"observation": np.zeros((210, 160, 3), np.uint8)}, 2.0, False, False, {}


gymnasium.register("Mine-v0", entry_point=Mine)
"""


def test_environment_s_module_lies_beside_the_copy(start, model):
    """Check that the module is found where the error message says to put it."""
    environment = {"id": "mine:Mine-v0", "max_episode_steps": 5}
    change_facts(model, environment=environment)
    done = start("models/dqn/player")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("put it next to the folder `player`\n")
    (model / "mine.py").write_text(MINE)
    done = start("models/dqn/player")
    assert (done.returncode, done.stderr) == (0, "")
    assert played(done.stdout.splitlines()[:-1]) == [(10, 5)]


@pytest.mark.parametrize("episodes", ["0", "-1", "1.5"])
def test_number_of_episodes_that_cannot_be(model, capfd, episodes):
    with pytest.raises(SystemExit) as caught:
        main([str(model), "--episodes", episodes])
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


def test_manifest_with_a_native_library_alone(model, refuse):
    def change(manifest):
        manifest["files"][NATIVE] = manifest["files"].pop("policy.onnx")

    change_manifest(model, change)
    assert refuse() == f"error: {model / 'manifest.json'}: lists no policy.onnx, but a native library: use --native"
    assert f"{model / NATIVE}: " in refuse("--native")


def test_manifest_without_a_native_library(model, refuse):
    assert f"{model / 'manifest.json'}: lists no {NATIVE}" in refuse("--native")


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


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pong.png", "the name ends in '.png', must end in '.gif'"),
        ("pong.gif.mp4", "the name ends in '.mp4', must end in '.gif'"),
        ("pong", "the name has no ending, must end in '.gif'"),
    ],
)
def test_film_that_is_no_gif(refuse, tmp_path, name, told):
    assert refuse("--gif", str(tmp_path / name)) == f"error: --gif: {tmp_path / name}: {told}"
    assert not (tmp_path / name).exists()


def test_gif_that_is_a_folder(refuse, tmp_path):
    (tmp_path / "pong.gif").mkdir()
    assert refuse("--gif", str(tmp_path / "pong.gif")) == f"error: {tmp_path / 'pong.gif'}: is a folder, must be a file"


def test_film_has_the_first_screen_and_the_one_after_the_last_decision(model, tmp_path):
    """Check every screen of the film; like screens in a row are one frame, shown longer."""
    path = tmp_path / "PONG.GIF"
    assert main([str(model), "--seed", "5", "--gif", str(path)]) == 0
    manifest = read_manifest(model)
    _, run = load_program(model, manifest, native=False)
    expected = [make_environment(manifest, 5).observation]
    expected += [shown["observation"].copy() for _, shown in play(Player(run, manifest), 5)]
    assert not np.array_equal(expected[-1], expected[-2])
    different = [expected[0], *(new for old, new in itertools.pairwise(expected) if not np.array_equal(old, new))]
    with Image.open(path) as gif:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    assert len(frames) == len(different)
    assert all(map(np.array_equal, frames, different))


@pytest.mark.parametrize("seed", [str(2**31), str(-(2**31) - 1)])
def test_seed_that_the_emulator_does_not_take(model, capfd, seed):
    try:
        status = main([str(model), "--seed", seed])
    except SystemExit as exit_:
        status = exit_.code
    assert status in (1, 2)
    assert seed in capfd.readouterr().err


@pytest.fixture
def manifest(workspace):
    return read_manifest(workspace / "models/dqn")


def screens(manifest, actions, seed=0):
    emulator = make_environment(manifest, seed)
    shown = []
    for action in actions:
        emulator.step(action)
        shown.append(emulator.observation.copy())
    return np.stack(shown)


def test_action_index_goes_through_the_manifest(manifest):
    """Check that index 2 is ALE's action 3, and that a reversed table gives the same game with reversed indices."""
    assert [action.value for action in make_environment(manifest, 0).actions] == [0, 1, 3, 4, 11, 12]
    actions = [step // 5 % 6 for step in range(60)]
    played = screens(manifest, actions)
    turned = manifest | {"actions": manifest["actions"][::-1]}
    assert [action.value for action in make_environment(turned, 0).actions] == [12, 11, 4, 3, 1, 0]
    assert not np.array_equal(screens(turned, actions), played)
    assert np.array_equal(screens(turned, [5 - action for action in actions]), played)


def test_game_is_the_seed_s(manifest):
    actions = [step // 5 % 6 for step in range(60)]
    for seed in (0, 1):
        assert np.array_equal(screens(manifest, actions, seed), screens(manifest, actions, seed))
    assert not np.array_equal(screens(manifest, actions, 0), screens(manifest, actions, 1))


def test_episode_ends_after_its_steps(manifest):
    emulator = make_environment(manifest, 0)
    steps = 0
    while not emulator.done:
        emulator.step(0)
        steps += 1
    assert steps == manifest["environment"]["max_episode_steps"]


@pytest.mark.filterwarnings("ignore:Rom nosuch not supported:UserWarning")  # ale-py's own
def test_game_that_is_not_there(manifest):
    with pytest.raises(UserError, match="nosuch"):
        make_environment(manifest | {"environment": manifest["environment"] | {"rom": "nosuch"}}, 0)


class TestPlayer:
    """Tests of the memory, with a program that reports its inputs."""

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
        """Return the number of steps since the start of each episode."""
        steps = np.where(inputs["is_init"], 0, inputs["count"]) + 1
        return {"action": steps[:, 0].astype(np.int64), "next_count": steps.astype(np.float32)}

    def decide(self, player):
        return player.step(np.zeros((player.feed["count"].shape[0], 2), np.uint8))["action"].tolist()

    def test_states_go_round(self):
        player = Player(self.count, self.MANIFEST, batch=2)
        assert [self.decide(player) for _ in range(3)] == [[1, 1], [2, 2], [3, 3]]

    def test_reset_starts_anew(self):
        player = Player(self.count, self.MANIFEST)
        decided = [self.decide(player), self.decide(player)]
        player.reset()
        assert [*decided, self.decide(player)] == [[1], [2], [1]]

    def test_rows_that_are_kept_go_on_in_the_order_given(self):
        player = Player(self.count, self.MANIFEST, batch=3)
        self.decide(player)
        player.feed["count"][:, 0] = [10, 20, 30]
        player.keep([2, 0])
        assert self.decide(player) == [31, 11]
