"""Rewritten programs compute what they did before, and are rewritten where they can be."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchrl.modules import GRU, LSTM

from policy_export.config.profile import Preprocess
from policy_export.environments.preprocess import Screen
from policy_export.lowering.batch_one import as_flat_concatenation, lower_batch_one
from policy_export.lowering.convolutions import as_product, use_products
from policy_export.lowering.integer_preprocessing import MAX_WEIGHT, use_integer_preprocessing
from policy_export.lowering.onnx import lower, translate
from policy_export.lowering.redundant_reshapes import drop_redundant_reshapes

CROP = {"top": 34, "left": 0, "height": 160, "width": 160}
ODD_CROP = {"top": 17, "left": 8, "height": 168, "width": 144}
RED, LUMINANCE = [1.0, 0.0, 0.0], [0.299, 0.587, 0.114]
SCREENS = np.random.default_rng(0).integers(256, size=(3, 210, 160, 3), dtype=np.uint8)


class Tutorial(nn.Module):
    """A usual order: floats first, then grey, crop and resize."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        colours = observation.permute(0, 3, 1, 2).float() / 255
        grey = 0.2989 * colours[:, 0] + 0.587 * colours[:, 1] + 0.114 * colours[:, 2]
        small = nn.functional.avg_pool2d(grey[:, None, 34:194], 4)
        return (small - 0.4) / 0.1


class Gamma(Tutorial):
    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return super().forward(observation) ** 2


class Vignette(nn.Module):
    """Affine, but not separable: pixels are weighed by their distance from the centre."""

    def __init__(self) -> None:
        super().__init__()
        rows, columns = torch.linspace(-1, 1, 210)[:, None], torch.linspace(-1, 1, 160)[None]
        self.register_buffer("weights", (rows**2 + columns**2)[None])

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return (observation[..., 0].float() * self.weights).unsqueeze(1)


class Behind(nn.Module):
    """An operation after the preprocessing that is not a part of it."""

    def __init__(self, preprocessing: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.preprocessing(observation))


class AsFunction(nn.Module):
    """A transform as a function of its tensor."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.screen._apply_transform(observation)  # noqa: SLF001  of every transform


def as_onnx(module: nn.Module) -> onnx.ModelProto:
    example = torch.from_numpy(SCREENS)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Behind(module).eval(), (example,), dynamic_shapes=shapes)
    converted = torch.onnx.export(program, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert converted is not None
    return converted.model_proto


def run(model: onnx.ModelProto, screens: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: screens})[0]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def screen(resize: str, size: list[int], grey: list[float], crop: dict[str, int]) -> nn.Module:
    values = {"crop": crop, "grey": grey, "resize": resize, "size": size, "mean": 100.0, "std": 20.0, "frames": 1}
    return AsFunction(Screen(Preprocess.model_validate(values)))


@pytest.mark.parametrize(
    "preprocessing",
    [
        screen("area", [40, 40], RED, CROP),
        screen("area", [40, 40], LUMINANCE, CROP),
        screen("area", [42, 36], LUMINANCE, ODD_CROP),
        screen("area", [60, 60], RED, CROP),  # means of two and three, which overlap
        screen("nearest", [40, 40], RED, CROP),
        screen("nearest", [84, 72], LUMINANCE, ODD_CROP),
        screen("bilinear", [40, 40], [0.0, 0.5, 0.5], CROP),
        screen("bilinear", [80, 64], LUMINANCE, CROP),
        Tutorial(),
    ],
    ids=[
        "red",
        "luminance",
        "odd crop",
        "overlap",
        "nearest",
        "nearest grey",
        "bilinear",
        "bilinear 80x64",
        "tutorial",
    ],
)
@pytest.mark.slow
def test_preprocessing_becomes_a_product_of_bytes(preprocessing):
    before = as_onnx(preprocessing)
    after = use_integer_preprocessing(before)
    assert operators(after).count("MatMulInteger") == 1
    assert set(operators(after)) <= {
        "Slice",
        "Gather",
        "Reshape",
        "MatMulInteger",
        "Cast",
        "Mul",
        "ReduceSum",
        "MatMul",
        "Add",
        "Relu",
    }
    for screens in (SCREENS, SCREENS[:1], np.zeros_like(SCREENS), np.full_like(SCREENS, 255)):
        expected = run(before, screens)
        np.testing.assert_allclose(run(after, screens), expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))


def test_weights_leave_room_for_sixteen_bits():
    """Check that processors that add two products in 16 bits do not overflow."""
    model = use_integer_preprocessing(as_onnx(screen("bilinear", [80, 64], LUMINANCE, CROP)))
    (weights,) = (
        onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8
    )
    assert 1 <= np.abs(weights).max() <= MAX_WEIGHT
    assert 2 * 255 * MAX_WEIGHT < 2**15


@pytest.mark.parametrize("preprocessing", [Gamma(), Vignette()], ids=["not affine", "not separable"])
def test_what_is_no_product_stays_as_it_is(preprocessing):
    before = as_onnx(preprocessing)
    after = use_integer_preprocessing(before)
    if isinstance(preprocessing, Gamma):  # what stands before the square is one
        np.testing.assert_allclose(run(after, SCREENS), run(before, SCREENS), rtol=1e-5, atol=1e-5)
    else:
        assert after == before


def test_program_of_vectors_stays_as_it_is():
    program = torch.export.export(nn.Linear(4, 2), (torch.zeros(3, 4),))
    model = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    assert use_integer_preprocessing(model) == model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": (3, 1), "padding": (1, 2)},
        {"bias": False},
        {"dilation": 2},
        {"groups": 2},
    ],
    ids=str,
)
def test_convolution_as_product(options):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, (5, 3), **options)
    images = torch.randn(3, 4, 17, 13)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():
        program = use_products(torch.export.export(convolution, (images,), dynamic_shapes=shapes))
        for batch in (images, images[:1], images.repeat(5, 1, 1, 1)):
            torch.testing.assert_close(program.module()(batch), convolution(batch), rtol=0, atol=1e-5)
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("convolution" in target for target in targets) == any(name in options for name in ("dilation", "groups"))


def test_convolution_of_one_image_has_no_batch():
    images, weight = torch.randn(2, 9, 9), torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(as_product(images, weight), nn.functional.conv2d(images, weight), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [-3, 1, 3])
def test_concatenation_of_images_is_one_of_matrices(dim):
    images = [torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)]
    torch.testing.assert_close(as_flat_concatenation(images, dim), torch.cat(images, dim), rtol=0, atol=0)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3)

    def forward(self, observation: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        return self.convolution(torch.cat([frames, observation], -3))


def test_program_for_one_row():
    inputs = [{"name": name, "dtype": "float32", "shape": ["batch", 1, 8, 8]} for name in ("observation", "frames")]
    batch = {name: {0: torch.export.Dim("batch", min=1)} for name in ("observation", "frames")}
    rows = {name: torch.randn(2, 1, 8, 8) for name in batch}
    module = Stack()
    single = lower_batch_one(torch.export.export(module, (), rows, dynamic_shapes=batch), inputs)
    operators = {str(node.target) for node in single.graph.nodes if node.op == "call_function"}
    assert not any("conv" in operator for operator in operators)
    one = {name: tensor[:1] for name, tensor in rows.items()}
    with torch.no_grad():
        torch.testing.assert_close(single.module()(**one), module(**one), rtol=0, atol=1e-5)
    dimensions = [node.meta["val"].ndim for node in single.graph.nodes if node.target is torch.ops.aten.cat.default]
    assert dimensions == [2]


class OneStep(nn.Module):
    """A recurrent network called for one step of a sequence, with states ``(batch, 1, size)``, and what reads it."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, value: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = tuple(state.transpose(0, 1) for state in states)
        outputs, states = self.rnn(value.unsqueeze(1), states if len(states) > 1 else states[0])
        states = states if isinstance(states, tuple) else (states,)
        return torch.relu(outputs.squeeze(1)), *(state.transpose(0, 1) for state in states)


@pytest.mark.parametrize(("kind", "states"), [(LSTM, 2), (GRU, 1)])
def test_one_step_of_a_recurrent_network_moves_no_axes(kind, states):
    torch.manual_seed(0)
    module = OneStep(kind(input_size=5, hidden_size=8, batch_first=True)).eval()
    rows = (torch.randn(3, 5), *(torch.randn(3, 1, 8) for _ in range(states)))
    batch = {0: torch.export.Dim.DYNAMIC}
    shapes = (batch, (batch,) * states)
    with torch.no_grad():
        program = torch.export.export(module, rows, dynamic_shapes=shapes)
        converted = torch.onnx.export(program, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert converted is not None
    before = converted.model_proto
    after = drop_redundant_reshapes(before)
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    assert {"Slice", "Transpose"} <= set(operators(before))
    moving = {"Slice", "Transpose", "Squeeze", "Unsqueeze", "Reshape"}
    left = [name for name in operators(after) if name in moving]
    assert left == ["Reshape"] * 2 * states  # of each state, on its way in and out
    for count in (1, 3):
        given = {spec.name: row[:count].numpy() for spec, row in zip(before.graph.input, rows, strict=True)}
        expected, found = (
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)
            for model in (before, after)
        )
        for array, known in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, known)


