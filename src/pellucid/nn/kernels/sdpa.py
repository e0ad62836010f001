"""torch's fused scaled_dot_product_attention, with the three traps of its mask argument kept out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.nn.kernels.reference import expand_heads
from pellucid.nn.masks import Visible, looking, zero_blind


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    *,
    bias: Tensor | None = None,
    scale: float,
    soft_cap: float | None = None,
) -> Tensor:
    """The fused kernel. Has no soft cap: ``choose`` never sends one here.

    ``is_causal`` only where proved (its rectangular form aligns to the wrong corner); a bool mask stays bool (as a 0/1
    float it would be a bias); a bias carries the mask as -inf. Queries that see nothing look anywhere, then give zeros.
    """
    assert soft_cap is None
    k, v = expand_heads(k, q.shape[1]), expand_heads(v, q.shape[1])
    if bias is None:
        mask = looking(visible)
        causal = visible.proof == "causal"
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    else:
        mask = looking(visible)
        if visible.proof == "causal":
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        bias = bias.to(q.dtype)
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return zero_blind(z, visible)
