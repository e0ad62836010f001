"""torch's fused scaled_dot_product_attention, with the three traps of its mask argument kept out."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pellucid.nn.kernels.reference import expand_heads
from pellucid.nn.masks import Visible, softmax_mask, with_bias, zero_without_keys


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
    """The fused kernel. It has no soft cap: ``choose`` never sends one here.

    ``is_causal`` only where proved (its rectangular form aligns to the wrong corner); a bool mask stays bool (as a 0/1
    float it would be a bias); a bias carries the mask as -inf. Queries that see nothing are shown all keys, and
    then give zeros.
    """
    assert soft_cap is None
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.device.type != "cpu":  # where not every kernel takes groups: a copy, rather than one of all scores
        k, v, grouped = expand_heads(k, q.shape[1]), expand_heads(v, q.shape[1]), False
    if bias is None:
        mask, causal = softmax_mask(visible), visible.proof == "causal"
    else:
        carrying = visible if visible.biased is not None else with_bias(visible, bias)
        assert carrying.biased is not None
        mask, causal = carrying.biased.to(q.dtype), False
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return zero_without_keys(z, visible)
