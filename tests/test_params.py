from __future__ import annotations

import functools
import math
import operator

import pytest
from ruamel.yaml import YAML

from policy_export.config import params
from policy_export.config.profile import load_profile
from policy_export.device.errors import UserError

MISSING = object()
DQN = "policies.dqn"


@pytest.fixture
def content(root):
    return YAML(typ="safe", pure=True).load((root / "params.yaml").read_text())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "params.yaml"


def mistakes(path) -> list[str]:
    with pytest.raises(UserError) as caught:
        params.load(path)
    return str(caught.value).splitlines()


def change(content, path, changes):
    """Write params.yaml with other values under dotted keys."""
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = functools.reduce(operator.getitem, parents, content)
        if value is MISSING:
            del section[last]
        else:
            section[last] = value
    YAML().dump(content, path)


def test_shipped_file_loads_as_written(root, content):
    loaded = params.load(root / "params.yaml")
    assert loaded.model_dump(exclude_unset=True) == content
    assert set(loaded.matrix) <= set(loaded.policies)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        # ill-typed
        (f"{DQN}.train.learning_rate", "1e-4", "number"),
        (f"{DQN}.train.learning_rate", True, "number"),
        (f"{DQN}.train.gamma", None, "number"),
        (f"{DQN}.train.return_ends_at_reward", 1, "boolean"),
        (f"{DQN}.train.return_ends_at_reward", "yes", "boolean"),
        (f"{DQN}.train.total_steps", 1.0e6, "integer"),
        (f"{DQN}.train.total_steps", "1000000", "integer"),
        (f"{DQN}.train.epochs", True, "integer"),
        (f"{DQN}.env.id", 5, "string"),
        (f"{DQN}.policy.factory", "make_policy", "match pattern"),
        (f"{DQN}.preprocess.size", 80, "list"),
        (f"{DQN}.preprocess.crop", [34, 0, 160, 160], "dictionary"),
        ("export_onnx", None, "dictionary"),
        ("matrix", "dqn", "list"),
        # out of range
        (f"{DQN}.env.frame_skip", 0, "greater than 0"),
        (f"{DQN}.env.repeat_action_probability", 1.5, "less than or equal to 1"),
        (f"{DQN}.preprocess.crop.top", -1, "greater than or equal to 0"),
        (f"{DQN}.preprocess.std", 0.0, "greater than 0"),
        (f"{DQN}.preprocess.resize", "cubic", "'nearest', 'area' or 'bilinear'"),
        (f"{DQN}.preprocess.grey", [1.0, 0.0], "3 items"),
        (f"{DQN}.preprocess.size", [80, 80, 1], "2 items"),
        (f"{DQN}.train.total_steps", -1, "greater than 0"),
        (f"{DQN}.train.minibatch_size", 0, "greater than 0"),
        ("matrix", [], "1 item"),
        ("export_onnx.opset", 99, "less than or equal to 24"),
        ("bench.warmup_queries", 0, "greater than 0"),
        ("record.seed", 2**31, "less than"),  # ale-py takes 32 bits
        # not finite
        (f"{DQN}.train.learning_rate", math.nan, "finite"),
        (f"{DQN}.train.max_grad_norm", math.inf, "finite"),
        (f"{DQN}.preprocess.mean", -math.inf, "finite"),
        (f"{DQN}.train.gamma", math.nan, "less than 1"),
        (f"{DQN}.train.gamma", 1.0, "less than 1"),
        ("parity_check.tolerance", math.nan, "finite"),
    ],
)
def test_bad_value_is_named(content, path, key, value, allowed):
    change(content, path, {key: value})
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: {key}: {value!r}: ")
    assert allowed in line


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("matrix", ["dqn", "nosuch"], ["matrix", "'nosuch'", "dqn"]),
        ("matrix", ["dqn", "dqn"], ["matrix", "['dqn', 'dqn']", "twice"]),
        (f"{DQN}.preprocess.size", [60, 80], ["size", "[60, 80]", "divisors", "[160, 160]"]),
        (f"{DQN}.preprocess.size", [320, 320], ["size", "[320, 320]", "divisors", "[160, 160]"]),
        (f"{DQN}.preprocess.grey", [0.0, 0.0, 0.0], ["grey", "[0.0, 0.0, 0.0]", "differ from 0"]),
        (f"{DQN}.env", {"id": "CartPole-v1", "max_episode_steps": 9}, ["preprocess", "must be null", "'CartPole-v1'"]),
        ("policies.dqn_replay.train.learning_starts", 50000, ["learning_starts is 50000", "below buffer_size"]),
        (f"{DQN}.train.algorithm", "sac", ["train.algorithm: 'sac'", "'dqn', 'none', 'ppo', 'pqn'"]),
    ],
)
def test_values_that_do_not_fit_together(content, path, key, value, said):
    crop = {"top": 34, "left": 0, "height": 160, "width": 160}
    content["policies"]["dqn"]["preprocess"] |= {"crop": crop, "resize": "nearest", "size": [80, 80]}
    change(content, path, {key: value})
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: ")
    assert [words for words in said if words not in line] == []


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("bnech", "bench"),
        ("export_onnx.version", "opset"),
        (f"{DQN}.trian", "train"),
        (f"{DQN}.train.lambda", "lambda_"),
        (f"{DQN}.preprocess.crop.bottom", "height"),
        (f"{DQN}.env.frameskip", "frame_skip"),
        ("policies.cartpole.env.frame_skip", "max_episode_steps"),
        ("policies.ppo.train.critic.layers", "hidden"),
        ("policies.ppo.train.epsilon_start", "clip_epsilon"),
    ],
)
def test_unknown_key_is_named_with_the_known_ones(content, path, key, known):
    change(content, path, {key: 7})
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: {key}: ")
    assert "7" in line
    assert known in line.split("known here")[1]


