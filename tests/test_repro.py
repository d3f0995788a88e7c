"""The whole pipeline as a user runs it, with parameters that take a minute or two."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import markupsafe
import onnx
import onnxruntime
import pytest
from pipeline_helpers import ONE_POLICY, ROOT, change_params, copy_project, python, run
from ruamel.yaml import YAML

from policy_export.benchmark.measured import Session
from policy_export.benchmark.workload import Plan, prepare, running_emulator
from policy_export.config import params, profile
from policy_export.config.section import Section
from policy_export.config.training import Untrained
from policy_export.config.training.dqn import Dqn
from policy_export.config.training.ppo import Ppo
from policy_export.device.errors import UserError
from policy_export.machine.facts import HASHED_STAGES
from policy_export.parity.open_loop import EXPLORING_STRIDE
from policy_export.report.report import PAGE

pytestmark = pytest.mark.slow

STAGES = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = {f"{stage}@dqn" if "matrix" in content else stage for stage, content in STAGES.items()}
MODEL = Path("models/dqn")
PROGRAMS = ("eager", "pt2", "aoti", "onnx", "native")
EXPLORING = ("pt2", "aoti", "onnx")
PARAMS = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
OF_OTHERS = tuple(
    f"policies.dqn.{key}" for key in ("env.factory", "env.recording", "env.actions", "env.kwargs", "transforms")
)
# Which not every profile has: results/sources has their hashes.
HASHED = tuple(f"policies.dqn.{key}" for key in ("transforms", "reference", *profile.MEANING))

# Appended to the copy's policy_export/config/profile.py: notes which stage reads which checked parameter.
RECORDER = """
import sys
READS, CHECKING = set(), []
CHECK, GET, DUMP, DUMP_JSON = check, Section.__getattribute__, Section.model_dump, Section.model_dump_json

def get(self, name):
    read = (type(self).__name__, name)
    if not CHECKING and name in type(self).model_fields and read not in READS:
        READS.add(read)
        with open(".dvc/tmp/reads", "a") as file:
            print(sys.modules["__main__"].__spec__.name, *read, file=file)
    return GET(self, name)

def read_all(self, options):
    excluded = options.get("exclude") or ()
    for value in [getattr(self, name) for name in type(self).model_fields if name not in excluded]:
        if isinstance(value, Section):
            read_all(value, {})

def check(*arguments, **options):
    CHECKING.append(True)
    try:
        return CHECK(*arguments, **options)
    finally:
        CHECKING.pop()

Section.__getattribute__ = get
Section.model_dump = lambda self, **options: (read_all(self, options), DUMP(self, **options))[1]
Section.model_dump_json = lambda self, **options: (read_all(self, options), DUMP_JSON(self, **options))[1]
"""


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([\w@]+)'", output))


def dvc(*arguments: str, cwd: Path, status: int = 0) -> str:
    """Return what DVC prints to standard output."""
    return python("-m", "dvc", *arguments, cwd=cwd, status=status, project=cwd).stdout


# The copy's sitecustomize.py: no Python but DVC's makes an object of a pickle, with which a file could run anything.
# Processes of one stage send each other pickles, through pipes, and TensorDict copies its modules by one, in memory.
NO_PICKLE = """
import pathlib, sys

ALLOWED = {"multiprocessing", "concurrent", "copy"}

def forbid(event, arguments):
    if event == "pickle.find_class":
        frame = sys._getframe()
        while frame is not None:
            if str(frame.f_globals.get("__name__")).partition(".")[0] in ALLOWED:
                return
            frame = frame.f_back
        raise RuntimeError(f"a pickle is read: {arguments}")

if "dvc" not in sys.orig_argv:
    sys.addaudithook(forbid)
    notes = pathlib.Path(__file__).with_name(".dvc") / "tmp/forbidding"
    if notes.parent.is_dir():
        with notes.open("a") as file:
            print(*sys.orig_argv, file=file)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Give a project after its first ``dvc repro``; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    copy_project(folder)
    change_params(folder / "params.yaml", ONE_POLICY)
    with (folder / "policy_export/config/profile.py").open("a") as file:
        file.write(RECORDER)
    (folder / "sitecustomize.py").write_text(NO_PICKLE)
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "start", cwd=folder)
    assert stages_run(dvc("repro", cwd=folder)) == NAMES
    return folder


