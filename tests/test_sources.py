"""Changes that count as a change of code."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_export.stage.sources import hash_meaning, needed_files

CODE = '''
"""A module."""
LIMIT = 3


def check(number):
    """Hold a number against the limit."""
    reason = f"{number} is more than {LIMIT}"
    path = "models/policy.onnx"
    if number > LIMIT:
        raise ValueError(f"{path}: {reason}, at most {LIMIT}")
    return "a word of the result", number
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""A module."""', '"""Another text."""', True),
        ('"""Hold a number against the limit."""', "# Hold it", True),
        ("is more than", "is greater than", True),
        (", at most", ", must not exceed", True),
        ("LIMIT = 3", "LIMIT = 3  # why", True),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("number > LIMIT", "number >= LIMIT", False),
        ("models/policy.onnx", "models/other.onnx", False),
        ("a word of", "two words of", False),
        ("ValueError", "TypeError", False),
    ],
)
def test_what_changes_the_hash(tmp_path, old, new, same):
    assert old in CODE
    hashes = []
    for text in (CODE, CODE.replace(old, new)):
        path = tmp_path / "module.py"
        path.write_text(text)
        hashes.append(hash_meaning(path))
    assert (hashes[0] == hashes[1]) is same


def test_modules_that_are_imported_anywhere_are_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("package/inner").mkdir(parents=True)
    Path("package/__init__.py").touch()
    Path("package/inner/__init__.py").write_text("SIDE = 1\n")
    Path("package/inner/one.py").write_text("def later():\n    from ..two import thing\n")
    Path("package/two.py").write_text("import json\nthing = 1\n")
    found = needed_files(["package.inner.one"])
    assert found == {Path("package/inner/__init__.py"), Path("package/inner/one.py"), Path("package/two.py")}
