"""The proof in a reader's browser: Chromium, and Node with the same module, replay what the models were proven with."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from jinja2 import Environment, FileSystemLoader
from onnx import numpy_helper
from pipeline_helpers import ROOT, choose_programs
from playwright.sync_api import Page, sync_playwright
from ruamel.yaml import YAML
from safetensors.numpy import load, load_file, save_file

from policy_export.backends.manifest import write_manifest
from policy_export.config.profile import load_profile
from policy_export.device.manifest import observation_names, read_manifest
from policy_export.environments import episodes
from policy_export.environments.episodes import observe
from policy_export.program.policy import make_agent
from policy_export.program.weights import save_weights
from policy_export.report import episode
from policy_export.report.browser import EPISODE, prepare
from policy_export.report.episode import MOST_DECISIONS, changes, code_colours, pack_episode
from policy_export.report.web_runtime import WEB, MissingRuntimeError, copy_runtime
from stages.export_onnx import export_onnx
from stages.export_pt2 import export_pt2
from stages.golden import golden
from stages.record import record

pytestmark = pytest.mark.slow

STEPS = 150  # of drqn's episodes
RUNTIME = "onnxruntime-node@1.30.0"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")
TEMPLATES = ROOT / "policy_export/report/templates"
TRAIN = {"algorithm": "none", "device": "cpu", "seed": 0, "eval_episodes": 2}
# Several observations of all kinds; doubles and a vector of actions; several entries of actions.
OWN = {
    "robot": {"env": {"factory": "environments:robot"}, "policy": {"factory": "environments:masked"}},
    "car": {
        "env": {"id": "MountainCarContinuous-v0", "max_episode_steps": 40},
        "policy": {"factory": "environments:vector"},
    },
    "panel": {
        "env": {"id": "Panel-v0", "max_episode_steps": 20, "kwargs": {"kind": "entries"}},
        "policy": {"factory": "environments:choose_entries"},
    },
}
DECISIONS = {"dqn": 300, "drqn": STEPS, "robot": 20, "car": 40, "panel": 20}
DONE = "parts => parts.every(part => part.textContent === 'Prove it again')"


@pytest.fixture(scope="module")
def project(workspace, tmp_path_factory) -> Path:
    """Give a project with `workspace`'s policy, and others that are not trained either, after the same stages."""
    folder = tmp_path_factory.mktemp("browser") / "project"
    shutil.copytree(workspace, folder)
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load((folder / "params.yaml").read_text())
    content["policies"]["drqn"]["env"]["max_episode_steps"] = STEPS
    content["policies"] |= {name: {"preprocess": None, "train": TRAIN} | profile for name, profile in OWN.items()}
    content["record"] |= {"greedy_episodes": 1, "epsilon_episodes": 1}
    content["parity_check"]["min_observations"] = 1
    yaml.dump(content, folder / "params.yaml")
    with contextlib.chdir(folder):
        for policy in ("drqn", *OWN):
            torch.manual_seed(0)
            agent = make_agent(policy, load_profile(policy))
            save_weights(Path("models", policy, "policy.safetensors"), policy, agent.actor)
            choose_programs(folder, policy, ["pt2", "onnx"])
            for stage in (export_pt2, export_onnx, record, golden, write_manifest):
                stage(policy)
    return folder


@pytest.fixture(scope="module")
def site(project) -> Path:
    """Give the folder that is served: a page with this proof alone, and what it loads."""
    with contextlib.chdir(project):
        try:
            copy_runtime(project / "ort")
        except MissingRuntimeError as error:
            pytest.skip(f"ONNX Runtime for browsers cannot be had: {error}")
        assert prepare(Path("results/browser"), ["dqn", "none", "drqn", *OWN]) == list(DECISIONS)
    (project / "results/report.html").write_text(render(list(DECISIONS)))
    return project / "results"


@pytest.fixture
def changed(site, tmp_path) -> Path:
    """Give a copy of what is served, of one policy, to be damaged."""
    shutil.copytree(site, tmp_path / "results", ignore=shutil.ignore_patterns("drqn", *OWN))
    (tmp_path / "results/report.html").write_text(render(["dqn"]))
    return tmp_path / "results"


def render(proofs: list[str]) -> str:
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return "<!doctype html><meta charset=utf-8>" + templates.get_template("browser.html.j2").render(proofs=proofs)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder as `python -m http.server` does; yield the page's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/report.html"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def opened(address: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(address)
            yield page
        finally:
            browser.close()


