"""A mask and its layout as FlexAttention of torch takes them: lists of blocks, and the predicate for their pairs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pellucid.batch import Tokens
from pellucid.nn.layout import FULL, NOBODY, Layout
from pellucid.predicates import Mask, Place

_BLOCK = 128  # FlexAttention's kernels are tiled by it


def block_mask(mask: Mask, queries: Tokens, keys: Tokens, layout: Layout) -> BlockMask:
    """``layout``, made of this mask for these queries and keys, at FlexAttention's size; no n² pairs are looked at."""
    down, across = (Place(*(x.contiguous() for x in side.place)) for side in (queries, keys))
    packed = queries.seg is not None or keys.seg is not None

    def allowed(b: Any, h: Any, i: Any, j: Any) -> Any:
        q, k = Place(*(x[b, i] for x in down)), Place(*(x[b, j] for x in across))
        seen = mask.allow(q, k) & (q.pos >= 0) & (k.pos >= 0)
        return seen & (q.seg == k.seg) if packed else seen

    device = queries.pos.device
    lists = (x.to(device) for live in _coarse(layout) for x in _listed(live))
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
