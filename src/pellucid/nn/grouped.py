"""A matrix product for rows that come in groups, each group with a matrix of its own: one call for all of them.

torch's ``grouped_mm`` does the work where it can. Measured beside it on one core (torch 2.13; 2048 rows in 8 or 64
groups; float32 and bfloat16; forward and backward): slice after slice takes 1.0 to 1.2 times as long; every group
padded to the longest 1.1 to 1.5 times for even groups, but 4 to 26 times for skewed ones. Yet it has no float64, wants
rows of a multiple of 16 bytes, and its shape rule knows bfloat16 only, which stops compilation in float32. So here are
two operators of our own: each chooses inside, and is one node of a compiled graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op(
    "pellucid::grouped_linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor ends) -> Tensor"
)
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """y[a:b] = x[a:b] · weight[g]ᵀ, for the rows a = ends[g - 1] to b = ends[g] of each group g.

    x: (rows, d_in), sorted by group. weight: (groups, d_out, d_in). ends: (groups,) int32, never falling, the last
    is the number of rows; a group may be empty. Returns (rows, d_out).
    """
    if _has_kernel(x, weight):
        return F.grouped_mm(x.contiguous(), _dense(weight).mT, offs=ends)
    return torch.cat([x[a:b] @ matrix.mT for (a, b), matrix in zip(_bounds(ends), weight, strict=True)])


@torch.library.custom_op(
    "pellucid::grouped_outer", mutates_args=(), schema="(Tensor left, Tensor right, Tensor ends) -> Tensor"
)
def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """left[a:b]ᵀ · right[a:b] for each group: (rows, m) and (rows, n) give (groups, m, n); zeros for an empty one."""
    if _has_kernel(left, right):
        return F.grouped_mm(left.contiguous().mT, right.contiguous(), offs=ends)
    return torch.stack([left[a:b].mT @ right[a:b] for a, b in _bounds(ends)])


def _has_kernel(a: Tensor, b: Tensor) -> bool:
    """Whether grouped_mm takes the type, and rows of these widths both as they are and transposed."""
    widths = (a.shape[-1], *b.shape[1:]) if b.ndim == 3 else (a.shape[-1], b.shape[-1])
    return (
        hasattr(F, "grouped_mm")  # torch 2.10 is the first that has it
        and a.device.type in ("cpu", "cuda")
        and a.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and all(width * a.element_size() % 16 == 0 for width in widths)
    )


def _dense(weight: Tensor) -> Tensor:
    """Each matrix in one piece, by rows or by columns."""
    return weight if weight.is_contiguous() or weight.mT.is_contiguous() else weight.contiguous()


def _bounds(ends: Tensor) -> list[tuple[int, int]]:
    last: list[int] = ends.tolist()
    return list(zip([0, *last[:-1]], last, strict=True))


# --- what torch must know of them: shapes, gradients, FLOPs -----------------------------------------------------------


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    for_x, for_weight, _ = ctx.needs_input_grad
    return (
        grouped_linear(grad, weight.mT, ends) if for_x else None,
        grouped_outer(grad, x, ends) if for_weight else None,
        None,
    )


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    left, right, ends = ctx.saved_tensors
    for_left, for_right, _ = ctx.needs_input_grad
    return (
        grouped_linear(right, grad, ends) if for_left else None,
        grouped_linear(left, grad.mT, ends) if for_right else None,
        None,
    )


grouped_linear.register_autograd(_linear_backward, setup_context=_keep)
grouped_outer.register_autograd(_outer_backward, setup_context=_keep)


@register_flop_formula([torch.ops.pellucid.grouped_linear, torch.ops.pellucid.grouped_outer])
def _flops(a: Size, b: Size, ends: Size, **_: Any) -> int:
    return 2 * a[0] * a[1] * b[1]  # b is weight (groups, d_out, d_in) or right (rows, n): either way the other width
