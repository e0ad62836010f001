"""The formula itself, in five lines: what other kernels are measured against, and what runs when someone listens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pellucid.nn.masks import Visible
from pellucid.nn.wide import wide

Listen = Callable[[str, Tensor], Tensor]


def expand_heads(x: Tensor, n_heads: int) -> Tensor:
    """Repeat each key/value head for its group of query heads: (batch, kv_heads, ...) -> (batch, heads, ...)."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def forbidden(visible: Visible, scores: Tensor) -> Tensor | None:
    """True where a key must not be seen, from the proof or the tensor; None where nothing is hidden."""
    if visible.proof == "full":
        return None
    if visible.proof == "causal":
        return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    allowed = visible.dense()
    assert allowed is not None
    return ~allowed


def masked_softmax(
    scores: Float[Tensor, "batch heads query key"], hide: Bool[Tensor, "*rows query key"] | None
) -> Float[Tensor, "batch heads query key"]:
    """Weights over the keys that sum to one for each query; zeros for a query that sees nothing.

    hide: True where a key must not be seen; None: nothing is hidden.
    """
    if hide is None:
        return scores.softmax(-1)
    # the lowest finite number, then zeros: a query that sees nothing stays finite, forward and backward
    return scores.masked_fill(hide, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hide, 0.0)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    *,
    bias: Tensor | None = None,
    scale: float,
    soft_cap: float | None = None,
    listen: Listen | None = None,
) -> Tensor:
    """Scores, mask, softmax, average: with all scores in memory, softmax in float32 or wider."""
    k, v = expand_heads(k, q.shape[1]), expand_heads(v, q.shape[1])
    scores = wide(q @ k.mT) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if listen is not None:
        scores = listen("scores", scores)
    pattern = masked_softmax(scores, forbidden(visible, scores))
    if listen is not None:
        pattern = listen("pattern", pattern)
    return pattern.to(v.dtype) @ v