@pytest.mark.parametrize(
    "key", ["bench", "matrix", "record.seed", DQN + ".env", DQN + ".train.gamma", DQN + ".train.algorithm"]
)
def test_missing_key_is_named(content, path, key):
    change(content, path, {key: MISSING})
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: {key}: missing")


@pytest.mark.parametrize("actions", [0, [3, 0], "six", True, {"low": [0.0]}, {"low": [1.0], "high": [0.0]}])
def test_actions_of_a_recording_that_are_none(content, path, actions):
    env = {"recording": "seen.safetensors", "actions": actions}
    change(content, path, {f"{DQN}.env": env, f"{DQN}.preprocess": None})
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: {DQN}.env.actions: ")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("actions", [3, [3, 2], {"low": [-1.0], "high": [1.0]}])
def test_actions_of_a_recording_are_kept_as_they_are(content, path, actions):
    env = {"recording": "seen.safetensors", "actions": actions}
    train = {"algorithm": "none", "seed": 0, "eval_episodes": 1}
    change(content, path, {f"{DQN}.env": env, f"{DQN}.preprocess": None, f"{DQN}.train": train})
    assert load_profile("dqn", path).env.model_dump() == env


@pytest.mark.parametrize("name", ["..", ".hidden", "d q/n", "/tmp/dqn", "", "-f", "n" * 64])
def test_policy_s_name_is_that_of_a_folder(content, path, name):
    change(content, path, {"policies": content["policies"] | {name: content["policies"]["dqn"]}})
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: policies: {name!r}: a policy's folders have its name")
    with pytest.raises(UserError, match="a policy's folders have its name"):
        load_profile(name, path)


def test_nested_without_end(path):
    path.write_text("[" * 5000)
    (line,) = mistakes(path)
    assert line == f"{path}: not YAML that can be read: too many levels in each other"


def test_every_mistake_gets_a_line(content, path):
    change(content, path, {"bench.warmup_queries": 0, "record.seed": "x", f"{DQN}.env.id": MISSING, "foo": {"bar": 1}})
    lines = mistakes(path)
    assert len(lines) == 4
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert all(
        any(key in line for line in lines) for key in ("bench.warmup_queries", "record.seed", f"{DQN}.env.id", "foo")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bench: {queries: 1, queries: 2}", "duplicate key 'queries'"),
        ("bench: [1, 2", "not YAML"),
        ("a:\n\t- b", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: !!python/object:os.system ls", "not YAML"),
    ],
)
def test_file_that_is_not_yaml(path, text, said):
    path.write_text(text)
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: ")
    assert said in line


def test_bytes_that_are_no_text(path):
    path.write_bytes(b"\xff\xfe\xfa")
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: not YAML")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "[1, 2]", "text"])
def test_file_without_keys(path, text):
    path.write_text(text)
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: ")
    assert ": :" not in line  # a key that is empty
    assert "Params" not in line  # a class of ours, which tells a user nothing


def test_missing_file(path):
    (line,) = mistakes(path)
    assert line.startswith(f"{path}: No such file")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-05", 1e-5), ("1e-4", 1e-4), ("1.0e-3", 1e-3), ("2.5E+1", 25.0), ("1", 1.0)]
)
def test_numbers_as_people_and_dvc_write_them(root, path, text, value):
    lines = (root / "params.yaml").read_text().splitlines()
    path.write_text("\n".join(f"      learning_rate: {text}" if "learning_rate:" in line else line for line in lines))
    found = params.load(path).policies["dqn"].train.learning_rate
    assert (found, type(found)) == (value, float)


def test_profile_of_unknown_policy(root):
    with pytest.raises(UserError, match="no 'nosuch', only dqn"):
        load_profile("nosuch", root / "params.yaml")
