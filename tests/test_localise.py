"""Real artefacts that are wrong in a known place, which must be named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pipeline_helpers import TINY, write_params
from torchrl.envs.utils import ExplorationType

from policy_export.backends.registry import backends
from policy_export.config import params
from policy_export.config.profile import Profile, load_profile
from policy_export.device.arrays import Arrays
from policy_export.environments.preprocess import FrameStack
from policy_export.localise import package
from policy_export.localise.compare import Location
from policy_export.lowering.aoti import compile_to
from policy_export.lowering.native import compile_target
from policy_export.lowering.onnx import convert
from policy_export.parity.locate import localise
from policy_export.program import memory
from policy_export.program.archive import load_program, save_program
from policy_export.program.export import export
from policy_export.program.policy import make_agent
from policy_export.program.step import Step, load_step
from policy_export.program.twins import RecurrentStep
from policy_export.program.weights import load_weights, save_weights

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
SMALL = {"conv": [[4, 5, 3]], "hidden": [16]}
POLICIES = {"dqn": SMALL, "drqn": SMALL | {"rnn_size": 16}}
NOTHING = "nothing differs: every output agrees for these inputs"
PREPROCESS = "policy_export/environments/preprocess.py:"
NETWORK = "policy.module.2.module.0.module"  # of dqn
Fault = Callable[[Step], None]


def write_program(policy: str, program: str, step: Step) -> None:
    """Write a program of any kind from any step, as the stages do."""
    path = Path("models", policy, backends()[program].file)
    exported = export(step)
    facts = {"policy": policy, "environment": {"id": "ALE/Pong-v5"}, "actions": [], **step.signature.as_dict()}
    match program:
        case "pt2":
            save_program(path, exported, facts)
        case "onnx":
            onnx.save(convert(exported, facts, params.load().export_onnx.opset), path)
        case _:
            compile_to(path, exported, facts, params.load().compile_aoti)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    """Return a folder with two kinds of untrained policies: weights, program and model, all without faults."""
    folder = tmp_path_factory.mktemp("bundles")
    changes = {f"policies.{policy}.policy.{key}": v for policy, keys in POLICIES.items() for key, v in keys.items()}
    write_params(folder, TINY | changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for policy in POLICIES:
            torch.manual_seed(0)
            profile = load_profile(policy)
            save_weights(Path("models", policy, "policy.safetensors"), policy, make_agent(policy, profile).actor)
            for program in ("pt2", "onnx"):
                write_program(policy, program, load_step(policy, profile))
    return folder


@pytest.fixture
def project(bundles, tmp_path, monkeypatch) -> Path:
    shutil.copytree(bundles, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_inputs(policy: str) -> Arrays:
    """Return inputs with three rows; the second is at the start of an episode."""
    random, arrays = np.random.default_rng(0), {}
    for name, tensor in load_step(policy, load_profile(policy)).example_inputs(3).items():
        if tensor.dtype == torch.uint8:
            arrays[name] = random.integers(256, size=tensor.shape, dtype=np.uint8)
        elif tensor.dtype == torch.bool:
            arrays[name] = np.array([[False], [True], [False]])
        else:
            arrays[name] = random.standard_normal(tensor.shape, dtype=np.float32)
    return arrays


def locate(policy: str, program: str) -> Location:
    location = localise(policy, program, make_inputs(policy), TOLERANCE)
    told = json.dumps(location.as_dict(), allow_nan=False) + str(location)
    assert "\n" not in told
    assert str(Path.cwd()) not in told
    assert str(Path(__file__).parents[1]) not in told
    return location


def changed_step(policy: str = "dqn", **preprocess: object) -> Step:
    """Return the policy with its weights and another preprocessing."""
    content = load_profile(policy).model_dump()
    content["preprocess"] |= preprocess
    agent = make_agent(policy, Profile.model_validate(content))
    load_weights(Path("models", policy, "policy.safetensors"), policy, agent.actor)
    agent.policy.eval().requires_grad_(requires_grad=False)
    return Step(agent.policy, agent.input_spec, ExplorationType.DETERMINISTIC)


def weight_of(step: Step, name: str) -> torch.Tensor:
    return dict(step.named_parameters())[name]


def enlarge_one(step: Step) -> None:
    weight = weight_of(step, f"{NETWORK}.0.weight").view(-1)
    weight[weight.abs().argmax()] *= 1.01


def make_nan(step: Step) -> None:
    weight_of(step, f"{NETWORK}.4.weight").view(-1)[0] = torch.nan


def permute_head(step: Step) -> None:
    weight = weight_of(step, f"{NETWORK}.7.weight")
    weight.copy_(weight.roll(1, 0))


WEIGHTS = [
    (enlarge_one, f"{NETWORK}.0.weight", "in 1 of 200 numbers", "0, Conv2d)"),
    (make_nan, f"{NETWORK}.4.weight", "in 1 of 9216 numbers, 1 of them NaN", "4, Linear)"),
    (permute_head, f"{NETWORK}.7.weight", "in 96 of 96 numbers", "7, Linear)"),
]
CROP = {"top": 35, "left": 0, "height": 160, "width": 160}
PREPROCESSING = [
    ("pt2", {"crop": CROP}, "slice_1", "window = obs["),
    ("onnx", {"crop": CROP}, "preprocessing_window", "self.shift).unsqueeze"),
    ("pt2", {"grey": [0.0, 1.0, 0.0]}, "slice_2", "window = obs["),
    ("onnx", {"grey": [0.0, 1.0, 0.0]}, "preprocessing_sums", "self.shift).unsqueeze"),
    ("pt2", {"mean": 145.0}, "sub", "grey - self.shift"),
    ("onnx", {"mean": 145.0}, "preprocessing_normalised", "self.shift).unsqueeze"),
    ("pt2", {"std": 11.0}, "policy.module.0.horizontal", "total.float() @ self.horizontal"),
    ("pt2", {"resize": "nearest"}, "slice_1", "window = obs["),
]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("program", ["pt2", "onnx"])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_clean_program_has_no_difference(policy, program):
    location = locate(policy, program)
    assert (str(location), location.tensor, location.difference) == (NOTHING, "", None)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("program", ["pt2", "onnx"])
@pytest.mark.parametrize(("fault", "tensor", "note", "source"), WEIGHTS)
def test_wrong_weight_is_named(program, fault, tensor, note, source):
    step = changed_step()
    fault(step)
    write_program("dqn", program, step)
    location = locate("dqn", program)
    assert (location.tensor, location.operator) == (tensor, "weight")
    assert note in location.note
    assert location.source.startswith("policy_export/policies/networks.py:")
    assert location.source.endswith(source)
    assert location.difference > 0
    assert location.as_dict()["difference"] == (None if fault is make_nan else location.difference)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("program", "preprocess", "tensor", "source"), PREPROCESSING)
def test_wrong_preprocessing_is_named(program, preprocess, tensor, source):
    write_program("dqn", program, changed_step(**preprocess))
    location = locate("dqn", program)
    assert location.tensor == tensor
    assert location.source.startswith(PREPROCESS)
    assert source in location.source


def wrong_from_row_64(action_value: torch.Tensor) -> torch.Tensor:
    return action_value + (torch.arange(action_value.shape[0]) >= 64).unsqueeze(1)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("program", "operator"), [("pt2", "aten.arange.default"), ("onnx", "Shape")])
def test_fault_that_depends_on_the_batch_is_named_where_the_batch_is_replayed(program, operator):
    class Wrong(Step):
        def decide(self, entries):
            decided = super().decide(entries)
            return decided.set("action_value", wrong_from_row_64(decided["action_value"]))

    right = changed_step()
    write_program("dqn", program, Wrong(right.policy, right.input_spec, ExplorationType.DETERMINISTIC))
    inputs = {name: np.resize(array, (70, *array.shape[1:])) for name, array in make_inputs("dqn").items()}
    one = {name: array[64:65] for name, array in inputs.items()}
    assert str(localise("dqn", program, one, TOLERANCE)) == NOTHING
    location = localise("dqn", program, inputs, TOLERANCE)
    assert location.operator == operator  # the first that the policy has not: it asks for the number of the row


def reset_nothing(patch):
    """Let no program reset what its policy does not."""
    patch.setattr(memory, "left_over", lambda *_: [])


def stack_without_reset(_self, frame, older, _is_init):
    pixels = torch.cat([older, frame], -3)
    return pixels, pixels[..., 1:, :, :]


def stack_without_carry(_self, frame, older, is_init):
    pixels = torch.cat([torch.where(is_init[..., None, None], frame, older), frame], -3)
    return pixels, pixels[..., :1, :, :]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("program", "stack", "tensor", "note"),
    [
        ("pt2", stack_without_reset, "where", "the program lacks "),
        ("onnx", stack_without_reset, "where", "the program lacks "),
        ("pt2", stack_without_carry, "slice_3", "expected "),
        ("onnx", stack_without_carry, "next_frames", "expected "),
    ],
)
def test_wrong_memory_is_named(monkeypatch, program, stack, tensor, note):
    with monkeypatch.context() as patch:
        patch.setattr(FrameStack, "stack", stack)
        reset_nothing(patch)
        write_program("dqn", program, changed_step())
    location = locate("dqn", program)
    assert location.tensor == tensor
    assert note in location.note
    assert location.source.startswith(PREPROCESS)


def forget(self, tensordict):
    value, *states, _ = (tensordict[key] for key in self.in_keys)
    outputs, states = self.rnn(value.unsqueeze(1), tuple(state.transpose(0, 1) for state in states))
    return tensordict.update(
        dict(zip(self.out_keys, [outputs.squeeze(1), *(s.transpose(0, 1) for s in states)], strict=True))
    )


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("program", ["pt2", "onnx"])
def test_recurrent_state_without_reset_is_named(monkeypatch, program):
    with monkeypatch.context() as patch:
        patch.setattr(RecurrentStep, "forward", forget)
        reset_nothing(patch)
        write_program("drqn", program, changed_step("drqn"))
    location = locate("drqn", program)
    assert location.tensor in ("where", "where_1")
    assert location.note.startswith("the program lacks ")
    assert location.source.startswith("policy_export/program/twins.py:")


def edit_graph(change: Callable[[torch.fx.Graph], None]) -> None:
    path = Path("models/dqn/policy.pt2")
    program, facts = load_program(path, "dqn")
    change(program.graph)
    program.graph_module.recompile()
    save_program(path, program, facts)


def add_noise(graph: torch.fx.Graph) -> None:
    (relu, *_) = (node for node in graph.nodes if node.name == "relu")
    with graph.inserting_after(relu):
        noisy = graph.call_function(torch.ops.aten.add.Tensor, (relu, 0.001))
    noisy.meta = dict(relu.meta)
    relu.replace_all_uses_with(noisy, lambda user: user is not noisy)


def swap_subtraction(graph: torch.fx.Graph) -> None:
    (node,) = (node for node in graph.nodes if node.name == "sub")
    node.target = torch.ops.aten.add.Tensor


@pytest.mark.usefixtures("project")
def test_added_operator_is_named():
    edit_graph(add_noise)
    location = locate("dqn", "pt2")
    assert location.operator == "aten.add.Tensor"
    assert location.note == "is aten.add.Tensor(_, 0.001), after aten.relu.default(_)"


@pytest.mark.usefixtures("project")
def test_other_operator_is_named():
    edit_graph(swap_subtraction)
    location = locate("dqn", "pt2")
    assert (location.tensor, location.operator) == ("sub", "aten.add.Tensor")
    assert "where the policy has aten.sub.Tensor(_, 14.4)" in location.note
    assert "grey - self.shift" in location.source


def edit_onnx(change: Callable[[onnx.ModelProto], None]) -> None:
    path = Path("models/dqn/policy.onnx")
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def give(model: onnx.ModelProto, output: str, place: int, array: np.ndarray) -> None:
    """Give a node another constant as one of its inputs."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "edited"))
    node_of(model, output).input[place] = "edited"


