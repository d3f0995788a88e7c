"""README and docs: their figures, pictures, links, and every command and program in them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import networkx as nx
import numpy as np
import pytest
from dvc.repo import Repo
from markdown_it import MarkdownIt
from markdown_it.token import Token
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pipeline_helpers import ONE_POLICY, ROOT, change_params, copy_project, run

from policy_export.device.command import load_program
from policy_export.device.manifest import read_manifest
from policy_export.device.player import Player
from policy_export.report import tables

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
GENERATED = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
MARKDOWN = MarkdownIt("commonmark").enable("table")
MOST_LINES = 150  # of README
MOST_BYTES = 500_000  # of its picture
EXPERIMENTS = "experiments.md"  # tests/test_experiments.py runs its commands, in a pipeline of fewer stages
NEEDS_A_DEVICE = "<!-- needs a device -->"
# Commands that are not run here, and what runs them or why nothing does.
ELSEWHERE = {
    "make install": ".github/workflows/ci.yml",
    "source .venv/bin/activate": "tests run in an environment",
    "make report": "test_repro.py runs its stage in a pipeline that is built",
    "python -m http.server --directory results": "serves until it is stopped",
    "make repro": ".github/workflows/ci.yml",
    "make test": ".ci/run",
    "make test-fast": "a part of `make test`",
    "make studies": "tests/test_other_policies.py",
    "make seeds": "tests/test_seeds.py",
    "python -m studies.seeds dqn --seeds 4": "tests/test_seeds.py",
    "make campaign": "tests/test_campaign.py",
    "dvc repro": "tests/test_repro.py",
    "dvc repro studies/dvc.yaml:compare@dqn": "tests/test_other_policies.py",
    "dvc repro studies/dvc.yaml:quantise@dqn": "tests/test_other_policies.py",
    "dvc repro studies/dvc.yaml:search_settings@dqn": "tests/test_search_settings.py",
    "dvc repro studies/dvc.yaml:fault_suite": "tests/test_fault_suite.py",
    """python -c "import torch, swing; torch.save(swing.make_network().state_dict(), 'swing.pt')\"""": (
        "tests/test_bring_your_own.py"
    ),
    "pip install pre-commit && pre-commit install": "downloads, and changes the user's git",
}


class Block(NamedTuple):
    """A block of code in a page."""

    language: str
    text: str
    needs_a_device: bool


def parse(path: Path) -> list[Token]:
    return MARKDOWN.parse(path.read_text())


def blocks(path: Path, language: str) -> list[Block]:
    tokens = parse(path)
    before = [None, *tokens]
    return [
        Block(
            token.info,
            token.content,
            previous is not None and previous.type == "html_block" and NEEDS_A_DEVICE in previous.content,
        )
        for previous, token in zip(before, tokens, strict=False)
        if token.type == "fence" and token.info == language
    ]


def commands(path: Path) -> list[str]:
    """Return the commands of a page that need no device, without their comments."""
    lines = [
        line.partition(" #")[0].strip()
        for block in blocks(path, "sh")
        if not block.needs_a_device
        for line in block.text.splitlines()
    ]
    return [line for line in lines if line]


def targets(path: Path) -> Iterator[str]:
    """Yield what a page links to or shows."""
    for token in parse(path):
        for child in token.children or ():
            if child.type in {"link_open", "image"}:
                yield str(child.attrGet("href") or child.attrGet("src"))


