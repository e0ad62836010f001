"""torch's FlexAttention, which writes a kernel for each mask from the same predicate.

It has forward and backward on CUDA devices, and a forward only on a CPU. So block masks are made on CUDA devices, and
on a CPU ``choose`` never takes it; called by hand it is exact there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from pellucid.nn.masks import Visible, zero_without_keys


def fits(q: Tensor) -> bool:
    """Whether its kernels are made for the type and the width of these heads."""
    return q.dtype in (torch.float32, torch.bfloat16, torch.float16) and q.shape[-1] >= 16


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
    """The kernel for a ``visible`` with a block mask. It has no bias: ``choose`` never sends one here."""
    assert bias is None and visible.block_mask is not None

    def bend(score: Tensor, *_: Tensor) -> Tensor:
        return score if soft_cap is None else soft_cap * torch.tanh(score / soft_cap)

    # inside a compiled block it becomes a part of the block's own graph
    attention = cast(Callable[..., Tensor], flex_attention) if torch.compiler.is_compiling() else _compiled()
    z = attention(
        q, k, v, score_mod=None if soft_cap is None else bend, block_mask=visible.block_mask, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return zero_without_keys(z, visible)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=False))