def start_early(model: onnx.ModelProto) -> None:
    """Start the window one row of the screen too early; a row has 4 pieces."""
    (places,) = (one for one in model.graph.initializer if one.name == "preprocessing_places")
    give(model, "preprocessing_window", 1, onnx.numpy_helper.to_array(places) - 4)


def weigh_other_bytes(model: onnx.ModelProto) -> None:
    (weights,) = (one for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8)
    give(model, "preprocessing_sums", 1, np.roll(onnx.numpy_helper.to_array(weights), 1, axis=0))


def permute_actions(model: onnx.ModelProto) -> None:
    node_of(model, "action_value").output[0] = "ordered"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 0, 2, 3, 4, 5]), "order"))
    place = next(place for place, node in enumerate(model.graph.node) if "ordered" in node.output)
    gather = onnx.helper.make_node("Gather", ["ordered", "order"], ["action_value"], axis=1)
    model.graph.node.insert(place + 1, gather)


def other_epsilon(model: onnx.ModelProto) -> None:
    (epsilon,) = (a for a in node_of(model, "layer_norm").attribute if a.name == "epsilon")
    epsilon.f = 0.1


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("change", "tensor", "operator", "note"),
    [
        (
            start_early,
            "preprocessing_window",
            "Gather",
            "is Gather(_, int64[640] with hash e2fd18c3, axis = 1), expected Gather(_, int64[640] with hash 8f2646ca, ",
        ),
        (weigh_other_bytes, "preprocessing_sums", "MatMulInteger", "is MatMulInteger(_, int8[480, 10] with hash "),
        (permute_actions, "action_value", "Gather", "is Gather(_, [1, 0, 2, 3, 4, 5], axis = 1), "),
        (other_epsilon, "layer_norm", "LayerNormalization", "epsilon = 0.1"),
    ],
)
def test_edited_model_is_located_at_the_edit(change, tensor, operator, note):
    edit_onnx(change)
    location = locate("dqn", "onnx")
    assert (location.tensor, location.operator) == (tensor, operator)
    assert note in location.note
    assert location.source.startswith("policy_export/")


