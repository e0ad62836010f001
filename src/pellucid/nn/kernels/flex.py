"""torch's FlexAttention from the same predicate: the mask itself, and the layout as its block mask.

It writes a kernel for each mask, forward and backward on CUDA devices, forward only on a CPU: there ``choose`` never
takes it; called by hand it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pellucid.nn.layout import FULL, NOBODY, Layout
from pellucid.nn.masks import Visible, zero_blind
from pellucid.predicates import Place

_BLOCK = 128  # what its kernels are tiled by


def runs(q: Tensor) -> bool:
    """Whether FlexAttention has both passes for these: a CUDA device, a dtype and width that its kernels are made for.

    Not inside somebody's compiled graph, where the layout would have to be read while it is traced.
    """
    fits = q.dtype in (torch.float32, torch.bfloat16, torch.float16) and q.shape[-1] >= 16
    return q.device.type == "cuda" and fits and not torch.compiler.is_compiling()


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    *,
    bias: Tensor | None = None,
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """The kernel for a ``visible`` with a layout. Has no bias: ``choose`` never sends one here."""
    assert bias is None and visible.layout is not None and visible.source is not None

    def bend(score: Tensor, *_: Tensor) -> Tensor:
        return score if soft_cap is None else soft_cap * torch.tanh(score / soft_cap)

    z = _compiled()(
        q, k, v, score_mod=None if soft_cap is None else bend, block_mask=block_mask(visible), scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return zero_blind(z, visible)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=False))


def block_mask(visible: Visible) -> BlockMask:
    """The mask of ``visible`` as FlexAttention takes it, without a look at n² pairs."""
    assert visible.layout is not None and visible.source is not None
    mask, queries, keys = visible.source
    down, across = (Place(*(x.contiguous() for x in side.place)) for side in (queries, keys))
    packed = queries.seg is not None or keys.seg is not None

    def allowed(b: Any, h: Any, i: Any, j: Any) -> Any:
        q, k = Place(*(x[b, i] for x in down)), Place(*(x[b, j] for x in across))
        seen = mask.allow(q, k) & (q.pos >= 0) & (k.pos >= 0)
        return seen & (q.seg == k.seg) if packed else seen

    device = queries.pos.device
    lists = (x.to(device) for live in _coarse(visible.layout) for x in _listed(live))
    return BlockMask.from_kv_blocks(
        *lists, BLOCK_SIZE=_BLOCK, mask_mod=allowed, seq_lengths=(down.pos.shape[1], across.pos.shape[1])
    )


@lru_cache(maxsize=16)
def _coarse(layout: Layout) -> tuple[Tensor, Tensor]:
    """Partial and full blocks at FlexAttention's size, each (rows, query blocks, key blocks)."""
    fold = _BLOCK // layout.block
    full, some = layout.grid(lambda kinds: kinds == FULL), layout.grid(lambda kinds: kinds != NOBODY)

    def folded(x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x, (0, -x.shape[2] % fold, 0, -x.shape[1] % fold))
        return x.unflatten(2, (-1, fold)).unflatten(1, (-1, fold))

    every, any_ = folded(full).all(4).all(2), folded(some).any(4).any(2)
    return any_ & ~every, every


def _listed(live: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, and their numbers first in its line."""
    order = torch.argsort(live.int(), dim=-1, descending=True, stable=True)
    return live.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]
