"""A policy whose noise has a state, exported, and the check's results for it and for its faults."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pipeline_helpers import SHORT_CHECK
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torchrl.data import Composite, Unbounded
from torchrl.envs.utils import ExplorationType

from policy_export.backends import runtimes
from policy_export.device.arrays import Arrays, Run
from policy_export.device.errors import UserError
from policy_export.device.manifest import SCHEMA_VERSION
from policy_export.device.onnx_session import load_onnx
from policy_export.device.player import Player
from policy_export.environments import episodes
from policy_export.environments.episodes import Episode
from policy_export.environments.recording import play_episode
from policy_export.lowering.onnx import convert
from policy_export.parity import check as stage
from policy_export.parity.exploration import complete, exploring, noise_states, without_noise
from policy_export.parity.open_loop import EXPLORING_STRIDE, check_open_loop
from policy_export.parity.samples import ROWS, act, check_noise, check_samples, run_tests, sample
from policy_export.program.calls import wrap
from policy_export.program.export import export
from policy_export.program.step import Step
from policy_export.stage.files import write_json

LEVEL, TOLERANCE, OPSET = 1e-8, 1e-5, 21
FACTS = {"policy": "noisy", "environment": {"id": "Pendulum-v1", "max_episode_steps": 40}}


class Noise(TensorDictModuleBase):
    """An Ornstein-Uhlenbeck process on the action, where ``begins`` is true from the start."""

    in_keys = ("loc", "noise", "is_init")
    out_keys = ("action", ("next", "noise"))

    def begins(self, is_init: torch.Tensor) -> torch.Tensor:
        return is_init

    def forward(self, tensordict):
        noise = torch.where(self.begins(tensordict["is_init"]), 0, tensordict["noise"])
        noise = 0.99 * noise + 0.02 * torch.randn_like(noise)
        tensordict["action"] = (tensordict["loc"] + noise).clamp(-2, 2)
        return tensordict.set(("next", "noise"), noise)


class Restarts(Noise):
    def begins(self, is_init):
        return torch.ones_like(is_init)


def make_step(*, noise: Noise | None) -> Step:
    """Return a policy of Pendulum, which is the same under any noise."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    mean = TensorDictModule(network, in_keys=["observation"], out_keys=["loc"])
    last = noise or TensorDictModule(lambda loc: loc.clamp(-2, 2), in_keys=["loc"], out_keys=["action"])
    policy = TensorDictSequential(mean, last).requires_grad_(requires_grad=False)
    kind = ExplorationType.RANDOM if noise else ExplorationType.DETERMINISTIC
    return Step(policy, Composite(observation=Unbounded(3), noise=Unbounded(1)), kind)