def swap_states(self, tensordict):
    return tensordict.update(
        {
            ("next", "hidden0"): (given := remember(self, tensordict))[("next", "hidden1")],
            ("next", "hidden1"): given[("next", "hidden0")],
        }
    )


remember = RecurrentStep.forward


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("program", ["pt2", "onnx"])
def test_swapped_outputs_are_named(monkeypatch, program):
    """Check that two swapped states are named, although every tensor is right."""
    with monkeypatch.context() as patch:
        patch.setattr(RecurrentStep, "forward", swap_states)
        write_program("drqn", program, changed_step("drqn"))
    location = locate("drqn", program)
    assert location.note.startswith("the output next_hidden0 is ")


class DecidesOtherwiseWhenExported(torch.nn.Module):
    def forward(self, observation):
        scale = 2.0 if torch.compiler.is_compiling() else 1.0
        return (observation * scale)[..., :2]


FACTORY = """
from tensordict.nn import TensorDictModule, TensorDictSequential
from test_localise import DecidesOtherwiseWhenExported
from torchrl.data import Composite
from torchrl.modules import QValueModule


def make_policy(observation_spec, action_spec):
    values = TensorDictModule(DecidesOtherwiseWhenExported(), in_keys=["observation"], out_keys=["action_value"])
    return TensorDictSequential(values, QValueModule(spec=Composite(action=action_spec)))
"""


