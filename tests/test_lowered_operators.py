"""Operators that are written in terms of others give what eager gives, whatever their sizes and dtypes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from policy_export.lowering import images, layers, orders, running
from policy_export.lowering.convolutions import convolve, convolve_transposed

aten = torch.ops.aten
NAN, INFINITY = float("nan"), float("inf")

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
GROUPS = [(1, 4, 6), (2, 4, 6), (4, 4, 4), (4, 4, 8), (3, 6, 9)]  # groups, channels, outputs
NUMBERS = [
    torch.randn(3, 9, generator=torch.Generator().manual_seed(0)),
    torch.randint(4, (2, 3, 9), generator=torch.Generator().manual_seed(0)),
    torch.tensor([[1, NAN, -0.0, 0, INFINITY, -INFINITY, NAN, 1]]),
    torch.randint(2, (7,), generator=torch.Generator().manual_seed(0)).bool(),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_same(found, expected, tolerance: float = 0) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("widths", GROUPS)
@pytest.mark.parametrize(
    "steps",
    [(1, 0, 1, 3), (2, 1, 1, 3), (2, 2, 2, 2), (3, 0, 1, 1), (1, "same", 2, 3), (1, "valid", 1, 2)],
)
def test_convolution(axes, widths, steps):
    (groups, channels, outputs), (stride, padding, dilation, kernel) = widths, steps
    rows = torch.randn(2, channels, *(9, 8, 7)[:axes], dtype=torch.float64)
    weight = torch.randn(outputs, channels // groups, *[kernel] * axes, dtype=torch.float64)
    bias = torch.randn(outputs, dtype=torch.float64)
    around = padding if isinstance(padding, str) else [padding]
    for given, added in itertools.product((rows, rows[0]), (bias, None)):
        expected = CONVOLUTIONS[axes](given, weight, added, stride, padding, dilation, groups)
        assert_same(convolve(given, weight, added, [stride], around, [dilation], groups), expected, 1e-12)
    if not isinstance(padding, str):
        weight = torch.randn(channels, outputs // groups, *[kernel] * axes, dtype=torch.float64)
        more = max(stride, dilation) - 1
        expected = TRANSPOSED[axes](rows, weight, bias, stride, padding, more, groups, dilation)
        found = convolve_transposed(rows, weight, bias, [stride], [padding], [more], groups, [dilation])
        assert_same(found, expected, 1e-12)


def test_convolution_with_a_stride_of_each_axis():
    rows, weight = torch.randn(2, 4, 11, 9), torch.randn(4, 1, 9, 8)  # more weights than are written out
    options = {"stride": (2, 1), "padding": (4, 3), "groups": 4}
    assert_same(convolve(rows, weight, **options), functional.conv2d(rows, weight, **options), 1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((210, 160), (84, 84)),
        ((16, 12), (7, 9)),
        ((8, 8), (16, 4)),
        ((5, 7), (5, 3)),
        ((9, 9), (9, 9)),
        ((3, 4), (11, 13)),
    ],
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_antialiased_resize(mode, size, resized, align_corners):
    operator = getattr(aten, f"_upsample_{mode}2d_aa")
    resize = images.resize_antialiased(operator)
    floats = torch.rand(2, 3, *size)
    assert_same(resize(floats, resized, align_corners), operator(floats, resized, align_corners), 1e-5)
    doubles = floats.double()
    assert_same(resize(doubles, resized, align_corners), operator(doubles, resized, align_corners), 1e-12)
    for channels in (1, 3, 4):
        for form in (torch.contiguous_format, torch.channels_last):
            screens = torch.randint(256, (2, channels, *size), dtype=torch.uint8).contiguous(memory_format=form)
            assert_same(resize(screens, resized, align_corners), operator(screens, resized, align_corners))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("arguments", [([6, 5], None), (None, [0.5, 1.7])])
def test_antialiased_resize_by_a_size_or_a_factor(mode, arguments):
    operator = getattr(aten, f"_upsample_{mode}2d_aa")
    floats, (size, factors) = torch.rand(1, 2, 12, 10), arguments
    found = images.resize_antialiased_vec(operator)(floats, size, False, factors)  # noqa: FBT003
    assert_same(found, operator.vec(floats, size, False, factors), 1e-5)  # noqa: FBT003


@pytest.mark.parametrize("sizes", [((2, 3, 64, 64), (3, 2)), ((1, 2, 17, 13), (3, 2)), ((2, 9, 10, 11), (2, 3, 4))])
def test_adaptive_pools(sizes):
    shape, output = sizes
    rows, axes = torch.randint(50, shape).float(), len(output)
    mean = getattr(aten, f"adaptive_avg_pool{axes}d")(rows, output)
    assert_same(images.pool_means(rows, output), mean, 1e-5)
    assert_same(images.pool_largest(rows, output), getattr(aten, f"adaptive_max_pool{axes}d")(rows, output))


@pytest.mark.parametrize("numbers", NUMBERS, ids=["floats", "ties", "no numbers", "flags"])
def test_orders_and_running_sums(numbers):
    for dim in {-1, 0}:
        for descending in (False, True):
            expected = tuple(torch.sort(numbers, stable=True, dim=dim, descending=descending))
            assert_same(orders.sort(numbers, dim, descending), expected)
            assert_same(orders.argsort(numbers, dim, descending), expected[1])
        assert_same(running.cumsum(numbers, dim), numbers.cumsum(dim), 1e-6)
        assert_same(running.cumprod(numbers, dim), numbers.cumprod(dim), 1e-6)
        if numbers.dtype == torch.bool:
            continue
        for largest in (False, True):
            assert_same(orders.topk(numbers, 1, dim, largest)[0], numbers.topk(1, dim, largest)[0])
        for keep in (False, True):
            assert_same(orders.kthvalue(numbers, 1, dim, keep)[0], numbers.kthvalue(1, dim, keep)[0])
            assert_same(orders.median(numbers, dim, keep), tuple(numbers.median(dim, keep)))
        assert_same(orders.median_of_all(numbers), numbers.median())
        assert_same(running.cummax(numbers, dim), tuple(numbers.cummax(dim)))
        assert_same(running.cummin(numbers, dim), tuple(numbers.cummin(dim)))
        if numbers.is_floating_point():
            assert_same(running.logcumsumexp(numbers, dim), numbers.logcumsumexp(dim), 1e-5)


def test_number_without_axes():
    number = torch.tensor(3.0)
    assert_same(orders.sort(number), tuple(number.sort()))
    assert_same(orders.median(number), tuple(number.median(-1)))


def test_too_many_numbers_stay_the_operator_that_they_were():
    many = torch.zeros(orders.LARGEST + 1)
    assert orders.sort(many) is NotImplemented
    assert orders.median(many) is NotImplemented
    assert running.cumsum(many, 0) is NotImplemented


@pytest.mark.parametrize("right", [False, True])
def test_searches(right):
    bounds, numbers = torch.tensor([0.0, 1, 1, 2]), torch.tensor([[-1, 0, 1, 1.5, 2, 3, NAN]])
    assert_same(orders.searchsorted(bounds, numbers, right=right), torch.searchsorted(bounds, numbers, right=right))
    assert_same(orders.bucketize(numbers, bounds, right=right), torch.bucketize(numbers, bounds, right=right))
    rows, side = torch.rand(3, 5), "right" if right else "left"
    order = rows.argsort(-1)
    expected = torch.searchsorted(rows, rows, side=side, sorter=order, out_int32=True)
    assert_same(orders.searchsorted(rows, rows, side=side, sorter=order, out_int32=True), expected)


@pytest.mark.parametrize("reduce", layers.REDUCTIONS)
@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
@pytest.mark.parametrize(("dim", "shape"), [(0, (4, 3, 2)), (1, (4, 9, 2)), (2, (2, 3, 5)), (-1, (4, 3, 7))])
def test_scatter(reduce, include_self, dtype, dim, shape):
    start, index = (torch.randn(4, 5, 5) * 4).to(dtype), torch.randint(5 if dim else 4, shape)
    source = (torch.randn([size + 1 for size in shape]) * 4).to(dtype)  # more than there are indices for
    found = layers.scatter_reduce(start, dim, index, source, reduce, include_self=include_self)
    assert_same(found, start.scatter_reduce(dim, index, source, reduce, include_self=include_self), 1e-9)


def test_layers():
    rows, weight = torch.randn(2, 6, 4, 5), torch.randn(6)
    for given in (rows, rows.contiguous(memory_format=torch.channels_last), rows[..., 0]):
        found = layers.group_norm(given, 3, weight, weight)
        assert_same(found, functional.group_norm(given, 3, weight, weight), 1e-5)
        assert found.is_contiguous()
    one, other, weights, bias = torch.randn(3, 4), torch.randn(3, 5), torch.randn(6, 4, 5), torch.randn(6)
    assert_same(layers.bilinear(one, other, weights, bias), functional.bilinear(one, other, weights, bias), 1e-5)
    for norm in (0, 1, 2, 3.0, INFINITY):
        assert_same(layers.cdist(rows[0], rows[1], norm), torch.cdist(rows[0], rows[1], norm), 1e-5)
    mask, source = torch.rand(3, 4) > 0.5, torch.arange(12.0)
    assert_same(layers.masked_scatter(torch.zeros(3, 4), mask, source), torch.zeros(3, 4).masked_scatter(mask, source))
    start, batch = torch.randn(4, 4, dtype=torch.float64), rows.double().flatten(0, 1)
    expected = torch.addbmm(start, batch, batch.mT, beta=0.5, alpha=2)
    assert_same(layers.addbmm(start, batch, batch.mT, beta=0.5, alpha=2), expected, 1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm(bidirectional):
    module = torch.nn.LSTM(5, 4, 2, bidirectional=bidirectional).eval().requires_grad_(requires_grad=False)
    states = [torch.randn(4 if bidirectional else 2, 2, 4) for _ in range(2)]
    arguments = (torch.randn(3, 2, 5), states, list(module.parameters()), True, 2, 0.0, False, bidirectional, False)
    assert_same(layers.lstm(*arguments), aten.lstm.input(*arguments), 1e-5)