@dataclasses.dataclass(frozen=True)
class Noisy:
    """The policy, its programs that explore, its manifest, and episodes of it."""

    eager: Run
    eager_random: Run
    programs: dict[str, Run]
    manifest: dict[str, Any]
    recorded: list[Episode]

    @property
    def recorded_inputs(self) -> Arrays:
        """Return inputs of a deterministic program."""
        return {"observation": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Noisy:
    steps = {"eager": make_step(noise=None), "random": make_step(noise=Noise())}
    eager, random = (step.signature.as_dict() for step in steps.values())
    manifest = FACTS | eager | {"random": random, "actions": {"low": [-2.0], "high": [2.0]}}
    program = export(steps["random"])
    path = tmp_path_factory.mktemp("noisy") / "policy_random.onnx"
    onnx.save(convert(program, FACTS | random, OPSET), path)
    run = wrap(steps["eager"])
    return Noisy(
        run,
        wrap(steps["random"]),
        {"pt2_random": wrap(program.module()), "onnx_random": load_onnx(path)},
        manifest,
        [play_episode(Player(run, manifest), seed, 0.1) for seed in range(2)],
    )


def test_states_are_those_that_only_exploring_programs_have(noisy):
    assert noise_states(noisy.manifest) == {"next_noise": "noise"}
    assert noise_states({name: facts for name, facts in noisy.manifest.items() if name != "random"}) == {}
    recurrent = noisy.manifest | {"states": [{"input": "hidden", "output": "next_hidden"}]}
    both = exploring(recurrent)["states"] + recurrent["states"]
    recurrent["random"] = recurrent["random"] | {"states": both}
    assert noise_states(recurrent) == {"next_noise": "noise"}


def test_inputs_are_completed_by_the_start_of_an_episode(noisy):
    inputs = complete(noisy.recorded_inputs, noisy.manifest)
    assert list(inputs) == ["observation", "noise", "is_init"]
    assert (inputs["noise"].shape, inputs["noise"].dtype, inputs["noise"].any()) == ((4, 1), np.float32, False)
    assert (inputs["is_init"].shape, inputs["is_init"].dtype, inputs["is_init"].all()) == ((4, 1), bool, True)
    known = noisy.recorded_inputs | {"is_init": np.zeros((4, 1), bool)}
    assert not complete(known, noisy.manifest)["is_init"].any()


def test_exploring_programs_pass_in_open_loop(noisy):
    results = check_open_loop(noisy.eager, noisy.programs, noisy.recorded, noisy.manifest, SHORT_CHECK)
    for result in results.values():
        assert result.failures == []
        assert result.observations == 2 * len(range(0, 40, EXPLORING_STRIDE))
        assert set(result.max_abs_difference) == {"loc"}


def test_noise_is_handed_on_in_open_loop(noisy):
    """Check that noise starts at zero, continues with eager's observations, and ends with a row's episode."""
    seen, run = [], noisy.programs["pt2_random"]

    def watch(inputs: Arrays) -> Arrays:
        seen.append((inputs.copy(), outputs := run(inputs)))
        return outputs

    recorded = [noisy.recorded[0], dataclasses.replace(noisy.recorded[1], actions=noisy.recorded[1].actions[:20])]
    check_open_loop(noisy.eager, {"pt2_random": watch}, recorded, noisy.manifest, SHORT_CHECK)
    assert [len(inputs["observation"]) for inputs, _ in seen] == [2, 2, 2, 1, 1]
    assert seen[0][0]["is_init"].all()
    assert not any(inputs["is_init"].any() for inputs, _ in seen[1:])
    assert not seen[0][0]["noise"].any()
    for (_, outputs), (inputs, _) in itertools.pairwise(seen):
        assert np.array_equal(inputs["noise"], outputs["next_noise"][: len(inputs["noise"])])


def test_values_must_not_depend_on_the_noise(noisy):
    def wrong(inputs: Arrays) -> Arrays:
        return (outputs := noisy.programs["pt2_random"](inputs)) | {"loc": outputs["loc"] + outputs["next_noise"]}

    (result,) = check_open_loop(
        noisy.eager, {"pt2_random": wrong}, noisy.recorded, noisy.manifest, SHORT_CHECK
    ).values()
    assert "loc differs by" in str(result.failures[0])


def test_values_are_those_of_the_policy_as_it_explores(noisy):
    """Check this with values that exploration moves, always alike, as noisy weights do, or anew at every call."""
    random = np.random.default_rng(0)

    def moved(run, *, anew=False):
        return lambda inputs: (
            (outputs := run(inputs))
            | {"loc": outputs["loc"] + (random.random(outputs["loc"].shape, np.float32) if anew else np.float32(0.5))}
        )

    program = noisy.programs["pt2_random"]
    for run, explorer, failures in (
        (moved(program), None, True),
        (moved(program), moved(noisy.eager_random), False),
        (program, moved(noisy.eager_random), True),
        (moved(program, anew=True), moved(noisy.eager_random, anew=True), False),
    ):
        (result,) = check_open_loop(
            noisy.eager, {"pt2_random": run}, noisy.recorded, noisy.manifest, SHORT_CHECK, explorer=explorer
        ).values()
        assert bool(result.failures) == failures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: {"loc": outputs["loc"], "action": outputs["action"]}, "has no output 'next_noise'$"),
        (
            lambda outputs: outputs | {"next_noise": outputs["next_noise"].astype(np.float64)},
            r"output next_noise is float64\[2, 1\], expected float32\[2, 1\]",
        ),
        (
            lambda outputs: outputs | {"next_other": outputs["loc"]},
            r"outputs are \['action', 'loc', 'next_noise', 'next_other'\], ",
        ),
    ],
)
def test_other_outputs_than_the_manifests_are_found(noisy, change, message):
    programs = {"pt2_random": lambda inputs: change(noisy.programs["pt2_random"](inputs))}
    with pytest.raises(UserError, match=f"^pt2_random: {message}"):
        check_open_loop(noisy.eager, programs, noisy.recorded, noisy.manifest, SHORT_CHECK)