def test_policy_that_exports_otherwise_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("other_policy.py").write_text(FACTORY)
    text = "policies:\n  other:\n    env: {id: CartPole-v1, max_episode_steps: 10}\n    preprocess: null\n"
    text += '    policy: {factory: "other_policy:make_policy"}\n'
    Path("params.yaml").write_text(text + "    train: {algorithm: none, seed: 0, eval_episodes: 1}\n")
    profile = load_profile("other")
    save_weights(Path("models/other/policy.safetensors"), "other", make_agent("other", profile).actor)
    write_program("other", "pt2", load_step("other", profile))
    location = localise("other", "pt2", {"observation": np.ones((2, 4), np.float32)}, TOLERANCE)
    assert location.operator == "aten.mul.Tensor"
    assert location.note.startswith("exporting the policy changes it: ")
    assert "(observation * scale)" in location.source


@pytest.mark.usefixtures("project")
def test_program_that_cannot_be_taken_to_pieces_is_told():
    Path("models/dqn/policy.onnx").write_bytes(b"no model")
    assert str(locate("dqn", "onnx")).startswith("onnx cannot be taken to pieces: ")


@pytest.mark.usefixtures("project")
def test_program_of_an_unknown_back_end_is_reported():
    """Check the report for a back end that has been removed since its program was made."""
    assert str(locate("dqn", "flash")) == "flash cannot be taken to pieces: 'flash'"


@pytest.fixture(scope="module")
def compiled() -> list[package.Package]:
    """Give the package that the policy ``dqn`` should be, once it is compiled."""
    return []


@pytest.fixture
def compile_once(compiled, monkeypatch) -> None:
    """Compile the reference only once, as all faulty packages of ``dqn`` belong to the same policy."""
    compile_reference = package.compile_reference

    def compile_first(program, settings):
        compiled.extend([] if compiled else [compile_reference(program, settings)])
        return compiled[0]

    monkeypatch.setattr(package, "compile_reference", compile_first)


@pytest.mark.usefixtures("project")
def test_clean_package_has_no_difference():
    write_program("drqn", "aoti", changed_step("drqn"))
    assert str(locate("drqn", "aoti")) == NOTHING


@pytest.mark.usefixtures("project", "compile_once")
@pytest.mark.parametrize(("fault", "tensor", "note", "source"), WEIGHTS)
def test_wrong_weight_of_a_package_is_named(fault, tensor, note, source):
    step = changed_step()
    fault(step)
    write_program("dqn", "aoti", step)
    location = locate("dqn", "aoti")
    assert (location.tensor, location.operator) == (tensor, "weight")
    assert note.partition(" of ")[0] in location.note  # of more, as a kernel's blocks are filled with zeros
    assert location.source.endswith(source)


@pytest.mark.usefixtures("project", "compile_once")
@pytest.mark.parametrize(
    ("preprocess", "tensor", "source", "code"),
    [
        ({"crop": CROP}, "slice_1", "window = obs[", "16800L"),
        ({"mean": 145.0}, "sub", "grey - self.shift", "static_cast<float>(14.5)"),
    ],
)
def test_wrong_preprocessing_of_a_package_is_named(preprocess, tensor, source, code):
    write_program("dqn", "aoti", changed_step(**preprocess))
    location = locate("dqn", "aoti")
    assert location.tensor == tensor
    assert source in location.source
    assert code in location.note


@pytest.mark.usefixtures("project", "compile_once")
def test_package_without_reset_is_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FrameStack, "stack", stack_without_reset)
        reset_nothing(patch)
        write_program("dqn", "aoti", changed_step())
    location = locate("dqn", "aoti")
    assert location.tensor == "where"
    assert location.source.startswith(PREPROCESS)


@pytest.mark.usefixtures("project")
def test_package_of_a_faulty_program_has_its_fault():
    """Check that the fault is found in ``policy.pt2``, without compiling anything."""
    for program in ("pt2", "aoti"):
        write_program("dqn", program, changed_step(grey=[0.0, 1.0, 0.0]))
    location = locate("dqn", "aoti")
    assert (location.tensor, location.operator) == ("slice_2", "aten.slice.Tensor")
    assert "policy.pt2, which the package is compiled from, has the same fault" in location.note


@pytest.mark.usefixtures("project")
def test_native_library_s_fault_is_its_origin_s_or_its_own():
    write_program("dqn", "pt2", changed_step(grey=[0.0, 1.0, 0.0]))
    compile_target("dqn", "native", Path("models/dqn/native"))
    location = locate("dqn", "native")
    assert (location.tensor, location.operator) == ("slice_2", "aten.slice.Tensor")
    assert location.note.endswith("; policy.pt2, which the package is compiled from, has the same fault")
    write_program("dqn", "pt2", changed_step())
    location = locate("dqn", "native")
    assert str(location) == "policy.pt2 is right: the fault is in what compile_native makes of it"