def anchors(path: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    tokens = parse(path)
    headings = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def cog(folder: Path) -> subprocess.CompletedProcess[str]:
    """Say which blocks in a folder's pages are not what its results make them."""
    words = ("-m", "cogapp", "-P", "--check", "--diff", *GENERATED)
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_figures_are_those_of_the_results(tmp_path):
    """Check the pages against the results at hand, or, where these are newer than the last commit, against that."""
    found = cog(ROOT)
    if found.returncode:
        committed = subprocess.run(
            ["git", "archive", "HEAD", "results", "studies", "dvc.lock", "dvc.yaml", "params.yaml"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        subprocess.run(["tar", "--extract"], input=committed.stdout, cwd=tmp_path, check=True)
        (tmp_path / "docs").mkdir()
        for name in GENERATED:
            shutil.copyfile(ROOT / name, tmp_path / name)
        found = cog(tmp_path)
    assert found.returncode == 0, f"run `make docs`:\n{found.stdout}{found.stderr}"


def test_another_figure_is_noticed(tmp_path):
    for name in ("results", "studies/results", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "params.yaml", "dvc.yaml", "dvc.lock", "studies/dvc.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    path = tmp_path / "results/dqn/train.json"
    content = json.loads(path.read_text())
    content["evaluation"]["mean_score"] -= 1
    path.write_text(json.dumps(content))
    changed = {line.split()[1] for line in cog(tmp_path).stdout.splitlines() if line.endswith("(changed)")}
    assert {"README.md", "docs/training.md"} <= changed


def test_tables_bear_results_that_are_absent_or_invalid(tmp_path, monkeypatch):
    """Check policies that have no results yet, one that is timed badly, and one without scores and episodes."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    made = [getattr(tables, name) for name in dir(tables) if name.endswith("_table")]
    assert {make() for make in made} == {"There are no results yet.", "No row is INVALID."}
    for name in ("train", "parity", "bench"):
        content = json.loads((ROOT / f"results/dqn/{name}.json").read_text())
        match name:
            case "train":
                content["evaluation"] = None
            case "parity":
                for entry in content["programs"].values():
                    entry.pop("closed_loop", None)
            case "bench":
                content["programs"]["onnx"] |= {"valid": False, "reason": "too noisy", "p50_us": 12345.6}
                content["programs"]["eager"] |= {"valid": False, "reason": "wrong outputs", "p50_us": None}
        path = tmp_path / f"results/dqn/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    assert "| 12,346 INVALID" in tables.summary_table()
    assert "`drqn`" not in tables.summary_table()
    assert "| too noisy " in tables.invalid_table()
    assert all(make() for make in made)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES
    assert (ROOT / "docs/pong.gif").stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/architecture.md"], ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC's own use of a library of its own
def test_picture_of_the_stages_is_the_graph_that_dvc_runs(page):
    (picture,) = blocks(page, "mermaid")
    drawn = nx.DiGraph(
        (one, other)
        for line in picture.text.splitlines()[1:]
        for ones, others in [line.strip().split(" --> ")]
        for one in ones.split(" & ")
        for other in others.split(" & ")
    )
    with contextlib.chdir(ROOT):
        graph = Repo(str(ROOT)).index.graph
    edges = [
        (needed.name.partition("@")[0], stage.name.partition("@")[0])
        for stage, needed in graph.edges
        if {stage.path_in_repo, needed.path_in_repo} == {"dvc.yaml"}
    ]
    real = nx.DiGraph(edges)
    assert set(drawn.edges) <= set(real.edges)
    assert set(nx.transitive_closure(drawn).edges) == set(nx.transitive_closure(real).edges)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in targets(page):
        parts = urlsplit(target)
        if parts.scheme:
            continue
        path = page.parent / unquote(parts.path) if parts.path else page
        assert path.exists(), target
        assert not parts.fragment or parts.fragment in anchors(path), target


def test_architecture_names_every_stage_room_and_folder():
    text = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "policy_export").glob("*/__init__.py")}
    assert {name for name in rooms if f"| `{name}` |" not in text} == set()
    folders = {Path(name).parts[0] for name in run("git", "ls-files", cwd=ROOT).stdout.splitlines() if "/" in name}
    assert {name for name in folders if name[0] != "." and f"| `{name}/" not in text} == set()


def test_training_names_every_algorithm():
    text = (ROOT / "docs/training.md").read_text()
    modules = {path.stem for path in (ROOT / "policy_export/config/training").glob("*.py")} - {"__init__", "base"}
    assert {name for name in modules if f"| `{name}` |" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_code_stands_in_blocks_of_a_known_kind(page):
    """Check that no command hides from these tests in a block of another kind."""
    tokens = parse(page)
    assert [token.content for token in tokens if token.type == "code_block"] == []
    kinds = {token.info for token in tokens if token.type == "fence"}
    assert kinds <= {"sh", "python", "yaml", "c", "mermaid", "text"}


def test_what_is_said_to_be_run_elsewhere_is_in_a_page():
    assert set(ELSEWHERE) <= {command for page in PAGES for command in commands(page)}
    files = [where for where in ELSEWHERE.values() if where.startswith(("tests/", "."))]
    assert [where for where in files if not (ROOT / where).is_file()] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Give a small project after README's ``dvc repro``, committed; it must not be changed."""
    folder = tmp_path_factory.mktemp("docs")
    copy_project(folder)
    change_params(folder / "params.yaml", ONE_POLICY)
    (folder / ".venv").mkdir()
    (folder / ".venv/installed").touch()  # what `make` looks at
    (build,) = (line for line in commands(ROOT / "README.md") if line == "dvc repro parity_check@dqn")
    run("bash", "-euc", build, cwd=folder)
    (program,) = blocks(ROOT / "README.md", "c")
    (folder / "play.c").write_text(program.text)
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "Built", cwd=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != EXPERIMENTS and set(commands(page)) - set(ELSEWHERE)],
    ids=lambda path: path.name,
)
def test_commands_work(page, built, tmp_path):
    """Run what a page says, line by line, in a copy of a project that has been built."""
    project = shutil.copytree(built, tmp_path / "project", symlinks=True)
    for command in commands(page):
        if command not in ELSEWHERE:
            run("bash", "-euc", command, cwd=project)


@pytest.mark.slow
def test_program_in_c_decides_as_the_policy(built, tmp_path):
    """Compile README's program as it says, and hold its actions against those of policy.onnx."""
    project = shutil.copytree(built, tmp_path / "project", symlinks=True)
    (compile_it,) = (line for line in commands(ROOT / "README.md") if line.startswith("gcc -Wall -Werror "))
    run("bash", "-euc", compile_it, cwd=project)
    screens = np.random.default_rng(0).integers(0, 256, (20, 210, 160, 3), dtype=np.uint8)
    played = subprocess.run(["./play"], input=screens.tobytes(), cwd=project, capture_output=True, check=True)
    folder = project / "models/dqn"
    manifest = read_manifest(folder)
    player = Player(load_program(folder, manifest, native=False)[1], manifest)
    assert [int(line) for line in played.stdout.split()] == [player.act(screen) for screen in screens]


def needed(names: list[str]) -> set[str]:
    """Return the packages that pip installs for these."""
    found, open_ones = set(), [canonicalize_name(name) for name in names]
    while open_ones:
        name = open_ones.pop()
        if name not in found:
            found.add(name)
            requirements = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
            open_ones += [
                canonicalize_name(one.name)
                for one in requirements
                if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/devices.md"], ids=lambda path: path.name)
def test_packages_for_a_device_are_all_that_the_player_needs(page, built, tmp_path):
    """Play, film and test with nothing but what the page installs, and what that needs itself."""
    lines = [line for block in blocks(page, "sh") if block.needs_a_device for line in block.text.splitlines()]
    (line,) = (line for line in lines if " pip install " in line)
    packages = shlex.split(line, comments=True)[4:]
    site = tmp_path / "site"
    site.mkdir()
    for distribution in map(importlib.metadata.distribution, needed(packages)):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (site / name).symlink_to(Path(str(distribution.locate_file(name))))
    player = str(shutil.copytree(built / "models/dqn", tmp_path / "dqn") / "player")
    for words in (["--selftest"], ["--gif", "pong.gif"], ["--native"]):
        run(sys.executable, "-S", player, *words, cwd=tmp_path, project=site)
    assert not list(site.glob("torch"))
    assert (tmp_path / "pong.gif").stat().st_size
