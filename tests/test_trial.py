"""The first stage's findings about a user's policy, and its behaviour when nothing has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, change_params, copy_project, python, run
from ruamel.yaml import YAML

from policy_export.backends.registry import backends
from policy_export.config.errors import ProfileError
from policy_export.config.profile import Profile, check, check_files, named_files, named_modules, read
from policy_export.machine.facts import HASHED_STAGES
from policy_export.machine.trial import try_policy

pytestmark = pytest.mark.slow

POLICY = """
from pathlib import Path
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import Composite
from torchrl.modules import QValueModule

with open("imports.log", "a") as log:
    log.write("imported ")

def make_policy(observation_spec, action_spec, *, weights: str | None = None, outputs: int = 2):
    network = torch.nn.Linear(observation_spec["observation"].shape[0], outputs)
    if weights is not None:
        network.load_state_dict(torch.load(weights))
    values = TensorDictModule(network, in_keys=["observation"], out_keys=["action_value"])
    return TensorDictSequential(values, QValueModule(spec=Composite(action=action_spec)))
"""
# A class without `__init__`, whose observations have another dtype than it tells of.
ENVIRONMENT = """
import gymnasium
import numpy as np
from physics import DRAG

class Walk(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=3)
        return self.position, {}

    def step(self, action):
        self.position = DRAG * self.position + (action - 0.5) + self.np_random.normal(size=3)
        return self.position, -float(abs(self.position).sum()), False, False, {}
"""
REGISTER = "\ngymnasium.register('Walk-v0', entry_point=Walk)\n"
REGISTERED_BY_THE_FACTORY = "\nimport gymnasium\ngymnasium.register('Walk-v0', entry_point='my_env:Walk')\n"
MINE = {
    "env": {"id": "my_env:Walk-v0", "max_episode_steps": 10},
    "preprocess": None,
    "policy": {"factory": "my_policy:make_policy"},
    "train": {"algorithm": "none", "seed": 0, "eval_episodes": 2},
}
# What a device is told of the environment: by this id, it imports the module that registers it.
FACTS = """
import json
from policy_export.environments.env import environment_facts
from policy_export.program.policy import find_env
from policy_export.config.profile import load_profile

print(json.dumps(environment_facts(find_env(load_profile("mine")))["environment"]))
"""
CARTPOLE = {"env": {"id": "CartPole-v1", "max_episode_steps": 10}}


def make_project(folder: Path, policies: dict[str, dict], environment: str = ENVIRONMENT + REGISTER) -> Path:
    """Write a user's modules and ``params.yaml`` with some policies, all in ``matrix``; each is MINE and changes."""
    (folder / "my_policy.py").write_text(POLICY)
    (folder / "my_env.py").write_text(environment)
    (folder / "physics.py").write_text("DRAG = 0.9\n")
    content = read(ROOT / "params.yaml")
    content["policies"] |= {name: MINE | changes for name, changes in policies.items()}
    YAML().dump(content | {"matrix": list(policies)}, folder / "params.yaml")
    return folder


def machine(folder: Path, status: int = 0) -> list[str]:
    """Run the stage; returns the lines of its errors."""
    return python("-m", "stages.machine", cwd=folder, status=status).stderr.splitlines()


def sources(folder: Path, policy: str = "mine") -> dict[str, str]:
    return json.loads((folder / "results/sources" / policy / "policy.json").read_text())


def imports(folder: Path) -> int:
    """Return how often the factory's module has been imported so far, in any process."""
    log = folder / "imports.log"
    return len(log.read_text().split()) if log.exists() else 0


def factory(name: str, **arguments) -> dict:
    return {"policy": {"factory": name, **arguments}}


