"""Attention over the blocks that a mask allows, on any device: a window of w over n tokens costs n·w, not n².

Query blocks that see equally many key blocks go through together, as many at a time as a processor's cache holds. Their
key blocks lie side by side, so that to torch's fused kernel they are rows of a batch with one mask. The backward
computes the pattern again. Both are operators of their own: a compiler that looked inside would unroll the loops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.nn.layout import FULL
from pellucid.nn.masks import Visible, zero_without_keys
from pellucid.nn.wide import wide, wide_dtype

_HIDDEN = -1e30  # added to a score: exp makes exactly 0 of it beside any other; a row of these alone stays finite
_SCORES, _SCORES_ELSEWHERE = 2**20, 2**26  # scores held at once: 4 MiB of float32, a cache; more on other devices


def blocked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    *,
    bias: Tensor | None = None,
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """The kernel for a ``visible`` with a layout. It has no bias: ``choose`` never sends one here."""
    layout = visible.layout
    assert bias is None and layout is not None
    q, k, v, time = _whole(q, layout.block), _whole(k, layout.block), _whole(v, layout.block), q.shape[2]
    plan = (layout.groups, layout.order, layout.pairs, layout.patterns)
    z = torch.ops.pellucid.blocked(q, k, v, *plan, scale, soft_cap)
    return zero_without_keys(z[:, :, :time], visible)


def _whole(x: Tensor, block: int) -> Tensor:
    """Filled up with zeros to whole blocks; no pattern shows them to anyone."""
    return x if x.shape[2] % block == 0 else F.pad(x, (0, 0, 0, -x.shape[2] % block))


# --- a few query blocks with all their key blocks ---------------------------------------------------------------------


class _Chunk:
    """Where its blocks are taken from and put back to, for any row and head. Scores: (blocks, group · block, keys)."""

    def __init__(
        self, rows: range, queries: Tensor, keys: Tensor, hide: Tensor | None, block: int, device: torch.device
    ):
        self.rows, self.hide, self.block, self.shape = rows, hide, block, keys.shape
        self.queries, self.keys = queries.to(device), keys.flatten().to(device)
        self.stretch = slice(int(queries[0]), int(queries[0]) + len(queries)) if _in_order(queries) else None
        slides = _in_order(keys[0]) and torch.equal(keys, keys[:1] + torch.arange(len(keys))[:, None])
        self.window = int(keys[0, 0]) * block if slides else None

    def take_queries(self, x: Tensor) -> Tensor:
        """From (group, time, head_dim), the heads of a group under each other: (blocks, group · block, head_dim)."""
        cut = x.unflatten(1, (-1, self.block))
        taken = cut.index_select(1, self.queries) if self.stretch is None else cut[:, self.stretch]
        return wide(taken.transpose(0, 1).flatten(1, 2))

    def put_queries(self, x: Tensor, new: Tensor) -> None:
        """The inverse of ``take_queries``, into ``x``."""
        cut, new = x.unflatten(1, (-1, self.block)), new.unflatten(1, (-1, self.block)).transpose(0, 1).to(x.dtype)
        if self.stretch is None:
            cut.index_copy_(1, self.queries, new)
        else:
            cut[:, self.stretch] = new

    def take_keys(self, x: Tensor) -> Tensor:
        """From (time, head_dim), key blocks side by side: (blocks, keys, head_dim); without a copy where they slide."""
        (n, width), block = self.shape, self.block
        if self.window is None:
            taken = x.unflatten(0, (-1, block)).index_select(0, self.keys).view(n, width * block, -1)
        else:
            strides = (block * x.stride(0), *x.stride())
            taken = x[self.window :].as_strided((n, width * block, x.shape[1]), strides)
        return wide(taken)

    def add_keys(self, x: Tensor, new: Tensor) -> None:
        """The transpose of ``take_keys``: each key block's part is added to ``x`` at its place."""
        x.unflatten(0, (-1, self.block)).index_add_(0, self.keys, new.view(-1, self.block, x.shape[1]))


def _in_order(numbers: Tensor) -> bool:
    return torch.equal(numbers, torch.arange(len(numbers)) + numbers[0])


