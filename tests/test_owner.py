"""A function of the owner's: what it is given, what it may give, and what is told of its mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from policy_export.config.errors import ProfileError
from policy_export.config.profile import Made
from policy_export.program.owner import Owner, load_reference

OUTPUTS = {"action": {"dtype": "float32", "shape": ["batch", 2]}}
SEVERAL = OUTPUTS | {"gear": {"dtype": "int64", "shape": ["batch"]}}
SHOWN = {"joints": np.arange(3.0, dtype=np.float32)}


def predict(joints):
    return 2 * joints[:2]


def make_predict(scale: float):
    return lambda joints: scale * joints[:2]


def make_nothing():
    return None


def fails():
    raise RuntimeError("no model\nhere")


def owner(function, outputs=OUTPUTS):
    return Owner("mine:predict", function, outputs, list(outputs))


@pytest.mark.parametrize(
    "reference", ["test_owner:predict", Made(factory="test_owner:make_predict", scale=2.0)], ids=["function", "factory"]
)
def test_function_decides_for_one_observation(reference):
    name, function = load_reference(reference)
    assert name.startswith("test_owner:")
    found = owner(function).decide(SHOWN, begins=True)["action"]
    assert (found.dtype, found.tolist()) == (np.float32, [0.0, 2.0])


def test_several_observations_and_actions_go_by_name():
    shown = SHOWN | {"camera": np.zeros((2, 2), np.uint8)}

    def both(seen):
        return {"action": seen["joints"][:2].astype(np.float64), "gear": int(seen["camera"].sum())}

    found = owner(both, SEVERAL).decide(shown, begins=True)
    assert {name: (str(array.dtype), array.shape) for name, array in found.items()} == {
        "action": ("float32", (2,)),
        "gear": ("int64", ()),
    }


def test_function_with_a_memory_is_told_where_an_episode_begins():
    told = []

    def remember(joints, is_init):
        told.append(is_init)
        return joints[:2]

    asked = owner(remember)
    for begins in (True, False):
        asked.decide(SHOWN, begins=begins)
    assert told == [True, False]


def test_function_may_write_into_what_it_is_given():
    def overwrite(joints):
        joints *= 0
        return joints[:2]

    owner(overwrite).decide(SHOWN, begins=True)
    assert SHOWN["joints"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _: np.zeros(3), r"'mine:predict' gives float64\[3\] as action, the policy gives float32\[2\]"),
        (lambda _: [1, 2], r"'mine:predict' gives int64\[2\] as action, the policy gives float32\[2\]"),
        (lambda _: None, r"'mine:predict' gives object\[\] as action"),
        (lambda _: {"move": np.zeros(2)}, r"'mine:predict' gives object\[\] as action"),
        (lambda _: 1 / 0, r"'mine:predict' fails: ZeroDivisionError: division by zero"),
    ],
)
def test_mistake_of_the_function_is_told(function, message):
    with pytest.raises(ProfileError, match=message) as caught:
        owner(function).decide(SHOWN, begins=True)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("test_owner:nosuch", "reference.factory: 'test_owner:nosuch': module 'test_owner' has no attribute 'nosuch'"),
        (Made(factory="test_owner:fails"), "reference.factory: 'test_owner:fails' fails: no model here"),
        (
            Made(factory="test_owner:make_nothing"),
            "reference.factory: 'test_owner:make_nothing' makes a NoneType, no function",
        ),
        (Made(factory="test_owner:make_predict", scal=2.0), "reference.scal: 2.0: unknown key; known here: scale"),
    ],
)
def test_reference_that_cannot_be_made(reference, message):
    with pytest.raises(ProfileError) as caught:
        load_reference(reference)
    assert message in str(caught.value)
