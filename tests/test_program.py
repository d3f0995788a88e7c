from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule

from policy_export.backends.aoti import open_package
from policy_export.device.errors import UserError
from policy_export.device.onnx_session import load_onnx
from policy_export.lowering.onnx import convert
from policy_export.program.archive import load_program
from policy_export.program.calls import wrap
from policy_export.program.export import export, random_operators
from policy_export.program.step import Step
from policy_export.program.torch_private import compile_package

pytestmark = pytest.mark.slow

DETERMINISTIC, RANDOM = ExplorationType.DETERMINISTIC, ExplorationType.RANDOM
WITH_MEMORY = ["shipped", "four frames"]
FACTS = {"policy": "dqn", "environment": {"id": "ALE/Pong-v5"}}


@pytest.fixture(scope="module")
def profiles(variant):
    """Return policies of every kind that params.yaml can describe, by name."""
    return {
        "shipped": variant(),
        "one frame": variant(preprocess={"frames": 1}),
        "four frames": variant(preprocess={"frames": 4, "resize": "area", "size": [42, 42]}),
    }


@pytest.fixture(scope="module", params=["one frame", *WITH_MEMORY])
def step(request, profiles, make_step) -> Step:
    return make_step(profiles[request.param], DETERMINISTIC)


@pytest.fixture(scope="module")
def program(step):
    return export(step)


@pytest.fixture(scope="module")
def runtimes(step, program, tmp_path_factory):
    """Give the exported program and what ONNX Runtime makes of it, as functions of named arrays."""
    path = tmp_path_factory.mktemp("onnx") / "policy.onnx"
    path.write_bytes(convert(program, FACTS | step.signature.as_dict(), opset=20).SerializeToString())
    return {"pt2": wrap(program.module()), "onnx": load_onnx(path)}


def random_inputs(step, rows, is_init=False):  # noqa: FBT002
    """Return inputs in the middle of an episode, by name."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, tensor in step.example_inputs(rows).items():
        if tensor.dtype == torch.uint8:
            arrays[name] = random.integers(256, size=tensor.shape, dtype=np.uint8)
        elif tensor.dtype == torch.bool:
            arrays[name] = np.full(tensor.shape, is_init)
        else:
            arrays[name] = random.standard_normal(tensor.shape, dtype=np.float32)
    return arrays


def assert_close(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


def test_signature_of_the_shipped_policy(profiles, make_step):
    preprocess = profiles["shipped"].preprocess
    frames = ["batch", preprocess.frames - 1, *preprocess.size]
    assert make_step(profiles["shipped"], DETERMINISTIC).signature.as_dict() == {
        "inputs": [
            {"name": "observation", "dtype": "uint8", "shape": ["batch", 210, 160, 3]},
            {"name": "frames", "dtype": "float32", "shape": frames},
            {"name": "is_init", "dtype": "bool", "shape": ["batch", 1]},
        ],
        "outputs": [
            {"name": "action", "dtype": "int64", "shape": ["batch"]},
            {"name": "action_value", "dtype": "float32", "shape": ["batch", 6]},
            {"name": "next_frames", "dtype": "float32", "shape": frames},
        ],
        "states": [{"input": "frames", "output": "next_frames"}],
    }


def test_signature_of_a_policy_without_memory(profiles, make_step):
    signature = make_step(profiles["one frame"], DETERMINISTIC).signature
    assert [info.name for info in signature.inputs] == ["observation"]
    assert [info.name for info in signature.outputs] == ["action", "action_value"]
    assert signature.states == []


@pytest.mark.parametrize(
    ("in_keys", "out_keys", "name"),
    [([("a", "b"), "a_b"], ["action"], "a_b"), (["x", ("s", "t"), "s_t"], ["action", ("next", "x")], "s_t")],
)
def test_two_entries_of_one_name(in_keys, out_keys, name):
    policy = TensorDictModule(nn.Identity(), in_keys=in_keys, out_keys=out_keys)
    with pytest.raises(UserError) as caught:
        Step(policy, Composite(), DETERMINISTIC)
    (line,) = str(caught.value).splitlines()
    assert all(repr(key) in line for key in (*in_keys[-2:], name))


class Tally(nn.Module):
    """A policy that sums up its observations, and acts by the sum's sign."""

    def forward(self, obs, total, is_init):
        total = torch.where(is_init, 0.0, total) + obs.sum(-1, keepdim=True)
        values = torch.cat([total, -total], -1)
        return values.argmax(-1), values, total


