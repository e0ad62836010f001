"""One layer: attention, then feed-forward, on the residual stream (or both at once)."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pellucid.nn.attention import Attention
from pellucid.nn.cache import LayerCache
from pellucid.nn.ffn import FeedForward
from pellucid.nn.residual import Sublayer
from pellucid.nn.view import View
from pellucid.spec import BlockSpec
from pellucid.taps import Tapped


class Block(Tapped):
    """x + attention, then + feed-forward; ``parallel``: x + attention(x) + feed-forward(x).

    Points, all (batch, time, d_model): ``resid_pre``, ``attn_out`` and ``ffn_out`` (what each branch adds),
    ``resid_mid`` (between the two; a parallel block has none), ``resid_post``.
    """

    points: ClassVar[tuple[str, ...]] = ("resid_pre", "attn_out", "resid_mid", "ffn_out", "resid_post")

    def __init__(self, spec: BlockSpec, d_model: int):
        super().__init__()
        self.parallel = spec.parallel
        self.attn_norms = Sublayer(spec.norm, spec.placement, d_model)
        self.attn = Attention(spec.mixer, d_model)
        self.ffn_norms = Sublayer(spec.norm, spec.placement, d_model)
        self.ffn = FeedForward(spec.ffn, d_model)
        if spec.parallel:
            self.points = tuple(point for point in Block.points if point != "resid_mid")  # type: ignore[misc]

    def forward(
        self, x: Float[Tensor, "batch time d_model"], view: View, past: LayerCache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """``view`` and ``past`` are attention's: who stands where and sees whom, and k and v of earlier tokens."""
        x = self.tap("resid_pre", x)
        attn_out = self.tap("attn_out", self.attn_norms.branch(x, lambda h: self.attn(h, view, past)))
        if self.parallel:
            ffn_out = self.tap("ffn_out", self.ffn_norms.branch(x, self.ffn))
            return self.tap("resid_post", x + attn_out + ffn_out)
        x = self.tap("resid_mid", self.attn_norms.join(x, attn_out))
        ffn_out = self.tap("ffn_out", self.ffn_norms.branch(x, self.ffn))
        return self.tap("resid_post", self.ffn_norms.join(x, ffn_out))
