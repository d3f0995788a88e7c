"""Which room may import which, and that stages are short and imported by nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_helpers import ROOT

from policy_export.stage.sources import imported_names, module_file

# From the lowest floor up: a room imports only those before it.
FLOORS = (
    ("device",),
    ("config",),
    ("stage",),
    ("environments",),
    ("program",),
    ("policies", "algorithms"),
    ("lowering",),
    ("localise",),
    ("backends",),
    ("parity",),
    ("benchmark", "report"),
    ("machine",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES = 60  # of a stage
PACKAGE = sorted(path.relative_to(ROOT) for path in (ROOT / "policy_export").rglob("*.py"))
STAGES = sorted(path.relative_to(ROOT) for path in (ROOT / "stages").glob("*.py"))
STUDIES = sorted(path.relative_to(ROOT) for path in (ROOT / "studies").rglob("*.py"))


def imports(path: Path) -> set[Path]:
    """Return the project's files that a file imports."""
    return {file for name in imported_names(path) if (file := module_file(name)) is not None}


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_room_has_a_floor():
    rooms = {path.parts[1] for path in PACKAGE if len(path.parts) > 2}
    assert rooms == set(FLOOR)


def test_no_arrow_goes_up():
    up = [
        f"{path} imports {imported}"
        for path in PACKAGE
        if len(path.parts) > 2
        for imported in imports(path)
        if imported.parts[0] == "policy_export" and len(imported.parts) > 2
        if FLOOR[imported.parts[1]] > FLOOR[path.parts[1]]
    ]
    assert up == []


def test_the_package_stands_on_its_own():
    outside = {
        f"{path} imports {imported}"
        for path in PACKAGE
        for imported in imports(path)
        if imported.parts[0] != "policy_export"
    }
    assert outside == set()


def test_nothing_imports_a_stage():
    for path in (*PACKAGE, *STAGES, *STUDIES):
        assert not [imported for imported in imports(path) if imported.parts[0] == "stages" and len(imported.parts) > 1]


def test_stages_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in STAGES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_circle_between_files():
    """Check that no file needs itself by way of others: such files cannot be understood one at a time."""
    files = {path: imports(path) - {path} for path in PACKAGE if path.stat().st_size}
    standing = dict(files)
    while free := [path for path, needed in standing.items() if not needed & set(standing)]:
        for path in free:
            del standing[path]
    assert standing == {}
