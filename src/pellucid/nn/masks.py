"""Masks, lowered: one predicate over positions becomes what a kernel can use, and what is provable is proved here.

The predicates themselves are values of the spec (``Causal() & Window(256)``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pellucid.batch import Tokens
from pellucid.nn.block_mask import block_mask
from pellucid.nn.layout import Layout, find_layout
from pellucid.predicates import ORDINARY, PREFIX, And, Causal, Mask, Place, Span

Proof = Literal["causal", "full"]


@dataclass(frozen=True)
class Visible:
    """Who sees whom in one call, for kernels to take what they can express. One of three:

    proof: "full" (nothing is hidden) or "causal" (query i sees keys 0..i, as many queries as keys) where it is certain
    without reading memory, so that a kernel may use its fast path;
    layout: which blocks hold anything, for long rows that a mask leaves sparse; ``source`` is what it was made of, and
    ``block_mask`` is the same for FlexAttention, on devices where that has both passes;
    allowed: else, True where visible.
    without_keys: True for queries that see nothing; None where there cannot be one. Kernels let these see every key, so
    that no softmax divides by zero, forward or backward, and then write zeros for them.
    biased: a score term that has the mask in it, for a kernel that takes one tensor for both (see ``with_bias``).
    """

    proof: Proof | None
    allowed: Bool[Tensor, "rows 1 query key"] | None = None
    without_keys: Bool[Tensor, "rows 1 query 1"] | None = None
    layout: Layout | None = None
    source: tuple[Mask, Tokens, Tokens] | None = None
    block_mask: BlockMask | None = None
    biased: Float[Tensor, "rows heads query key"] | None = None

    def dense(self) -> Bool[Tensor, "rows 1 query key"] | None:
        """``allowed``, made now where there is only a layout: for a kernel that must hold all scores anyway."""
        return self.allowed if self.source is None else dense(*self.source)


def dense(mask: Mask, queries: Tokens, keys: Tokens) -> Bool[Tensor, "batch 1 query key"]:
    """The predicate as a bool tensor. Positions -1 see nothing and are seen by nobody; documents stay apart."""
    q = Place(*(x[:, :, None] for x in queries.place))
    k = Place(*(x[:, None, :] for x in keys.place))
    allowed = mask.allow(q, k) & (k.pos >= 0) & (q.pos >= 0)
    if queries.seg is not None or keys.seg is not None:
        allowed = allowed & (q.seg == k.seg)
    return allowed[:, None]


def _span(tokens: Tokens) -> Span | None:
    """The span of a call's tokens where it is certain without reading memory."""
    if tokens.start is None:
        return None
    return Span(
        tokens.start, tokens.start + tokens.pos.shape[1] - 1, part_hi=ORDINARY if tokens.part is None else PREFIX
    )


def prove(mask: Mask, queries: Tokens, keys: Tokens) -> Proof | None:
    """What is certain from the mask's form and the static ``start`` of both sides; None where it must be computed."""
    q, k = _span(queries), _span(keys)
    if q is None or k is None:
        return None
    if mask.bounds(q, k)[1]:
        return "full"
    if isinstance(mask, And):  # a window that reaches over all there is hides nothing
        parts = [part for part in (mask.a, mask.b) if not part.bounds(q, k)[1]]
        return prove(parts[0], queries, keys) if len(parts) == 1 else None
    if isinstance(mask, Causal) and (q.lo, q.hi) == (k.lo, k.hi):
        return "causal"  # equal lengths only: kernels align a rectangular causal mask to the wrong corner
    return None


def lower(mask: Mask, queries: Tokens, keys: Tokens, *, sparse: bool = True) -> Visible:
    """Lower a mask for these queries and keys; for one row of them where all rows are known to be alike.

    ``sparse=False``: never to a layout, because a bias, say, will need every pair anyway.
    """
    proof = prove(mask, queries, keys)
    if proof is not None:
        return Visible(proof)
    layout = find_layout(mask, queries, keys) if sparse and not torch.compiler.is_compiling() else None
    if layout is not None:
        blocks = block_mask(mask, queries, keys, layout) if queries.pos.device.type == "cuda" else None
        return Visible(None, None, layout.without_keys, layout, (mask, queries, keys), blocks)
    if queries.alike and keys.alike:
        queries, keys = (replace(tokens, pos=tokens.pos[:1]) for tokens in (queries, keys))
    allowed = dense(mask, queries, keys)
    return Visible(None, allowed, ~allowed.any(-1, keepdim=True))


def softmax_mask(visible: Visible) -> Bool[Tensor, "rows 1 query key"] | None:
    """``allowed``, with every key for queries that see none: what a softmax can take. None where there is a proof."""
    allowed = visible.dense()
    return allowed if allowed is None or visible.without_keys is None else allowed | visible.without_keys


def with_bias(visible: Visible, bias: Float[Tensor, "rows heads query key"]) -> Visible:
    """The same, with ``biased``: the score term, and -inf where a key is hidden.

    It is made once for all layers, because it is large and each tensor of its kind would be kept for the backward.
    """
    if visible.proof == "full":
        return replace(visible, biased=bias)
    if visible.proof == "causal":
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    else:
        mask = softmax_mask(visible)
        assert mask is not None
    return replace(visible, biased=bias.masked_fill(~mask, float("-inf")))


def zero_without_keys(z: Tensor, visible: Visible) -> Tensor:
    """Zeros for the queries that see nothing."""
    if visible.without_keys is None:
        return z
    return torch.where(visible.without_keys, torch.zeros((), dtype=z.dtype, device=z.device), z)