def test_all_mistakes_of_all_policies_are_found_before_anything_is_written(tmp_path):
    broken = {
        "module": (factory("nosuch:make_policy"), "policy.factory: 'nosuch:make_policy': No module named 'nosuch'"),
        "name": (
            factory("my_policy:nosuch"),
            "policy.factory: 'my_policy:nosuch': module 'my_policy' has no attribute",
        ),
        "env": ({"env": {"id": "Foo-v0", "max_episode_steps": 9}}, "env.id: 'Foo-v0': gymnasium does not make it: "),
        "env_module": ({"env": {"id": "nosuch:Foo-v0", "max_episode_steps": 9}}, "env.id: 'nosuch:Foo-v0': gymnasium"),
        "file": (factory("my_policy:make_policy", weights="weights/a.pt"), ".policy.weights: 'weights/a.pt': no such"),
        "argument": (factory("my_policy:make_policy", wights=1), ".policy.wights: 1: unknown key; known here: weights"),
    }
    lines = machine(make_project(tmp_path, {name: changes for name, (changes, _) in broken.items()}), status=1)
    for name, (_, message) in broken.items():
        start = f"error: params.yaml: policies.{name}"
        found = [line for line in lines if line.startswith((f"{start}:", f"{start}."))]
        assert len(found) == 1, (name, lines)
        assert message.lstrip(".") in found[0]
    assert len(lines) == len(broken)
    assert not (tmp_path / "results").exists()


def test_policy_that_its_algorithm_cannot_train(tmp_path):
    train = read(ROOT / "params.yaml")["policies"]["pendulum"]["train"]
    make_project(tmp_path, {"mine": CARTPOLE | {"train": train}})
    (line,) = machine(tmp_path, status=1)
    assert line.startswith("error: params.yaml: policies.mine: train.algorithm: 'ppo' needs log-probabilities")


def test_policy_is_tried_again_only_when_something_has_changed(tmp_path):
    make_project(tmp_path, {"mine": {}})
    machine(tmp_path)
    assert imports(tmp_path) == 1
    assert list(sources(tmp_path)) == ["my_env.py", "my_policy.py", "physics.py"]
    machine(tmp_path)
    assert imports(tmp_path) == 1
    clone = shutil.copytree(tmp_path, tmp_path / "clone")
    machine(clone)
    assert imports(clone) == 1

    before = sources(tmp_path)
    (tmp_path / "physics.py").write_text("DRAG = 0.8\n")
    machine(tmp_path)
    assert imports(tmp_path) == 2
    assert {name for name, sha256 in sources(tmp_path).items() if before[name] != sha256} == {"physics.py"}
    change_params(tmp_path / "params.yaml", {"policies.mine.env.max_episode_steps": 11})
    machine(tmp_path)
    assert imports(tmp_path) == 3


def test_what_failed_is_tried_again_and_leaves_what_was(tmp_path):
    make_project(tmp_path, {"mine": {}})
    machine(tmp_path)
    written = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    (tmp_path / "my_env.py").write_text("import nosuch\n")
    for _ in range(2):
        (line,) = machine(tmp_path, status=1)
        assert line.startswith(
            "error: params.yaml: policies.mine: env.id: 'my_env:Walk-v0': gymnasium does not make it"
        )
        assert "No module named 'nosuch'" in line
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")} == written


def test_environment_that_the_factory_registers_counts_as_its_source(tmp_path):
    make_project(tmp_path, {"mine": {"env": {"id": "Walk-v0", "max_episode_steps": 10}}}, ENVIRONMENT)
    (tmp_path / "my_policy.py").write_text(POLICY + REGISTERED_BY_THE_FACTORY)
    machine(tmp_path)
    assert list(sources(tmp_path)) == ["my_env.py", "my_policy.py", "physics.py"]
    before, tried = sources(tmp_path), imports(tmp_path)
    (tmp_path / "physics.py").write_text("DRAG = 0.8\n")
    machine(tmp_path)
    assert sources(tmp_path)["physics.py"] != before["physics.py"]
    assert imports(tmp_path) == tried + 1
    machine(tmp_path)
    assert imports(tmp_path) == tried + 1
    facts = python("-c", FACTS, cwd=tmp_path).stdout
    assert json.loads(facts) == {"id": "my_policy:Walk-v0", "max_episode_steps": 10}


