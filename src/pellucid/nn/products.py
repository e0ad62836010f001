"""x · Wᵀ + b for a matrix W as it is stored: which product computes it, and why.

A product takes (x, stored, bias) and gives what a plain matrix product with the opened matrix gives. ``register`` adds
one; ``choose_product`` takes the newest that says it serves a call, and otherwise ``dense`` for plain matrices, and for
quantised ones ``native`` where its kernels are built (``nn/native``), ``reference`` where they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from pellucid.nn.native.product import native
from pellucid.nn.stored import Plain, Quantised, Stored

AT_ONCE = 1 << 20  # numbers of a matrix that are opened at a time: a whole one of a small model, 4 MiB in float32


@runtime_checkable
class Product(Protocol):
    """A way to multiply. ``name`` is for people."""

    name: str

    def serves(self, x: Tensor, stored: Stored) -> str | None:
        """Why this product is to be chosen for the call; None where it cannot express it. Reads no value."""
        ...

    def __call__(
        self, x: Float[Tensor, "*axes d_in"], stored: Stored, bias: Float[Tensor, " d_out"] | None = None
    ) -> Float[Tensor, "*axes d_out"]: ...


@dataclass(frozen=True)
class Choice:
    """Which product runs, and ``why``; ``str()`` says both."""

    product: Product
    why: str

    @property
    def name(self) -> str:
        return self.product.name

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class Dense:
    """The matrix product of plain numbers."""

    name = "dense"

    def serves(self, x: Tensor, stored: Stored) -> str | None:
        return "the numbers are plain: one matrix product" if isinstance(stored, Plain) else None

    def __call__(self, x: Tensor, stored: Stored, bias: Tensor | None = None) -> Tensor:
        assert isinstance(stored, Plain)
        return F.linear(x, stored.tensor, bias)


class Reference:
    """Some rows of the matrix are opened in the type of x, multiplied, and dropped; then the next rows.

    So the numbers that are multiplied are exactly those of the opened matrix, and memory is bounded. A result may
    differ from that of one large product by rounding alone, as the sums may be made in another order.
    """

    name = "reference"

    def serves(self, x: Tensor, stored: Stored) -> str | None:
        if not isinstance(stored, Quantised):
            return None
        return f"rows of {stored.kind} are opened, multiplied and dropped; {native.declines(x, stored)}"

    def __call__(self, x: Tensor, stored: Stored, bias: Tensor | None = None) -> Tensor:
        assert isinstance(stored, Quantised)
        return quantised_linear(x, stored.blocks, bias, stored.kind)


dense, reference = Dense(), Reference()
_PRODUCTS: list[Product] = [native, dense, reference]


def register(product: Product) -> None:
    """Let ``choose_product`` ask this product first. It must agree with ``reference``, up to rounding."""
    _PRODUCTS.insert(0, product)


def unregister(product: Product) -> None:
    """Take a registered product out again."""
    _PRODUCTS.remove(product)


def choose_product(x: Float[Tensor, "*axes d_in"], stored: Stored) -> Choice:
    """The product for a call, from types, shapes and device alone; no value of a tensor is read."""
    return next(Choice(product, why) for product in _PRODUCTS if (why := product.serves(x, stored)) is not None)


def linear(
    x: Float[Tensor, "*axes d_in"], stored: Stored, bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "*axes d_out"]:
    """x · Wᵀ + b, by the product that is chosen."""
    return choose_product(x, stored).product(x, stored, bias)


# --- the reference, as operators of our own: one node each in a compiled graph ---------------------------------------
#
# They are defined by torch.library's lower half: the first call of a ``custom_op`` loads the compiler, some 70 MB.


def _operator(name: str, schema: str, kernel: Callable[..., Tensor], shape: Callable[..., Tensor]) -> Any:
    """An operator of these arguments. shape: what torch may know of its result without running it."""
    torch.library.define(f"pellucid::{name}", schema)
    torch.library.impl(f"pellucid::{name}", "default", kernel)
    torch.library.register_fake(f"pellucid::{name}", shape)
    return getattr(torch.ops.pellucid, name)


def _parts(blocks: Tensor, kind: str) -> Iterator[tuple[slice, Quantised]]:
    """The rows of a matrix, as many at a time as are opened together."""
    d_out, d_in = Quantised(blocks, kind).shape
    at_once = max(1, AT_ONCE // d_in)
    for start in range(0, d_out, at_once):
        yield slice(start, start + at_once), Quantised(blocks[start : start + at_once], kind)


def _linear(x: Tensor, blocks: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    flat, y = x.reshape(-1, x.shape[-1]), x.new_empty(*x.shape[:-1], blocks.shape[0])
    for rows, matrix in _parts(blocks, kind):
        y.view(-1, blocks.shape[0])[:, rows] = F.linear(
            flat, matrix.opened(x.dtype), None if bias is None else bias[rows]
        )
    return y


def _transposed(grad: Tensor, blocks: Tensor, kind: str) -> Tensor:
    flat = grad.reshape(-1, grad.shape[-1])
    total = grad.new_zeros(len(flat), Quantised(blocks, kind).shape[-1])
    for rows, matrix in _parts(blocks, kind):
        total.addmm_(flat[:, rows], matrix.opened(grad.dtype))
    return total.view(*grad.shape[:-1], -1)


def _grouped(x: Tensor, blocks: Tensor, ends: Tensor, kind: str) -> Tensor:
    y, begin = x.new_empty(len(x), blocks.shape[1]), 0
    for matrix, end in zip(blocks, ends.tolist(), strict=True):
        if end > begin:
            y[begin:end] = linear(x[begin:end], Quantised(matrix, kind))
        begin = end
    return y


def _grouped_transposed(grad: Tensor, blocks: Tensor, ends: Tensor, kind: str) -> Tensor:
    total, begin = grad.new_empty(len(grad), Quantised(blocks, kind).shape[-1]), 0
    for matrix, end in zip(blocks, ends.tolist(), strict=True):
        total[begin:end] = _transposed(grad[begin:end], matrix, kind)
        begin = end
    return total


def _rows(blocks: Tensor, ids: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    return Quantised(blocks[ids], kind).opened(dtype)


def _like_linear(x: Tensor, blocks: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], blocks.shape[0])


def _like_grouped(x: Tensor, blocks: Tensor, ends: Tensor, kind: str) -> Tensor:
    return x.new_empty(x.shape[0], blocks.shape[1])


def _like_transposed(grad: Tensor, blocks: Tensor, kind: str) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], Quantised(blocks, kind).shape[-1])


def _like_grouped_transposed(grad: Tensor, blocks: Tensor, ends: Tensor, kind: str) -> Tensor:
    return _like_transposed(grad, blocks, kind)


def _like_rows(blocks: Tensor, ids: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    return blocks.new_empty(*ids.shape, Quantised(blocks, kind).shape[-1], dtype=dtype)


_LINEAR = "(Tensor x, Tensor blocks, Tensor? bias, str kind) -> Tensor"
_GROUPED = "(Tensor x, Tensor blocks, Tensor ends, str kind) -> Tensor"
_ROWS = "(Tensor blocks, Tensor ids, str kind, ScalarType dtype) -> Tensor"
# y = x · Wᵀ + b: x (*axes, d_in), blocks of W (d_out, d_in) in the format ``kind``, b (d_out,), to (*axes, d_out)
quantised_linear = _operator("quantised_linear", _LINEAR, _linear, _like_linear)
# y[a:b] = x[a:b] · W[g]ᵀ for the rows of each group g, as ``grouped_linear`` has it; empty groups cost nothing
quantised_grouped = _operator("quantised_grouped", _GROUPED, _grouped, _like_grouped)
# grad · W: (*axes, d_out) to (*axes, d_in), the gradients of the two with respect to x
quantised_transposed = _operator(
    "quantised_transposed", "(Tensor grad, Tensor blocks, str kind) -> Tensor", _transposed, _like_transposed
)
quantised_grouped_transposed = _operator(
    "quantised_grouped_transposed",
    "(Tensor grad, Tensor blocks, Tensor ends, str kind) -> Tensor",
    _grouped_transposed,
    _like_grouped_transposed,
)
# W[ids] in a type: (*axes) to (*axes, d_in); only the rows that are asked for are opened
quantised_rows = _operator("quantised_rows", _ROWS, _rows, _like_rows)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:-1])
    ctx.kind = inputs[-1]


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
    for_x, _, for_bias, _ = ctx.needs_input_grad
    return (
        quantised_transposed(grad, ctx.saved_tensors[0], ctx.kind) if for_x else None,
        None,
        grad.flatten(0, -2).sum(0) if for_bias else None,
        None,
    )


def _grouped_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return quantised_grouped_transposed(grad, *ctx.saved_tensors, ctx.kind), None, None, None


torch.library.register_autograd("pellucid::quantised_linear", _linear_backward, setup_context=_keep)
torch.library.register_autograd("pellucid::quantised_grouped", _grouped_backward, setup_context=_keep)


@register_flop_formula([torch.ops.pellucid.quantised_linear, torch.ops.pellucid.quantised_grouped])
def _flops(x: Size, blocks: Size, *others: Any, **_: Any) -> int:
    return 2 * x.numel() * blocks[-2]
