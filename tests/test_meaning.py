"""What a profile says of the numbers' meaning is held against the policy, and no training or export waits for it."""

from __future__ import annotations

import pytest

from policy_export.algorithms.training import Checkpoint
from policy_export.config.errors import ProfileError
from policy_export.config.profile import Profile, check
from policy_export.device.errors import UserError
from policy_export.program.meaning import check_names
from policy_export.program.step import Signature, TensorInfo

SIGNATURE = Signature(
    [TensorInfo("joints", "float32", ["batch", 2]), TensorInfo("camera", "uint8", ["batch", 2, 2, 1])],
    [TensorInfo("action", "int64", ["batch"])],
    [],
)


def profile_of(**meaning):
    content = {
        "env": {"id": "CartPole-v1", "max_episode_steps": 30},
        "preprocess": None,
        "policy": {"factory": "mine:make_policy"},
        "train": {"algorithm": "none", "device": "cpu", "seed": 0, "eval_episodes": 2},
    }
    return check(Profile, content | meaning)


def test_names_that_fit():
    names = {"joints": ["hip", "knee"], "camera": ["a", "b", "c", "d"], "action": ["push"]}
    check_names(profile_of(names=names), SIGNATURE)
    check_names(profile_of(), SIGNATURE)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"joints": ["hip"]}, r"^names.joints: 1 names, the entry has 2 numbers, \[2\]$"),
        ({"arms": ["hip"]}, r"^names.arms: the policy has no such entry, only joints, camera, action$"),
    ],
)
def test_names_that_do_not_fit(names, message):
    with pytest.raises(ProfileError, match=message):
        check_names(profile_of(names=names), SIGNATURE)


@pytest.mark.parametrize(
    ("meaning", "message"),
    [
        ({"names": {"joints": ["hip", "hip"]}}, "names: joints: 'hip' stands there twice"),
        ({"names": {"joints": "hip"}}, "names.joints: 'hip': input should be a valid list"),
        ({"facts": {"limit": float("inf")}}, "facts: holds a number that is not finite"),
        ({"control_rate_hz": 0}, "control_rate_hz: 0: input should be greater than 0"),
        ({"control_rate": 50}, "control_rate: 50: unknown key; known here: env, "),
    ],
)
def test_mistake_is_one_line(meaning, message):
    with pytest.raises(UserError) as caught:
        profile_of(**meaning)
    assert str(caught.value).startswith(f"params.yaml: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_interrupted_training_goes_on_with_other_facts(profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = profile.model_copy(update={"facts": {"unit": "rad"}, "control_rate_hz": 50.0})
    assert Checkpoint("mine", other).path == Checkpoint("mine", profile).path