def test_sizes_of_weights_that_do_not_fit_are_all_told(tmp_path):
    save = "import torch; torch.save(torch.nn.Linear(7, 5).state_dict(), 'other.pt')"
    run(
        "python", "-c", save, cwd=make_project(tmp_path, {"mine": factory("my_policy:make_policy", weights="other.pt")})
    )
    (line,) = machine(tmp_path, status=1)
    for size in ("torch.Size([5, 7])", "torch.Size([2, 3])", "torch.Size([5])", "torch.Size([2])"):
        assert size in line


def profile(**arguments) -> Profile:
    return check(Profile, MINE | factory("my_policy:make_policy", **arguments))


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("weights.pt", "policy.value"),
        ("runs/last", "policy.value"),
        ("a.SAFETENSORS", "policy.value"),
        (["there.npz", "away.npz"], "policy.value.1"),
        ({"actor": "away.json"}, "policy.value.actor"),
        ("there.npz", None),
        ("relu", None),
        ("my_networks.deep:Policy", None),
        ("https://example.org/weights.pt", None),
        ("x" * 5000, None),
        (3, None),
    ],
)
def test_argument_that_looks_like_a_file(tmp_path, monkeypatch, value, key):
    monkeypatch.chdir(tmp_path)
    Path("there.npz").write_text("")
    if key is None:
        check_files(profile(value=value))
        return
    with pytest.raises(ProfileError, match=rf"^{key}: .*: no such file$"):
        check_files(profile(value=value))


def test_files_and_modules_that_a_profile_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.npz").write_text("")
    made = profile(value={"actor": ["there.npz", "relu"]}, many="x" * 5000)
    assert named_files(made) == {Path("there.npz")}
    assert named_modules(made) == ["my_policy", "my_env"]


def test_other_policies_files_stay_as_they_are(tmp_path):
    """Check this with DVC, which removes a stage's outputs before running it; an edit must run the policy again."""
    copy_project(tmp_path)
    make_project(tmp_path, {"mine": {}})
    for name in ("dqn", "forgotten"):
        (tmp_path / "results/sources" / name).mkdir(parents=True)
        (tmp_path / "results/sources" / name / "policy.json").write_text("{}\n")
    run("git", "add", "--all", cwd=tmp_path)
    run("git", "commit", "--quiet", "--message", "start", cwd=tmp_path)
    python("-m", "dvc", "repro", "record@mine", cwd=tmp_path, project=tmp_path)
    changed = run("git", "status", "--porcelain", "--untracked-files=all", cwd=tmp_path).stdout.splitlines()
    assert [line for line in changed if "mine" not in line] == [
        " D results/sources/forgotten/policy.json",
        "?? dvc.lock",
        "?? imports.log",
        *(f"?? results/code/{stage}.json" for stage in sorted(HASHED_STAGES)),
        "?? results/machine.json",
        "?? results/versions.json",
    ]

    (tmp_path / "physics.py").write_text("DRAG = 0.8\n")
    machine(tmp_path)
    command = ("-m", "dvc", "status", "--json", "train@mine", "record@mine")
    status = json.loads(python(*command, cwd=tmp_path, project=tmp_path).stdout)
    reasons = [reason["changed deps"] for stage in ("train@mine", "record@mine") for reason in status[stage]]
    assert reasons == [{"results/sources/mine/policy.json": "modified"}] * 2

    before = (tmp_path / "results/machine.json").read_bytes()
    change_params(tmp_path / "params.yaml", {"policies.mine.policy.factory": "my_policy:nosuch"})
    failed = python("-m", "dvc", "repro", "train@mine", cwd=tmp_path, project=tmp_path, status=255)
    assert "error: params.yaml: policies.mine: policy.factory: 'my_policy:nosuch'" in failed.stderr
    assert (tmp_path / "results/machine.json").read_bytes() == before


def test_shipped_policy_has_no_modules_of_its_own_environment(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert try_policy("cartpole", dict.fromkeys(backends(), True)) == []
