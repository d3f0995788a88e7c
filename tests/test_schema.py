"""The device's own reading of JSON Schema, held against a library's."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import jsonschema
import pytest
from campaign import mutate

from policy_export.config.manifest_schema import Manifest
from policy_export.device.schema import first_mistake

SCHEMA = Manifest.model_json_schema()
STATES = [{"input": "frames", "output": "next_frames", "start": "zeros; ignored where is_init is true"}]


@pytest.fixture
def manifest(workspace) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace / "models/dqn/manifest.json").read_text())
    assert first_mistake(content, SCHEMA) is None
    return content


def test_the_same_is_refused_as_by_a_library(manifest):
    chance, validator = random.Random(0), jsonschema.Draft202012Validator(SCHEMA)
    refused = 0
    for _ in range(1500):
        changed = copy.deepcopy(manifest)
        what = mutate(changed, chance)
        mistake = first_mistake(changed, SCHEMA)
        if "1e+30" not in what or mistake is None:  # a whole number to JSON Schema, and none that Python counts with
            assert (mistake is None) == validator.is_valid(changed), f"{what}: {mistake}"
        refused += mistake is not None
    assert 300 < refused < 1400


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("states", 0.5, "states: is 0.5, must be of type array"),
        ("states", [STATES], "states.0: is [{'input': 'frames', "),
        ("inputs", [0], "inputs.0: is 0, must be of type object"),
        ("schema_version", 2, "schema_version: is 2, must be one of 1"),
    ],
)
def test_the_key_is_named_with_what_is_allowed(manifest, key, value, told):
    mistake = first_mistake(manifest | {key: value}, SCHEMA)
    assert mistake is not None
    assert mistake.startswith(told)


def test_what_is_missing_is_named(manifest):
    del manifest["states"], manifest["programs"]["onnx"]["file"]
    assert first_mistake(manifest, SCHEMA) == "states: is missing"
    manifest["states"] = STATES
    assert first_mistake(manifest, SCHEMA) == "programs.onnx.file: is missing"