def test_no_pickle_is_read(built):
    """Check that all stages ran where it is forbidden, and that it is."""
    forbidding = (built / ".dvc/tmp/forbidding").read_text()
    assert {name.partition("@")[0] for name in NAMES} == set(re.findall(r"-m stages\.(\w+)", forbidding))
    read = "import io, torch; file = io.BytesIO(); torch.save(torch.nn.Linear(1, 1), file); file.seek(0); "
    done = python("-c", f"{read}torch.load(file, weights_only=False)", cwd=built, project=built, status=1)
    assert "RuntimeError: a pickle is read: " in done.stderr


@pytest.fixture
def project(built, tmp_path) -> Path:
    """Give a copy of it, to be changed."""
    return shutil.copytree(built, tmp_path / "project", symlinks=True)


@pytest.fixture(scope="module")
def manifest(built) -> dict:
    return json.loads((built / MODEL / "manifest.json").read_text())


def test_nothing_but_outputs_is_left(built):
    """Check that the only files new to git are the outputs kept there, and nothing half-written or forgotten."""
    outputs = [out for stage in STAGES.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    kept = {path for out in outputs if isinstance(out, dict) for path, options in out.items() if not options["cache"]}
    expected = {
        "dvc.lock",
        f"{MODEL}/.gitignore",
        "results/.gitignore",
        *(path.replace("${item.policy}", "dqn") for path in kept),
    }
    status = run("git", "status", "--porcelain", "--untracked-files=all", cwd=built).stdout
    found = {(line[:2], line[3:]) for line in status.splitlines()}
    folders = {"results/sources", "results/code"}
    facts = {
        f"results/sources/dqn/{name}.json"
        for name in ("policy", "algorithm", "trial", "programs", "meaning", "reference")
    }
    facts |= {f"results/code/{stage}.json" for stage in HASHED_STAGES}
    assert found == {("??", path) for path in expected - folders | facts}


BESIDE = {"golden.safetensors", "manifest.schema.json"}


def test_manifest_lists_every_file_as_it_is(built, manifest):
    programs = {f"{name}.{kind}" for name in ("policy", "policy_random") for kind in ("pt2", "aoti.pt2", "onnx")}
    native = {f"native/{name}" for name in ("libpolicy.so", "policy", "policy.h", "golden.bin")}
    player = {f"player/{path.name}" for path in (built / "policy_export/device").glob("*.py")}
    assert set(manifest["files"]) == programs | native | player | {"policy.safetensors", *BESIDE}
    for name, facts in manifest["files"].items():
        content = (built / MODEL / name).read_bytes()
        assert (facts["bytes"], facts["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_onnx_is_one_file(built):
    model = onnx.load(built / MODEL / "policy.onnx", load_external_data=False)
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def test_onnx_has_the_manifests_signature(built, manifest):
    session = onnxruntime.InferenceSession(built / MODEL / "policy.onnx", providers=["CPUExecutionProvider"])
    types = {"float32": "float", "int64": "int64", "uint8": "uint8", "bool": "bool"}
    for kind, tensors in {"inputs": session.get_inputs(), "outputs": session.get_outputs()}.items():
        expected = [(spec["name"], f"tensor({types[spec['dtype']]})", spec["shape"]) for spec in manifest[kind]]
        assert [(tensor.name, tensor.type, tensor.shape) for tensor in tensors] == expected


def test_onnx_tells_what_it_is(built, manifest):
    model = onnx.load(built / MODEL / "policy.onnx")
    metadata = {item.key: item.value for item in model.metadata_props}
    facts = json.loads(metadata["facts"])
    assert metadata["policy"] == facts["policy"] == manifest["policy"] == "dqn"
    for key in ("inputs", "outputs", "environment", "actions"):
        assert facts[key] == manifest[key]
    assert facts["parameters"].items() <= manifest["parameters"].items()


def test_every_program_decides_alike(built):
    report = json.loads((built / "results/dqn/parity.json").read_text())
    assert report["passed"]
    assert set(report["programs"]) == {*PROGRAMS[1:], *(f"{name}_random" for name in EXPLORING)}
    for name, entry in report["programs"].items():
        exploring = name.endswith("_random")
        assert entry["observations"] >= PARAMS["parity_check"]["min_observations"] // (
            EXPLORING_STRIDE if exploring else 1
        )
        assert max(entry["max_abs_difference"].values()) <= 1e-5
        if exploring:
            assert entry["samples"]["least_p"] > 0
        else:
            assert entry["different_actions"] == 0
            assert entry["closed_loop"]["identical"]


def test_every_program_is_measured(built):
    bench = json.loads((built / "results/dqn/bench.json").read_text())
    assert set(bench["programs"]) == set(PROGRAMS)
    for name, program in bench["programs"].items():
        assert program["reason"] == "too few queries: 64, p99.9 needs 6636"
        assert ("file_bytes" in program) == (name != "eager")
        assert program["late_queries"] == 10
        assert 0 < program["p50_us"] <= program["p90_us"]
        assert (program["p99_us"], program["valid"]) == (None, False)
    assert set(bench["offline_rows_per_s"]["onnx"]) == {"1", "8"}
    assert set(bench["rollout_decisions_per_s"]) == {"emulator", "player_onnx", "player_native", "torchrl"}
    with (built / "results/latency/dqn.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["program"] for row in rows] == list(bench["programs"])
    assert all(float(row["p50_us"]) > 0 for row in rows)
    speeds = [(point["program"], point["gflop_per_s"]) for point in bench["roofline"]]
    assert [program for program, _ in speeds] == ["aoti"] * 2 + ["onnx"] * 2 + ["roof"] * 3
    assert all(0 < speed <= max(speed for _, speed in speeds[-3:]) for _, speed in speeds)


def test_page_tells_what_is_proven(built):
    page, report = (built / PAGE).read_text(), json.loads((built / "results/dqn/parity.json").read_text())
    assert '<h1 class="good">Every program decides as its policy does</h1>' in page
    assert "earlier build" not in page
    assert "data:image/webp;base64," in page  # the film
    for name, file in report["checked"]["programs"].items():
        assert f"<td>{name}</td>" in page
        assert file["sha256"] in page
    assert page.count("<svg") == 2 * 5  # charts, light and dark
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # it needs no other file


def test_plots_show_few_charts_with_their_units(built):
    dvc("plots", "show", "--out", "shown", cwd=built)
    page = (built / "shown/index.html").read_text()
    for props in (props for plot in STAGES["report"]["plots"] for props in plot.values()):
        assert props["title"] in page
        assert props["x_label"] in page


def test_page_after_another_build_says_so(project):
    shutil.rmtree(project / "models/dqn/native")
    (project / "models/dqn/verdict.json").unlink()
    python("-m", "stages.report", cwd=project, project=project)
    assert "an earlier build" in (project / PAGE).read_text()


def test_metrics_are_few(built):
    shown = json.loads(dvc("metrics", "show", "--json", cwd=built))[""]["data"]
    known = {path: content["data"] for path, content in shown.items() if "data" in content}  # a study has none
    assert set(known) == {f"results/dqn/metrics/{stage}.json" for stage in ("train", "parity_check", "bench")}
    numbers = {name: value for content in known.values() for name, value in content.items()}
    assert set(numbers) == {
        *("score_mean", "score_std", "parity_passed", "decisions_compared", "decisions_different"),
        *("different_per_million", "largest_difference", "onnx_p50_us", "native_p50_us"),
        *("onnx_speedup", "native_speedup", "program_mb"),
    }
    assert numbers["parity_passed"]
    assert numbers["decisions_different"] == 0
    assert numbers["native_p50_us"] > 0


OTHER_KINDS = (profile.GymEnv, Ppo, Dqn, Untrained)


def sections(annotation: Any) -> list[type[Section]]:
    """Return the sections that a key may hold for this policy."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [] if issubclass(annotation, OTHER_KINDS) else [annotation]
    return [section for argument in get_args(annotation) for section in sections(argument)]


def leaves(model: type[Section], prefix: str = "") -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the model and field of every parameter, and its dotted key."""
    for name, field in model.model_fields.items():
        if name == "policies":
            continue
        found = sections(field.annotation)
        for section in found:
            yield from leaves(section, f"{prefix}{name}.")
        if prefix and not found:
            yield (model.__name__, name), f"{prefix}{name}"


# Read by machine, which tells the others: whether a policy has a program.
OF_MACHINE = {"policies.dqn.programs"}


def declared_parameters(content: dict[str, Any]) -> list[str]:
    """Return the keys of params.yaml that a stage declares."""
    found = []
    for entry in content.get("params", []):
        found += [entry] if isinstance(entry, str) else entry.get("params.yaml", [])
    return [key.replace("${item.policy}", "dqn") for key in found]


def test_stages_read_the_parameters_that_they_declare(built):
    keys = dict(leaves(params.Params)) | dict(leaves(profile.Profile, "policies.dqn."))
    read = defaultdict(set)
    for line in (built / ".dvc/tmp/reads").read_text().splitlines():
        module, *field = line.split()
        read[module.removeprefix("stages.")].update({keys[tuple(field)]} if tuple(field) in keys else ())
    for stage, content in STAGES.items():
        if content.get("always_changed"):
            continue
        declared = [key for key in declared_parameters(content) if key != "matrix"]  # it is no section's
        undeclared = {key for key in read[stage] if not any(f"{key}.".startswith(f"{entry}.") for entry in declared)}
        undeclared = {key for key in undeclared if not key.startswith(HASHED)}
        assert undeclared == set(), f"dvc.yaml: {stage} reads these and does not declare them"
        unread = {entry for entry in declared if not any(f"{key}.".startswith(f"{entry}.") for key in read[stage])}
        assert unread == set(), f"dvc.yaml: {stage} declares these and does not read them"
    unread = set(keys.values()) - set().union(*read.values(), OF_MACHINE)
    assert {key for key in unread if not key.startswith(OF_OTHERS + HASHED)} == set(), "no stage reads these"


def test_repro_again_runs_only_what_changed(project):
    assert stages_run(dvc("repro", cwd=project)) == {"machine"}
    change_params(project / "params.yaml", {"bench.queries": 65})
    assert stages_run(dvc("repro", cwd=project)) == {"machine", "bench@dqn", "report"}


def test_clone_does_not_train(project, tmp_path):
    run("git", "add", "--all", cwd=project)
    run("git", "commit", "--quiet", "--message", "results", cwd=project)
    run("git", "clone", "--quiet", str(project), "clone", cwd=tmp_path)
    assert stages_run(dvc("repro", "train@dqn", "record@dqn", cwd=tmp_path / "clone")) == {"machine"}


def test_failed_check_stops_the_pipeline_and_leaves_its_report(project):
    change_params(project / "params.yaml", {"parity_check.tolerance": 1e-12})
    assert stages_run(dvc("repro", cwd=project, status=255)) == {"machine", "parity_check@dqn"}
    report = json.loads((project / "results/dqn/parity.json").read_text())
    assert not report["passed"]
    assert report["failures"]
    python("-m", "stages.report", cwd=project, project=project)
    page = (project / PAGE).read_text()
    assert '<h1 class="bad">Not proven: dqn</h1>' in page
    for name, found in report["divergences"].items():
        assert f"{name}: episode {found['seed']}, decision {found['step']}" in page
        assert str(markupsafe.escape(found["first_difference"])) in page
    assert "data:image/png;base64," in page  # both screens


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    if how == "truncated":
        return content[:middle]
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damaged_program_is_one_line_of_error(project, how):
    path = project / MODEL / "policy.onnx"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(content, how))
    done = python("-m", "stages.parity_check", "dqn", cwd=project, status=1, project=project)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {MODEL}/policy.onnx: damaged")


def test_program_that_is_ended_is_named(built, tmp_path, monkeypatch):
    monkeypatch.chdir(built)
    with running_emulator("dqn") as emulator:
        prepare("dqn", tmp_path, Plan(["onnx"], params.load().bench, 1e-5), emulator)
        with Session("dqn", "onnx", tmp_path, 1) as session:
            session.process.kill()
            with pytest.raises(UserError, match="onnx of dqn cannot be measured: its process was ended by SIGKILL"):
                session.measure(1)


def test_model_folder_plays_on_its_own(built, tmp_path):
    shutil.copytree(built / MODEL, tmp_path / "dqn")
    output = python("dqn/player", cwd=tmp_path, project=tmp_path).stdout
    assert re.search(r"^episode 1/1  score [+-]\d+  decisions \d+$", output, re.MULTILINE)
    assert "mean score" in output