@pytest.fixture(scope="module")
def nested() -> Step:
    """Give a policy whose observation and state are nested, as those of several agents are."""
    keys = {"obs": ("group0", "agent0", "obs"), "total": ("group0", "total")}
    out_keys = ["action", "action_value", ("next", *keys["total"])]
    policy = TensorDictModule(Tally(), in_keys=[*keys.values(), "is_init"], out_keys=out_keys)
    obs, total = Unbounded((3,), dtype=torch.float32), Unbounded((1,), dtype=torch.float32)
    return Step(policy, Composite(group0=Composite(agent0=Composite(obs=obs), total=total)), DETERMINISTIC)


@pytest.mark.parametrize("runtime", ["pt2", "onnx", "aoti"])
def test_nested_entries_have_flat_names(nested, tmp_path, runtime):
    program, signature = export(nested), nested.signature.as_dict()
    assert [spec["name"] for spec in signature["inputs"]] == ["group0_agent0_obs", "group0_total", "is_init"]
    assert signature["states"] == [{"input": "group0_total", "output": "next_group0_total"}]
    if runtime == "onnx":
        (tmp_path / "policy.onnx").write_bytes(convert(program, FACTS | signature, opset=20).SerializeToString())
        run = load_onnx(tmp_path / "policy.onnx")
    elif runtime == "aoti":
        compile_package(program, tmp_path / "policy.aoti.pt2", {})
        run = wrap(open_package(tmp_path / "policy.aoti.pt2"))
    else:
        run = wrap(program.module())
    inputs = random_inputs(nested, 5)
    inputs["is_init"][2] = True
    found = run(inputs)
    assert_close(found, wrap(nested)(inputs))
    total = inputs["group0_agent0_obs"].sum(-1) + np.where(inputs["is_init"], 0, inputs["group0_total"])[:, 0]
    np.testing.assert_allclose(found["next_group0_total"][:, 0], total, rtol=0, atol=1e-5)