def _chunks(
    q: Tensor, groups: Tensor, order: Tensor, pairs: Tensor, patterns: Tensor, *, held: int
) -> Iterator[_Chunk]:
    """The layout in pieces of one size in memory, where ``held`` tensors of scores live at once.

    ``q``: (batch, kv_heads, group, time, head_dim).
    """
    block, room = patterns.shape[-1], _SCORES if q.device.type == "cpu" else _SCORES_ELSEWHERE
    for row, first, count, width, begin in groups.tolist():
        rows = range(q.shape[0]) if row < 0 else range(row, row + 1)
        keys, kinds = pairs[:, begin : begin + count * width].unflatten(1, (count, width))
        step = max(1, room // (held * q.shape[2] * block * width * block))
        for at in range(0, count, step):
            queries, part = order[first + at : first + min(at + step, count)], slice(at, at + step)
            yield _Chunk(rows, queries, keys[part], _hide(patterns, kinds[part], q), block, q.device)


def _hide(patterns: Tensor, kinds: Tensor, q: Tensor) -> Tensor | None:
    """What to add to the scores: 0 or ``_HIDDEN``, once for all query blocks that are alike; None for nothing."""
    if bool((kinds == FULL).all()):
        return None
    if bool((kinds == kinds[:1]).all()):
        kinds = kinds[:1]
    seen = patterns[kinds.to(patterns.device)].transpose(1, 2).flatten(2)  # (blocks, block, keys)
    hide = torch.zeros(seen.shape, dtype=wide_dtype(q.dtype), device=q.device).masked_fill_(~seen, _HIDDEN)
    return hide.repeat(1, q.shape[2], 1)


# --- forward and backward ---------------------------------------------------------------------------------------------


def _pattern(
    q: Tensor, k: Tensor, hide: Tensor | None, scale: float, soft_cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """softmax(scores), and the soft cap's tanh for the backward."""
    if soft_cap is None:
        scores = torch.baddbmm(q.new_zeros(1) if hide is None else hide, q, k.mT, alpha=scale)
        return torch.softmax(scores, -1, out=scores), None
    bent = torch.baddbmm(q.new_zeros(1), q, k.mT, beta=0, alpha=scale / soft_cap).tanh_()
    scores = bent * soft_cap
    scores = scores if hide is None else scores.add_(hide)
    return torch.softmax(scores, -1, out=scores), bent


def _mix(q: Tensor, k: Tensor, v: Tensor, hide: Tensor | None, scale: float, soft_cap: float | None) -> Tensor:
    """pattern · v: by the fused kernel, blocks in the place of heads, unless there is a soft cap, which it lacks."""
    if soft_cap is not None:
        return _pattern(q, k, hide, scale, soft_cap)[0] @ v
    q, k, v, mask = q[None], k[None], v[None], None if hide is None else hide[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[0]


def forward(
    q: Tensor, k: Tensor, v: Tensor,
    groups: Tensor, order: Tensor, pairs: Tensor, patterns: Tensor, scale: float, soft_cap: float | None,
) -> Tensor:  # fmt: skip
    """z; times are whole numbers of blocks; query blocks without key blocks give zeros."""
    q = q.unflatten(1, (k.shape[1], -1))
    z = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for chunk in _chunks(q, groups, order, pairs, patterns, held=1 if soft_cap is None else 2):
        for at in ((row, head) for row in chunk.rows for head in range(k.shape[1])):
            keys, values = chunk.take_keys(k[at]), chunk.take_keys(v[at])
            chunk.put_queries(z[at], _mix(chunk.take_queries(q[at]), keys, values, chunk.hide, scale, soft_cap))
    return z.flatten(1, 2)


def backward(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor,
    groups: Tensor, order: Tensor, pairs: Tensor, patterns: Tensor, scale: float, soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to q, k and v."""
    q, dz = q.unflatten(1, (k.shape[1], -1)), dz.unflatten(1, (k.shape[1], -1))
    dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (torch.zeros(k.shape, dtype=wide_dtype(k.dtype), device=k.device) for _ in range(2))
    for chunk in _chunks(q, groups, order, pairs, patterns, held=2):
        for at in ((row, head) for row in chunk.rows for head in range(k.shape[1])):
            queries, d_out = chunk.take_queries(q[at]), chunk.take_queries(dz[at])
            keys, values = chunk.take_keys(k[at]), chunk.take_keys(v[at])
            pattern, bent = _pattern(queries, keys, chunk.hide, scale, soft_cap)
            chunk.add_keys(dv[at], pattern.mT @ d_out)
            d_scores = torch.ops.aten._softmax_backward_data(d_out @ values.mT, pattern, -1, pattern.dtype)
            if bent is not None:
                d_scores *= 1 - bent * bent
            chunk.put_queries(dq[at], (d_scores @ keys).mul_(scale))
            chunk.add_keys(dk[at], (d_scores.mT @ queries).mul_(scale))
    return dq.flatten(1, 2), dk.to(k.dtype), dv.to(v.dtype)


# --- as operators -----------------------------------------------------------------------------------------------------

_library = torch.library.Library("pellucid", "FRAGMENT")  # torch.library.custom_op would load the compiler: a second
_PLAN = "Tensor groups, Tensor order, Tensor pairs, Tensor patterns, float scale, float? soft_cap"
_library.define(f"blocked(Tensor q, Tensor k, Tensor v, {_PLAN}) -> Tensor")
_library.define(f"blocked_backward(Tensor dz, Tensor q, Tensor k, Tensor v, {_PLAN}) -> (Tensor, Tensor, Tensor)")
_library.impl("blocked", forward, "CompositeExplicitAutograd")
_library.impl("blocked_backward", backward, "CompositeExplicitAutograd")


def _fake_forward(q: Tensor, *_: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _fake_backward(dz: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_forward(q), _fake_forward(k), _fake_forward(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.soft_cap = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.pellucid.blocked_backward(dz, *ctx.saved_tensors, ctx.scale, ctx.soft_cap)
    return (*gradients, None, None, None, None, None, None)


torch.library.register_fake("pellucid::blocked", _fake_forward, lib=_library)
torch.library.register_fake("pellucid::blocked_backward", _fake_backward, lib=_library)
torch.library.register_autograd("pellucid::blocked", _differentiate, setup_context=_keep, lib=_library)
