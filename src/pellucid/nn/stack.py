"""Blocks one after the other, and the views that they share."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.nn.biases import build_bias
from pellucid.nn.block import Block
from pellucid.nn.cache import Cache, Slots
from pellucid.nn.masks import see
from pellucid.nn.norms import build_norm
from pellucid.nn.rope import rotation
from pellucid.nn.view import View
from pellucid.spec import AttentionSpec, StackSpec
from pellucid.taps import Tapped


class Stack(Tapped):
    """A residual stream: blocks, the score term they share, and the final norm. Models derive from it."""

    def __init__(self, spec: StackSpec):
        super().__init__()
        self.score_bias = build_bias(spec.bias, spec.blocks[0].mixer.n_heads)
        self.blocks = nn.ModuleList(Block(block, spec.d_model) for block in spec.blocks)
        self.final_norm = build_norm(spec.final_norm, spec.d_model)
        # blocks that see alike share one view: which one each block takes, and an example of each
        kinds = [(b.mixer.mask, b.mixer.rotary, b.mixer.head_dim) for b in spec.blocks]
        firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        self._examples = [(i, spec.blocks[i].mixer) for i in firsts]
        self._view_of = [firsts.index(kinds.index(kind)) for kind in kinds]

    def _view(self, mixer: AttentionSpec, tokens: Tokens, slots: Slots | None) -> View:
        keys = tokens if slots is None else slots.keys
        return View(
            tokens,
            see(mixer.mask, tokens, keys),
            None if mixer.rotary is None else rotation(mixer.rotary, mixer.head_dim, tokens),
            None if self.score_bias is None else self.score_bias(tokens, keys),
        )

    def run(
        self, x: Float[Tensor, "batch time d_model"], tokens: Tokens, cache: Cache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """The residual stream after the last block. The cache, when given, has its places for these tokens taken."""
        views = [
            self._view(mixer, tokens, None if cache is None else cache.layers[i].slots) for i, mixer in self._examples
        ]
        for i, block in enumerate(self.blocks):
            x = block(x, views[self._view_of[i]], None if cache is None else cache.layers[i])
        return x