def test_compilers_side_by_side_share_no_file(nested, tmp_path, monkeypatch):
    """PyTorch names its folder after the code: the files of a like program would be those of this one."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    for name in ("first", "second"):
        path = tmp_path / f"{name}.aoti.pt2"
        compile_package(export(nested), path, {"aot_inductor.metadata": {"facts": name}})
        assert open_package(path).get_metadata()["facts"] == name
    assert not list(cache.rglob("*_metadata.json"))


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("runtime", ["pt2", "onnx"])
def test_program_does_what_the_policy_does_at_any_batch_size(step, runtimes, runtime, rows):
    inputs = random_inputs(step, rows)
    found = runtimes[runtime](inputs)
    assert found["action"].shape == (rows,)
    assert_close(found, wrap(step)(inputs))
    assert (found["action"] == found["action_value"].argmax(-1)).all()


@pytest.mark.parametrize("runtime", ["pt2", "onnx"])
def test_rows_do_not_see_each_other(step, runtimes, runtime):
    inputs = random_inputs(step, 5)
    if "is_init" in inputs:
        inputs["is_init"][[1, 4]] = True
    together = runtimes[runtime](inputs)
    for row in range(5):
        alone = runtimes[runtime]({name: array[[row]] for name, array in inputs.items()})
        assert_close({name: array[[row]] for name, array in together.items()}, alone)


@pytest.mark.parametrize("step", WITH_MEMORY, indirect=True)
@pytest.mark.parametrize("garbage", [0.0, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("runtime", ["pt2", "onnx"])
def test_rows_that_begin_ignore_the_memory(step, runtimes, runtime, garbage):
    inputs = random_inputs(step, 4)
    inputs["is_init"][[0, 2]] = True
    before = runtimes[runtime](inputs)
    assert np.isfinite(before["action_value"]).all()
    inputs["frames"] = np.where(inputs["is_init"][..., None, None], np.float32(garbage), inputs["frames"])
    after = runtimes[runtime](inputs)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("step", WITH_MEMORY, indirect=True)
def test_memory_matters_in_the_other_rows(step, runtimes):
    inputs = random_inputs(step, 2)
    before = runtimes["pt2"](inputs)["action_value"]
    inputs["frames"][1] += 1
    after = runtimes["pt2"](inputs)["action_value"]
    assert np.array_equal(before[0], after[0])
    assert not np.allclose(before[1], after[1])


def test_outputs_are_contiguous(step, program):
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(step, 3).items()}
    outputs = [step(**inputs), program.module()(**inputs)]
    assert [name for found in outputs for name, tensor in found.items() if not tensor.is_contiguous()] == []


@pytest.mark.parametrize("exploration_type", [DETERMINISTIC, RANDOM])
def test_random_operators_are_where_they_belong(profiles, make_step, exploration_type):
    found = random_operators(export(make_step(profiles["shipped"], exploration_type)))
    assert bool(found) == (exploration_type is RANDOM)


def test_deterministic_program_may_not_draw(profiles, make_step):
    policy = make_step(profiles["shipped"], DETERMINISTIC)
    noise = TensorDictModule(torch.rand_like, in_keys=["action_value"], out_keys=["action_value"])
    noisy = TensorDictSequential(policy.policy, noise)
    with pytest.raises(UserError) as caught:
        export(Step(noisy, policy.input_spec, DETERMINISTIC))
    (line,) = str(caught.value).splitlines()
    assert "rand_like" in line
    assert random_operators(export(Step(noisy, policy.input_spec, RANDOM)))


def test_random_program_explores(variant, make_step):
    policy = make_step(variant(policy={"epsilon": 1.0}), RANDOM)
    program = export(policy).module()
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(policy, 100).items()}
    torch.manual_seed(0)
    first, second = program(**inputs), program(**inputs)
    assert set(first["action"].tolist()) == set(range(6))
    assert not torch.equal(first["action"], second["action"])
    assert torch.equal(first["action_value"], second["action_value"])


def test_random_program_is_mostly_greedy(variant, make_step):
    policy = make_step(variant(policy={"epsilon": 0.1}), RANDOM)
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(policy, 50).items()}
    program = export(policy).module()
    torch.manual_seed(0)
    outputs = [program(**inputs) for _ in range(20)]
    other = torch.stack([found["action"] != found["action_value"].argmax(-1) for found in outputs])
    assert 0.05 < other.float().mean() < 0.12  # 0.1 * 5/6, five standard deviations wide


def test_exploration_type_is_the_program_s_own(profiles, make_step):
    """Check that a deterministic step stays deterministic, whatever is set around the call."""
    policy = make_step(profiles["shipped"], DETERMINISTIC)
    (explore,) = (module for module in policy.modules() if isinstance(module, EGreedyModule))
    explore.eps.fill_(1.0)
    inputs = {name: torch.from_numpy(array) for name, array in random_inputs(policy, 20).items()}
    with set_exploration_type(RANDOM):
        outputs = policy(**inputs)
    assert torch.equal(outputs["action"], outputs["action_value"].argmax(-1))


def test_programs_of_the_stage_know_what_they_are(workspace):
    for name, exploration in (("policy", "DETERMINISTIC"), ("policy_random", "RANDOM")):
        program, facts = load_program(workspace / f"models/dqn/{name}.pt2", "dqn")
        assert facts["exploration_type"] == exploration
        assert bool(random_operators(program)) == (exploration == "RANDOM")
        assert [action["ale_id"] for action in facts["actions"]] == [0, 1, 3, 4, 11, 12]
        assert json.loads(json.dumps(facts)) == facts


class Checking(nn.Module):
    """A module that reads its values in checks that only raise, in all the ways that are left out of a program."""

    def forward(self, obs):
        beyond = obs.abs() > 1000
        if any(
            beyond.view(
                -1,
            ).tolist()
        ):
            raise ValueError("too large")
        if not all((~beyond).flatten().tolist()):
            raise ValueError("too large")
        if beyond.any().item() or beyond.any():
            raise ValueError("too large")
        return obs.sum(-1)


class Branching(nn.Module):
    """A module that computes something else where its check fails."""

    def forward(self, obs):
        if (obs.abs() > 1000).any().item():
            obs = obs / 1000
        return obs.sum(-1)


def step_of(module):
    policy = TensorDictSequential(TensorDictModule(module, in_keys=["obs"], out_keys=["action"]))
    return Step(policy, Composite({"obs": Unbounded(3)}), DETERMINISTIC)


def test_checks_of_lists_are_left_out():
    program = export(step_of(Checking())).module()
    for rows in (1, 5):
        torch.testing.assert_close(program(obs=torch.ones(rows, 3))["action"], torch.full((rows,), 3.0))


def test_a_branch_that_computes_is_no_check():
    with pytest.raises(Exception, match="data-dependent"):
        export(step_of(Branching()))