def told(page: Page, policy: str, kind: str) -> list[str]:
    """Return what the page says of a policy: what is `good`, `bad`, or a `note`."""
    return page.locator(f"[data-policy={policy}] .told .{kind}").all_inner_texts()


def proven(folder: Path, policy: str = "dqn") -> dict[str, list[str]]:
    """Return what a page tells of a policy, by kind, after it was asked by its address to prove all."""
    with served(folder) as address, opened(f"{address}#prove") as page:
        wait(page)
        return {kind: told(page, policy, kind) for kind in ("good", "bad", "note")}


def wait(page: Page) -> None:
    page.wait_for_function(f"({DONE})([...document.querySelectorAll('#prove button')])", timeout=300_000)


@needs_chromium
@pytest.mark.parametrize("asked", ["#prove", "?prove"])
def test_page_proves_every_policy(site, asked):
    with served(site) as address, opened(address + asked) as page:
        wait(page)
        for policy, decisions in DECISIONS.items():
            assert told(page, policy, "bad") == []
            golden_line, episode_line = told(page, policy, "good")
            count = len(load_file(site / "browser" / policy / "golden.safetensors")["tie"])
            assert golden_line.startswith(f"{count} of {count} decisions as proven, ")
            assert golden_line.endswith(", on this device")  # behind the time, where the browser's clock tells it
            assert episode_line == f"episode: {decisions} of {decisions} decisions as recorded"
            names = observation_names(json.loads((site / "browser" / policy / "manifest.json").read_text()))
            captions = page.locator(f"[data-policy={policy}] figcaption").all_inner_texts()
            assert [caption.split(":")[0] for caption in captions] == names


@needs_chromium
def test_last_screen_is_drawn_as_it_was_seen(project, changed):
    with served(changed) as address, opened(f"{address}#prove") as page:
        wait(page)
        drawn = page.evaluate("""() => {
            const canvas = document.querySelector("canvas"), { width, height } = canvas;
            return [...canvas.getContext("2d").getImageData(0, 0, width, height).data];
        }""")
    *_, last = screens(project, "dqn", "observation")
    np.testing.assert_array_equal(np.reshape(drawn, (210, 160, 4))[..., :3], last)


@needs_chromium
def test_numbers_are_drawn(site):
    with served(site) as address, opened(address) as page:
        page.locator("[data-policy=robot] button").click()
        page.locator("[data-policy=robot] .good", has_text="episode").wait_for(timeout=60_000)
        empty = page.evaluate("""() => [...document.querySelectorAll("[data-policy=robot] canvas")].map((canvas) =>
            canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.every((byte) => !byte))""")
        assert empty == [False] * 4
        assert told(page, "dqn", "good") == []  # whose button was not pressed


@needs_chromium
def test_damaged_golden_value_is_told(changed):
    path = changed / "browser/dqn/golden.safetensors"
    tensors = load_file(path)
    tensors["output/action_value"][5, 2] += np.float32(3e-5)
    expected = float(tensors["output/action_value"][5, 2])
    save_file(tensors, path)
    found = proven(changed)
    assert found["bad"][0].startswith("golden.safetensors: its SHA-256 is ")
    assert found["bad"][1].startswith("63 of 64 decisions as proven, ")
    assert found["bad"][2].startswith("decision 5: action_value[2] is ")
    assert f", expected {expected}, 1.0e-5 allowed" in found["bad"][2]
    assert found["good"] == ["episode: 300 of 300 decisions as recorded"]


@needs_chromium
def test_other_action_is_told_unless_it_is_a_tie(changed):
    path = changed / "browser/dqn/golden.safetensors"
    tensors = load_file(path)
    tensors["output/action"][[3, 7]] = (tensors["output/action"][[3, 7]] + 1) % 6
    tensors["tie"][:] = False
    tensors["tie"][3] = True
    save_file(tensors, path)
    bad = proven(changed)["bad"]
    assert bad[1].startswith("63 of 64 decisions as proven, ")
    assert (
        bad[2]
        == f"decision 7: action is {(tensors['output/action'][7] - 1) % 6}, expected {tensors['output/action'][7]}"
    )


