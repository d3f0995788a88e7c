"""Parameters are what DVC takes them for, whose parser is another."""

from __future__ import annotations

import pytest
from dvc.utils.serialize import parse_yaml_for_update
from pipeline_helpers import ROOT
from ruamel.yaml import YAML
from yaml import YAMLError

from policy_export.config.core_schema import read_yaml

FLOATS = [
    "1e-4",
    "1e5",
    "1E+3",
    "1.5e3",
    "1e",
    ".5",
    "5.",
    "1.",
    "3.0",
    "-1.5",
    "12e03",
    "0.1.2",
    ".nan",
    "-.inf",
    ".INF",
]
WHOLE = ["-0", "+1", "007", "0o17", "0x1F", "0x", "0b11", "1_000", "1:30"]
WORDS = ["yes", "no", "on", "off", "y", "n", "true", "True", "TRUE", "false", "~", "null", "Null", "None", "nan", "inf"]
QUOTED = ["'1'", '"yes"', "-", "--"]


@pytest.mark.parametrize("text", [*FLOATS, *WHOLE, *WORDS, *QUOTED])
def test_scalar_is_what_dvc_reads(text):
    content = f"key: {text}\nlist: [a, {text}]\n" if text != "-" else "key: '-'\n"
    assert repr(read_yaml(content)) == repr(YAML(typ="safe", pure=True).load(content))


@pytest.mark.parametrize("file", ["params.yaml", "studies/params.yaml", "dvc.yaml"])
def test_file_is_what_dvc_reads(file):
    text = (ROOT / file).read_text()
    assert read_yaml(text) == YAML(typ="safe", pure=True).load(text) == parse_yaml_for_update(text, file)


def test_merged_keys():
    assert read_yaml("a: &a {b: 1}\nc: {<<: *a, b: 2, d: 3}\n") == {"a": {"b": 1}, "c": {"b": 2, "d": 3}}


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2\n", "a: {b: 1, c: 2, b: 1}\n", "a: [\n", "a: !!python/name:os.system x\n"]
)
def test_what_is_no_parameters(text):
    with pytest.raises(YAMLError):
        read_yaml(text)
