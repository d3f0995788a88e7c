from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from pipeline_helpers import choose_programs
from ruamel.yaml import YAML

from policy_export.backends.manifest import write_manifest
from policy_export.config.profile import Profile, load_profile
from policy_export.program.policy import Agent, make_agent
from policy_export.program.step import Step
from policy_export.program.weights import save_weights
from stages.export_onnx import export_onnx
from stages.export_pt2 import export_pt2
from stages.golden import golden
from stages.record import record

ROOT = Path(__file__).parents[1]
EPISODE_STEPS = 300  # of the policy in `workspace`, so that its episodes are short


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: what is computed here is small, and more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def profile() -> Profile:
    """Give the profile that the repository ships."""
    return load_profile("dqn", ROOT / "params.yaml")


@pytest.fixture(scope="session")
def variant(profile):
    """Give the profile with some values changed, as ``variant(policy={"epsilon": 1.0})``; checked as params.yaml is."""

    def change(**sections):
        content = profile.model_dump()
        for section, values in sections.items():
            content[section] |= values
        return Profile.model_validate(content)

    return change


@pytest.fixture(scope="session")
def make_step():
    """Give an untrained policy of a profile, always the same one, as a :class:`Step`."""

    def make(profile, exploration_type) -> Step:
        agent = untrained_agent(profile)
        return Step(agent.policy, agent.input_spec, exploration_type)

    return make


def untrained_agent(profile: Profile) -> Agent:
    torch.manual_seed(0)
    agent = make_agent("dqn", profile)
    agent.policy.eval().requires_grad_(requires_grad=False)
    return agent


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """Give a folder as ``dvc repro`` leaves it, of an untrained policy, without what is compiled; it must not change.

    Everything in it was written by the stages' own functions.
    """
    folder = tmp_path_factory.mktemp("workspace")
    content = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    content["policies"]["dqn"]["env"]["max_episode_steps"] = EPISODE_STEPS
    YAML().dump(content, folder / "params.yaml")
    with contextlib.chdir(folder):
        agent = untrained_agent(load_profile("dqn"))
        save_weights(Path("models/dqn/policy.safetensors"), "dqn", agent.actor)
        choose_programs(folder, "dqn", ["pt2", "onnx"])
        export_pt2("dqn")
        export_onnx("dqn")
        record("dqn")
        golden("dqn")
        write_manifest("dqn")
    return folder


@pytest.fixture
def model(workspace, tmp_path) -> Path:
    """Give a copy of the untrained policy's model folder, to be damaged."""
    return shutil.copytree(workspace / "models/dqn", tmp_path / "models/dqn")


@pytest.fixture(scope="session")
def truncate():
    def cut(path: Path) -> None:
        """Cut a file to its first half, as an interrupted copy leaves it."""
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut
