"""Operators of a policy in the native library, compared with eager's, and those refused before compiling."""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from policy_export.backends import runtimes
from policy_export.device.errors import UserError
from policy_export.lowering import native as compile_native
from policy_export.lowering.batch_one import lower_batch_one
from policy_export.lowering.instructions import find_target
from policy_export.lowering.native_operators import describe_operator, describe_place, find_unsupported
from policy_export.program.archive import save_program

TOLERANCE = 1e-5
ROWS = 4  # of inputs, compared one at a time
Outputs = dict[str, torch.Tensor]


def named(outputs: dict[str, object]) -> Outputs:
    """Return tensors, also those in tuples and lists, named by operator and number, contiguous as a policy's are."""
    found = {}
    for name, output in outputs.items():
        for number, tensor in enumerate([output] if isinstance(output, torch.Tensor) else output):
            found[f"{name}_{number}"] = tensor.contiguous()
    return {"action": torch.zeros_like(next(iter(found.values())).flatten(1)[:, 0], dtype=torch.int64)} | found


class Images(nn.Module):
    """Images of bytes and floats: convolutions, pools, norms, resizes."""

    OBSERVATION = ((3, 34, 26), torch.uint8)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "plain": nn.Conv2d(3, 4, 3, 2),
                "dilated": nn.Conv2d(3, 4, 3, padding=2, dilation=2),
                "grouped": nn.Conv2d(6, 4, 3, groups=2),
                "depthwise": nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
                "wide_depthwise": nn.Conv2d(3, 3, 9, groups=3),
                "same": nn.Conv2d(3, 4, (5, 4), padding="same", dilation=(1, 2)),
                "circular": nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
                "transposed": nn.ConvTranspose2d(3, 4, 3, 2, 1, 1),
                "separable": nn.Sequential(
                    nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), nn.ReLU6(), nn.Conv2d(3, 4, 1), nn.Flatten()
                ),
                "group_norm": nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten()),
                "instance_norm": nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Flatten()),
                "adaptive_mean": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((3, 5)), nn.Flatten()),
                "adaptive_largest": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d((3, 5)), nn.Flatten()),
                "pools": nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2), nn.AvgPool2d(2), nn.Flatten()),
            }
        )
        self.lines = nn.ModuleDict(
            {
                "line": nn.Conv1d(4, 3, 3, padding=1),
                "causal": nn.Conv1d(4, 4, 2, dilation=4, groups=4),
                "transposed_line": nn.ConvTranspose1d(4, 2, 3, 2),
                "line_norm": nn.GroupNorm(2, 4),
            }
        )
        self.volume = nn.Conv3d(2, 2, 2, groups=2)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)

    def forward(self, observation: torch.Tensor) -> Outputs:
        pixels = observation / 255
        line = pixels.flatten(1)[:, :76].reshape(-1, 4, 19)
        found = {
            name: layer(torch.cat([pixels, 1 - pixels], 1) if name == "grouped" else pixels)
            for name, layer in self.layers.items()
        }
        found |= {name: layer(line) for name, layer in self.lines.items()}
        found["volume"] = self.volume(pixels.reshape(-1, 2, 3, 17, 26))
        for mode in ("bilinear", "bicubic"):
            for size in ((15, 11), (40, 26)):
                scaled = functional.interpolate(pixels, size, mode=mode, antialias=True)
                rounded = functional.interpolate(observation, size, mode=mode, antialias=True)
                found |= {f"{mode}_{size[0]}": scaled, f"{mode}_{size[0]}_bytes": rounded}
        return named(found)


class Vectors(nn.Module):
    """Orders, running sums, indices, and functions of a number."""

    OBSERVATION = ((55,), torch.float32)

    def forward(self, observation: torch.Tensor) -> Outputs:
        numbers, whole = observation[:, :40], (observation[:, 40:].abs() * 3).long().clamp(max=8)
        ties, indices = whole[:, :9], whole[:, 9:]
        few, part = numbers[:, :9], numbers[:, :6]
        positive = numbers.abs() + 0.1
        inside = numbers.tanh() * 0.9
        found: dict[str, object] = {
            "sort": few.sort(-1),
            "sort_down": few.sort(-1, descending=True),
            "sort_ties": ties.sort(stable=True),
            "sort_ties_down": ties.sort(stable=True, descending=True),
            "argsort": few.argsort(-1),
            "msort": numbers.reshape(-1, 10, 4)[0].msort()[None],
            "topk": few.topk(3),
            "smallest": few.topk(3, largest=False),
            "kthvalue": few.kthvalue(4),
            "median": few.median(-1),
            "searchsorted": torch.searchsorted(torch.linspace(-1, 1, 5), numbers),
            "bucketize": torch.bucketize(numbers, torch.linspace(-1, 1, 5), right=True),
            "cumsum": numbers.cumsum(-1),
            "cumsum_ties": ties.cumsum(-1),
            "cumprod": few.cumprod(-1),
            "cummax": few.cummax(-1),
            "cummin": ties.cummin(-1),
            "logcumsumexp": few.logcumsumexp(-1),
            "gather": few.gather(1, indices),
            "scatter": few.scatter(1, indices[:, :1], part[:, :1]),
            "scatter_add": few.scatter_add(1, indices, part),
            "scatter_add_ties": ties.scatter_add(1, indices, indices),
            "scatter_largest": few.scatter_reduce(1, indices, part, "amax"),
            "scatter_mean": few.scatter_reduce(1, indices, part, "mean", include_self=False),
            "index_put": few.index_put((torch.zeros_like(indices), indices), part, accumulate=True),
            "masked_scatter": few.masked_scatter(few > 0, part.repeat(1, 2)),
            "masked_fill": few.masked_fill(few > 0, -1e9),
            "one_hot": functional.one_hot(indices, 9),
            "roll": few.roll(2, -1),
            "flip": few.flip(-1),
            "largest": few.max(-1),
            "argmin": few.argmin(-1),
            "moments": torch.var_mean(numbers, -1),
            "softmax": numbers.softmax(-1),
            "log_softmax": numbers.log_softmax(-1),
            "logsumexp": numbers.logsumexp(-1),
            "double": (numbers.double().exp().log1p().tanh() + numbers.double().sin()).erf(),
            "double_product": numbers.double() @ torch.linspace(-1, 1, 120, dtype=torch.float64).reshape(40, 3),
        }
        anywhere = (torch.erf, torch.erfc, functional.gelu, functional.softplus, torch.tanh, torch.sin, torch.cos)
        anywhere += (torch.exp, torch.expm1, torch.atan, torch.asinh, torch.sigmoid, functional.mish, torch.round)
        above = (torch.log1p, torch.log, torch.log2, torch.log10, torch.sqrt, torch.rsqrt, torch.lgamma, torch.digamma)
        within = (torch.atanh, torch.asin, torch.acos, torch.tan, torch.sinh, torch.cosh, torch.exp2, torch.erfinv)
        both = (torch.atan2, torch.fmod, torch.remainder, torch.hypot, torch.copysign, torch.logaddexp, torch.maximum)
        found |= {f"{function.__name__}": function(numbers) for function in anywhere}
        found |= {f"{function.__name__}": function(positive) for function in above}
        found |= {f"{function.__name__}": function(inside) for function in within}
        found |= {f"{function.__name__}": function(numbers, positive) for function in both}
        found |= {"pow": positive**inside, "acosh": (positive + 1).acosh(), "nextafter": numbers.nextafter(positive)}
        return named(found)


class Sequences(nn.Module):
    """Attention, recurrence, and products without weights."""

    OBSERVATION = ((5, 9), torch.float32)

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.embedding = nn.Embedding(9, 8)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.bilinear = nn.Bilinear(8, 8, 3)
        self.exact = nn.Linear(8, 20, dtype=torch.float64)

    def forward(self, observation: torch.Tensor) -> Outputs:
        tokens, words = observation[..., :8], (observation[..., 8].abs() * 3).long().clamp(max=8)
        heads = tokens.reshape(-1, 5, 2, 4).transpose(1, 2)
        mask = torch.ones(5, 5, dtype=torch.bool).tril(-1)  # of the first row nothing is left
        matrix = tokens[0]
        found = {
            "attention": self.attention(tokens, tokens, tokens),
            "attention_alone": self.attention(tokens, tokens, tokens, need_weights=False)[0],
            "encoder": self.encoder(tokens),
            "scaled": functional.scaled_dot_product_attention(heads, heads * 2, heads + 1),
            "causal": functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True, scale=0.3),
            "masked": functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask),
            "biased": functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask * 0.5),
            "embedding": self.embedding(words),
            "lstm": self.lstm(tokens)[0],
            "gru": self.gru(tokens)[0],
            "bilinear": self.bilinear(tokens[:, 0], tokens[:, 1]),
            "exact": self.exact(tokens.double()),
            "einsum": torch.einsum("bik,bjk->bij", tokens, tokens),
            "mm": (matrix @ matrix.T)[None],
            "addmm": torch.addmm(matrix[:, :5], matrix, matrix.T, beta=0.5, alpha=2)[None],
            "bmm": tokens.mT.bmm(tokens),
            "baddbmm": torch.baddbmm(tokens[:, :, :5], tokens, tokens.mT),
            "addbmm": torch.addbmm(matrix[:, :5], tokens, tokens.mT)[None],
            "integers": words[:, :, None] @ words[:, None],
            "cdist": torch.cdist(tokens, tokens * 2),
        }
        return named(found)


def describe(tensors: Outputs) -> list[dict[str, object]]:
    return [
        {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["batch", *tensor.shape[1:]]}
        for name, tensor in tensors.items()
    ]


def export(module: nn.Module, row: dict[str, torch.Tensor]) -> torch.export.ExportedProgram:
    module.eval().requires_grad_(requires_grad=False)
    return torch.export.export(module, (), row)


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = (ROWS, *shape)
    return torch.randn(size) if dtype == torch.float32 else torch.randint(256, size, dtype=dtype)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:The tensor attributes self\.(gru|lstm)\._flat_weights:UserWarning")
@pytest.mark.parametrize("kind", [Images, Vectors, Sequences])
def test_native_library_computes_as_eager(kind, tmp_path):
    torch.manual_seed(0)
    module, rows = kind(), draw(*kind.OBSERVATION)
    row = {"observation": rows[:1]}
    single = lower_batch_one(export(module, row), describe(row))
    facts = {"policy": "operators", "actions": [], "states": [], "inputs": describe(row)}
    facts["outputs"] = describe(module(**row))
    target = find_target("native")
    compile_native.generate(single, target, tmp_path)
    compile_native.write_facts(tmp_path / "facts.h", facts, tmp_path / "weights.bin")
    compile_native.build(tmp_path, target, tmp_path / "build")
    library = runtimes.load(tmp_path / "build/libpolicy.so", 1)
    failures = []
    for number in range(ROWS):
        found = library({"observation": rows[[number]].numpy()})
        for name, expected in module(rows[[number]]).items():
            try:
                np.testing.assert_allclose(found[name], expected.numpy(), rtol=0, atol=TOLERANCE, strict=True)
            except AssertionError as error:
                failures.append(f"row {number}, {name}: {error}")
    assert not failures, "\n".join(failures)


class Refused(nn.Module):
    """Operators without a kernel, once in a library's module."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 4)
        self.first = nn.Linear(9, 9)

    def forward(self, observation: torch.Tensor) -> Outputs:
        values = self.first(observation)
        bags = self.bag(observation.long().clamp(0, 8))
        inverse = torch.linalg.inv(values[:, None] * values[:, :, None])
        waves = torch.fft.rfft(values).real
        return {"action": values.mode(-1).values, "bags": bags, "inverse": inverse, "waves": waves.sort(-1).values}


def line_of(text: str) -> int:
    """Return the number of the first line of this file that contains a text."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


REFUSED = {
    "an embedding bag": "self.bag(observation",
    "the inverse of a matrix": "torch.linalg.inv(",
    "a Fourier transform": "torch.fft.rfft(",
    "the most frequent number (mode)": "values.mode(",
}


def refused_program() -> tuple[torch.export.ExportedProgram, dict[str, object]]:
    rows = {"observation": torch.randn(2, 9)}
    module = Refused().eval().requires_grad_(requires_grad=False)
    batch = {"observation": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(module, (), rows, dynamic_shapes=batch)
    return program, {"policy": "refused", "inputs": describe(rows)}


def test_what_has_no_kernel_is_named_with_its_line_without_a_compiler(monkeypatch):
    def forbidden(*_arguments: object, **_options: object) -> None:
        raise AssertionError("nothing is compiled")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    program, facts = refused_program()
    found = find_unsupported(program, facts["inputs"])
    path = Path(__file__).relative_to(Path.cwd()) if Path(__file__).is_relative_to(Path.cwd()) else Path(__file__)
    for words, text in REFUSED.items():
        assert f"{words} at {path}:{line_of(text)}" in found
    assert not any("sort" in words for words in found)


def test_policy_with_what_has_no_kernel_is_refused_before_it_is_compiled(tmp_path, monkeypatch):
    program, facts = refused_program()
    path = tmp_path / "models/refused/policy.pt2"
    path.parent.mkdir(parents=True)
    save_program(path, program, facts)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compile_native, "generate", lambda *_: pytest.fail("it is compiled"))
    place = re.escape(f"tests/test_native_operators.py:{line_of('self.bag(observation')}")
    message = (
        rf"^compile_native: the program uses what only PyTorch's library computes: an embedding bag at {place}, .*"
    )
    with pytest.raises(UserError, match=rf"{message}; write the policy with other operators$"):
        compile_native.compile_target("refused", "native", tmp_path)


class ManyNumbers(nn.Module):
    def forward(self, observation: torch.Tensor) -> Outputs:
        return {"action": observation.sort(-1).indices[:, 0]}


def test_too_many_numbers_are_counted():
    row = {"observation": torch.randn(1, 5000)}
    (found,) = find_unsupported(export(ManyNumbers(), row), describe(row))
    assert re.fullmatch(r"`sort` of 5,000 numbers at .*test_native_operators\.py:\d+", found)


@pytest.mark.slow
def test_nothing_is_found_where_all_is_written():
    row = {"observation": draw(*Sequences.OBSERVATION)[:1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export(Sequences(), row)
    assert find_unsupported(program, describe(row)) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("aten::median.dim", "`median`"),
        ("aten.sort.stable", "`sort`"),
        ("torch.ops.aten._fft_r2c.default", "a Fourier transform"),
        ("aoti_torch_cpu__embedding_bag", "an embedding bag"),
        ("aoti_torch_cpu_histc", "`histc`"),
        ("extern_kernels.convolution", "`convolution`"),
        ("Sleef_betaf8_u10", "`Sleef_betaf8_u10`"),
    ],
)
def test_operators_in_words(name, told):
    assert describe_operator(name) == told


@pytest.mark.parametrize(
    ("meta", "place"),
    [
        ({}, ""),
        ({"stack_trace": 'File "/a/mine.py", line 3, in forward'}, " at /a/mine.py:3"),
        (
            {"stack_trace": 'File "/a/mine.py", line 3\n  x\nFile "/site-packages/torch/nn/conv.py", line 7\n  y'},
            " at /a/mine.py:3",
        ),
        (
            {
                "stack_trace": 'File "/site-packages/torch/nn/conv.py", line 7\n  y',
                "nn_module_stack": {"": ("", "Policy"), "a": ("net.convolution", "Conv2d")},
            },
            " in the module net.convolution",
        ),
    ],
    ids=["nothing known", "a line", "a library's line behind it", "only a library's line"],
)
def test_places_in_words(meta, place):
    node = torch.fx.Graph().placeholder("x")
    node.meta.update(meta)
    assert describe_place(node) == place