def test_without_noise_nothing_is_taken_away(noisy):
    outputs = noisy.eager(noisy.recorded_inputs)
    assert (
        without_noise(outputs, {name: facts for name, facts in noisy.manifest.items() if name != "random"}) == outputs
    )


@pytest.mark.parametrize("name", ["pt2_random", "onnx_random"])
def test_noise_of_programs_is_the_policys(noisy, name):
    """Compare them at one step and over time, in PyTorch and in ONNX Runtime."""
    inputs, states = complete(noisy.recorded_inputs, noisy.manifest), noise_states(noisy.manifest)
    eager, *sampled = (sample(run, inputs, 16) for run in (noisy.eager_random, *[noisy.programs[name]] * 3))
    assert all(finding.p > LEVEL for finding in run_tests(eager, sampled[0], (sampled[1], sampled[2]), TOLERANCE))
    acted = [act(run, inputs, states) for run in (noisy.eager_random, noisy.programs[name])]
    assert acted[1].shape == (4, 60, ROWS, 1)
    assert all(finding.p > LEVEL for finding in check_noise(*acted, TOLERANCE))


@pytest.mark.parametrize(
    ("noise", "change", "what"),
    [
        (Restarts, {}, "correlation of action[0] with that of 1 steps before"),
        (Noise, {"is_init": False}, "size of the change of action[0] where the noise begins anew"),
    ],
    ids=["begins anew at every step", "never begins anew"],
)
def test_exported_fault_of_noise_is_found(noisy, noise, change, what):
    inputs, states = complete(noisy.recorded_inputs, noisy.manifest), noise_states(noisy.manifest)
    program = wrap(export(make_step(noise=noise())).module())

    def wrong(inputs: Arrays) -> Arrays:
        return program(inputs | {name: np.full_like(inputs[name], value) for name, value in change.items()})

    acted = [act(run, inputs, states) for run in (noisy.eager_random, wrong)]
    assert what in [finding.what for finding in check_noise(*acted, TOLERANCE) if finding.p < LEVEL]


@pytest.mark.parametrize("noise", [None, Restarts])
def test_stage_lets_programs_act_where_their_noise_has_a_state(noisy, tmp_path, monkeypatch, noise):
    """Run the whole check, in this process, with programs by their names."""
    programs = {"pt2": noisy.eager, "onnx": noisy.eager, "eager": noisy.eager, "eager_random": noisy.eager_random}
    programs |= noisy.programs
    if noise is not None:
        programs["onnx_random"] = wrap(make_step(noise=noise()))
    monkeypatch.chdir(tmp_path)
    listed = {name: {"file": name, "random_file": f"{name}_random"} for name in ("pt2", "onnx")}
    manifest = noisy.manifest | {"schema_version": SCHEMA_VERSION, "files": {}, "programs": listed}
    write_json(Path("models/noisy/manifest.json"), manifest)
    episodes.save(Path("data/noisy/episodes.safetensors"), "noisy", noisy.recorded)
    monkeypatch.setattr(runtimes, "load_by_name", lambda _, name, threads: programs[name])  # noqa: ARG005
    monkeypatch.setattr(stage, "processes", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(stage, "check_training_environment_by_name", lambda *_: None)  # it has no profile
    monkeypatch.setattr(stage, "check_facts", lambda _: [])
    monkeypatch.setattr(stage, "load_profile", lambda _: SimpleNamespace(reference=None))
    results = stage.run_programs("noisy", manifest, noisy.recorded, SHORT_CHECK)
    assert set(results.acted) == {"eager_random", "pt2_random", "onnx_random"}
    checked = check_samples(results.samples, results.first_samples, SHORT_CHECK, results.acted)
    assert checked["pt2_random"].failures == []
    assert [failure.split(":")[0] for failure in checked["onnx_random"].failures[:1]] == (
        [] if noise is None else ["correlation of action[0] with that of 1 steps before"]
    )
    assert (
        checked["pt2_random"].tests
        > check_samples(results.samples, results.first_samples, SHORT_CHECK)["pt2_random"].tests
    )