@pytest.mark.parametrize(
    ("shapes", "nodes", "left"),
    [
        ("float[N,3] x) => (float[3,N] y", "y = Transpose (x)", ["Transpose"]),
        ("float[N,1,M] x) => (float[1,N,M] y", "y = Transpose <perm = [1, 0, 2]> (x)", ["Transpose"]),
        ("float[N,3,1] x) => (float[N,1,3] y", "y = Transpose <perm = [0, 2, 1]> (x)", ["Reshape"]),
        ("float[N,3] x) => (float[3] y", "a = Slice (x, zero, one) y = Squeeze (a, zero)", ["Slice", "Squeeze"]),
        ("float[N,3] x) => (float[N,3] y", "y = Slice (x, last, before, one, last)", ["Slice"]),
        ("float[N,3] x) => (float[N,3] y", "a = Unsqueeze (x, one) y = Squeeze (a, one)", ["Reshape"]),
        ("float[N,3] x) => (float[N,3] y", "a = Unsqueeze (x, one) b = Squeeze (a, one) y = Relu (b)", ["Relu"]),
    ],
    ids=["other axes", "two sizes vary", "axis of one", "part", "backwards", "to and fro as output", "to and fro"],
)
def test_only_what_keeps_the_order_is_dropped(shapes, nodes, left):
    constants = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1}, int64[1] before = {-9}"
    text = f'<ir_version: 9, opset_import: ["" : 20]> moves ({shapes}) <{constants}> {{ {nodes} }}'
    before = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    after = drop_redundant_reshapes(before)
    assert operators(after) == left
    shape = [size.dim_value or 2 for size in before.graph.input[0].type.tensor_type.shape.dim]
    numbers = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    np.testing.assert_array_equal(run(after, numbers), run(before, numbers))


@pytest.mark.parametrize("shape", [(3, 4, 8), (3, 2, 4, 8)], ids=["without heads", "with heads"])
def test_attention_in_onnx_where_a_mask_allows_nothing(shape):
    class Attends(torch.nn.Module):
        def forward(self, query, hidden):
            bias = torch.zeros_like(query[..., :4]).masked_fill(hidden, -torch.inf)
            return {"out": nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=bias)}

    torch.manual_seed(0)
    query, hidden = torch.randn(shape), torch.rand(*shape[:-1], 4) < 0.5
    hidden[1] = True
    inputs = {"query": query, "hidden": hidden}
    sizes = {name: {0: torch.export.Dim("batch", min=1)} for name in inputs}
    exported = torch.export.export(Attends(), (), inputs, dynamic_shapes=sizes)
    found = run_translated(exported, inputs, ["out"])["out"]
    np.testing.assert_allclose(found, Attends()(**inputs)["out"], atol=1e-6)
    assert not found[1].any()


def test_flags_in_onnx_are_drawn_with_their_probabilities():
    class Draws(torch.nn.Module):
        def forward(self, chance):
            return {"flags": torch.bernoulli(chance)}

    inputs = {"chance": torch.tensor([[0.0, 0.05, 0.5, 0.95, 1.0]]).repeat(4000, 1)}
    sizes = {"chance": {0: torch.export.Dim("batch", min=1)}}
    exported = torch.export.export(Draws(), (), inputs, dynamic_shapes=sizes)
    flags = run_translated(exported, inputs, ["flags"])["flags"]
    assert flags.dtype == np.float32
    np.testing.assert_allclose(flags.mean(0), inputs["chance"][0], atol=0.04)  # five deviations of a mean


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8])
def test_choice_between_any_numbers_in_onnx(dtype):
    class Chooses(torch.nn.Module):
        def forward(self, first, one, other):
            return {"out": torch.where(first, one, other), "filled": one.masked_fill(first, 1)}

    torch.manual_seed(0)
    one, other = (torch.randint(0, 100, (5, 3)).to(dtype) for _ in range(2))
    inputs = {"first": torch.rand(5, 1) < 0.5, "one": one, "other": other}
    sizes = {name: {0: torch.export.Dim("batch", min=1)} for name in inputs}
    exported = torch.export.export(Chooses(), (), inputs, dynamic_shapes=sizes)
    found = run_translated(exported, inputs, ["out", "filled"])
    for name, expected in Chooses()(**inputs).items():
        assert found[name].dtype == expected.numpy().dtype
        np.testing.assert_array_equal(found[name], expected)


def run_translated(exported, inputs, outputs):
    facts = {"inputs": [{"name": name} for name in inputs], "outputs": [{"name": name} for name in outputs]}
    model = lower(translate(exported, facts, 20).model_proto)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    return dict(zip(outputs, session.run(outputs, feed), strict=True))