@needs_chromium
def test_altered_program_is_told(changed):
    path = changed / "browser/dqn/policy.onnx"
    model = onnx.load(path)
    bias = max((each for each in model.graph.initializer if list(each.dims) == [6]), key=lambda each: each.name)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[::-1] + np.float32(1), bias.name))
    onnx.save(model, path)
    found = proven(changed)
    assert found["good"] == []
    assert found["bad"][0].startswith(f"policy.onnx: its SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()}, ")
    assert found["bad"][1].startswith("0 of 64 decisions as proven, ")
    assert found["bad"][2].startswith("decision 0: action")


@needs_chromium
@pytest.mark.parametrize("name", ["policy.onnx", "golden.safetensors", EPISODE])
def test_cut_off_file_is_told(changed, truncate, name):
    truncate(changed / "browser/dqn" / name)
    assert proven(changed)["bad"] != []


@needs_chromium
def test_missing_files_are_told(changed):
    (changed / "browser/dqn" / EPISODE).unlink()
    found = proven(changed)
    assert found["bad"] == []
    assert "no recorded episode is beside this page" in found["note"]
    (changed / "browser/dqn/policy.onnx").unlink()
    assert proven(changed)["bad"] == ["browser/dqn/policy.onnx cannot be loaded: 404 File not found"]


@needs_chromium
def test_page_that_is_opened_as_a_file_says_how_to_serve_it(changed):
    with opened((changed / "report.html").as_uri() + "#prove") as page:
        page.locator("#prove .served").wait_for(state="visible")
        assert "python -m http.server --directory results" in page.inner_text("#prove")
        assert page.locator("#prove button").is_disabled()


def screens(project: Path, policy: str, name: str) -> list[np.ndarray]:
    """Return what was seen in the episode that is replayed, from the environment."""
    with contextlib.chdir(project):
        recorded, *_ = episodes.load(Path("data", policy, "episodes.safetensors"), policy)
        return [shown[name].copy() for shown in observe(recorded, read_manifest(Path("models", policy)))]


NODE = """
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";
import { decompress, read, replay, tell } from "./replay.mjs";
const [, , folder, file] = process.argv;
const { tensors } = read(await decompress(new Uint8Array(readFileSync(`${folder}/${file}`))));
const session = await ort.InferenceSession.create(`${folder}/policy.onnx`);
let count = 0;
for await (const decision of replay(ort, session, tensors)) {
  if (decision.difference) throw Error(tell(decision));
  count++;
}
const seen = {};
for (const [name, { row, rows }] of Object.entries(tensors).filter(([name]) => name.startsWith("input/"))) {
  const hash = createHash("sha256");
  for (let number = 0; number < rows; number++) hash.update(row(number));
  seen[name.slice("input/".length)] = hash.digest("hex");
}
console.log(JSON.stringify({ count, seen }));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Give a function that replays a file of a policy in Node."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(WEB / "replay.mjs", folder)
    (folder / "replayed.mjs").write_text(NODE)

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)

    done = run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", RUNTIME)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {RUNTIME}: {done.stderr.splitlines()[0]}")
    return lambda policy, file: run("node", "replayed.mjs", policy, file)


@pytest.mark.parametrize("policy", DECISIONS)
def test_node_replays_the_same(project, site, node, policy):
    done = node(site / "browser" / policy, "golden.safetensors")
    assert done.returncode == 0, done.stderr
    done = node(site / "browser" / policy, EPISODE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["count"] == DECISIONS[policy]
    manifest = json.loads((site / "browser" / policy / "manifest.json").read_text())
    for name in observation_names(manifest):
        seen = b"".join(shown.tobytes() for shown in screens(project, policy, name))
        assert found["seen"][name] == hashlib.sha256(seen).hexdigest()


def test_node_tells_damage(changed, node):
    path = changed / "browser/dqn/golden.safetensors"
    tensors = load_file(path)
    tensors["output/action_value"][5, 2] = np.nan
    save_file(tensors, path)
    done = node(path.parent, path.name)
    assert done.returncode != 0
    assert "decision 5: action_value[2] is " in done.stderr
    assert "expected NaN" in done.stderr


def test_same_models_make_the_same_files(project, site):
    with contextlib.chdir(project):
        for policy in DECISIONS:
            content = pack_episode(policy, read_manifest(Path("models", policy)))
            assert content == (site / "browser" / policy / EPISODE).read_bytes()


def test_episode_of_screens_is_small(site):
    assert (site / "browser/dqn" / EPISODE).stat().st_size < 100_000  # of 30 MB


def test_long_episode_is_cut_off(project, monkeypatch):
    monkeypatch.chdir(project)
    manifest = read_manifest(Path("models/dqn"))
    monkeypatch.setattr(episode, "MOST_DECISIONS", 100)
    whole = pack_episode("dqn", manifest)
    monkeypatch.setattr(episode, "MOST_BYTES", len(whole) - 1)
    assert MOST_DECISIONS > 300
    assert [rows(content) for content in (whole, pack_episode("dqn", manifest))] == [100, 50]


@pytest.fixture
def own(project, tmp_path, monkeypatch) -> Path:
    """Give a copy of one policy of the project, as the place where one is."""
    for folder in ("models/car", "data/car"):
        shutil.copytree(project / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change_episodes(**values) -> None:
    path = Path("data/car/episodes.safetensors")
    changed = [dataclasses.replace(recorded, **values) for recorded in episodes.load(path, "car")]
    episodes.save(path, "car", changed)


def test_random_actions_are_no_decisions_of_the_policy(own):
    manifest = read_manifest(own / "models/car")
    assert "recorded" in metadata(pack_episode("car", manifest))
    change_episodes(epsilon=0.1)
    assert "here" in metadata(pack_episode("car", manifest))


def metadata(content: bytes) -> str:
    unpacked = gzip.decompress(content)
    return json.loads(unpacked[8 : 8 + int.from_bytes(unpacked[:8], "little")])["__metadata__"]["decided"]


def test_recorded_action_is_what_is_expected(own, site, node):
    manifest, place = read_manifest(own / "models/car"), own / "served"
    recorded, *_ = episodes.load(Path("data/car/episodes.safetensors"), "car")
    seen = np.stack([shown["observation"].copy() for shown in observe(recorded, manifest)])
    change_episodes(actions=np.zeros_like(recorded.actions), observations={"observation": seen})
    shutil.copytree(site / "browser/car", place)
    (place / EPISODE).write_bytes(pack_episode("car", manifest))
    done = node(place, EPISODE)
    assert done.returncode != 0
    assert "decision 0: action is " in done.stderr
    assert ", expected 0, " in done.stderr


@pytest.mark.usefixtures("site", "own")  # with a site, ONNX Runtime can be had
def test_episode_that_does_not_replay_is_left_out(capsys):
    change_episodes(rewards=np.full(40, 7, np.float32))
    assert prepare(Path("results/browser"), ["car"]) == ["car"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("report car: without its recorded episode in the browser: the recorded episode with seed ")
    assert not Path("results/browser/car", EPISODE).exists()
    assert Path("results/browser/car/golden.safetensors").is_file()


def rows(content: bytes) -> int:
    return len(load(gzip.decompress(content))["tie"])


def test_without_npm_the_page_says_how_to_get_it(project, tmp_path, monkeypatch, capsys):
    shutil.copytree(project / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare(Path("results/browser"), ["dqn"]) == []
    line = capsys.readouterr().out
    assert line == "report: without the proof in the browser, as npm is not installed (Debian: apt install npm)\n"
    assert "apt install npm" in render([])
    assert list(Path("results/browser").iterdir()) == []  # an output of the stage, which must be there


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_without_a_registry_the_reason_is_told(project, tmp_path, monkeypatch, capsys):
    shutil.copytree(project / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    assert prepare(Path("results/browser"), ["dqn"]) == []
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("report: without the proof in the browser, as `npm ci` fails: ")


def test_lock_names_every_package_by_its_hash_and_no_registry():
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    wanted = json.loads((WEB / "package.json").read_text())["dependencies"]
    assert packages["node_modules/onnxruntime-web"]["version"] == wanted["onnxruntime-web"]
    for name, package in packages.items():
        assert name == "" or package["integrity"].startswith("sha512-")
        assert "resolved" not in package


def test_photographs_keep_their_pixels():
    images = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
    assert code_colours(images) is None
    coded, colours = code_colours(images // 128 * 255)
    np.testing.assert_array_equal(colours[coded], images // 128 * 255)
    assert len(colours) == 8
    assert code_colours(images.astype(np.float32)) is None


def test_changes_are_by_exclusive_or():
    np.testing.assert_array_equal(changes(np.array([5, 4, 4], np.int64)), [5, 1, 0])
