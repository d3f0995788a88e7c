"""Products for which AOTInductor would call PyTorch's library, as loops that it writes itself.

It has kernels for a product with constant weights, packed in advance, and for some others. What is left is small in a
policy: attention, products of two layers' outputs, and numbers of double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from policy_export.program.torch_private import OpOverload, compiler_lowerings, operator

aten = torch.ops.aten
lowerings, user_lowerings, NoValidChoicesError = compiler_lowerings()


def multiply(one: Any, other: Any) -> Any:
    """Return the product of matrices ``(..., n, k)`` and ``(..., k, m)``, as sums."""
    products = lowerings[aten.mul](lowerings[aten.unsqueeze](one, -1), lowerings[aten.unsqueeze](other, -3))
    return lowerings[aten.sum](products, [-2])


def add_product(start: Any, one: Any, other: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = multiply(one, other)
    product = product if alpha == 1 else lowerings[aten.mul](product, alpha)
    if beta == 0:
        return product
    return lowerings[aten.add](product, start if beta == 1 else lowerings[aten.mul](start, beta))


def attend(
    query: Any,
    key: Any,
    value: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    *,
    attn_mask: Any = None,
    scale: float | None = None,
) -> tuple[Any, Any]:
    """Compute ``aten._scaled_dot_product_flash_attention_for_cpu``; only training reads its second output."""
    assert dropout_p == 0
    scores = lowerings[aten.mul](
        multiply(query, lowerings[aten.permute](key, [0, 1, 3, 2])), scale or size_scale(query)
    )
    if is_causal:
        rows, columns = (lowerings[torch.ops.prims.iota](size, **COUNTING) for size in scores.get_size()[-2:])
        seen = lowerings[aten.le](lowerings[aten.unsqueeze](columns, 0), lowerings[aten.unsqueeze](rows, 1))
        scores = lowerings[aten.where](seen, scores, -torch.inf)
    if attn_mask is not None and attn_mask.get_dtype() == torch.bool:
        scores = lowerings[aten.where](attn_mask, scores, -torch.inf)
    elif attn_mask is not None:
        scores = lowerings[aten.add](scores, attn_mask)
    largest = lowerings[aten.amax](scores, [-1], keepdims=True)
    # Where nothing is looked at the result is zero.
    nothing = lowerings[aten.eq](largest, -torch.inf)
    shares = lowerings[aten.exp](lowerings[aten.sub](scores, lowerings[aten.where](nothing, 0.0, largest)))
    total = lowerings[aten.sum](shares, [-1], keepdims=True)
    shares = lowerings[aten.div](shares, lowerings[aten.where](nothing, 1.0, total))
    return multiply(shares, value), lowerings[aten.squeeze](largest, -1)


COUNTING = {"start": 0, "step": 1, "dtype": torch.int64, "device": torch.device("cpu"), "requires_grad": False}


def size_scale(query: Any) -> float:
    return float(query.get_size()[-1]) ** -0.5


def otherwise(operator: OpOverload, loops: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiler's own way of writing an operator, or loops where it has none."""

    def write(*arguments: Any, **options: Any) -> Any:
        try:
            return lowerings[operator](*arguments, **options)
        except NoValidChoicesError:
            return loops(*arguments, **options)

    return write


WRITTEN: dict[OpOverload, Callable[..., Any]] = {
    aten.mm.default: otherwise(aten.mm.default, multiply),
    aten.bmm.default: otherwise(aten.bmm.default, multiply),
    aten.addmm.default: otherwise(aten.addmm.default, add_product),
    aten.baddbmm.default: otherwise(aten.baddbmm.default, add_product),
    operator("_scaled_dot_product_flash_attention_for_cpu").default: attend,
}


@contextmanager
def products_as_loops() -> Iterator[None]:
    """Let AOTInductor write all products itself."""
    before = {operator: user_lowerings[operator] for operator in WRITTEN if operator in user_lowerings}
    user_lowerings.update(WRITTEN)
    try:
        yield
    finally:
        for operator in WRITTEN:
            del user_lowerings[operator]
        user_lowerings.update(before)
