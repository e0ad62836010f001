"""Whole models. A decoder-only language model: embedding, stack, head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.nn.cache import Cache, Contiguous, LayerCache, Ring, Slots
from pellucid.nn.embed import Embedding
from pellucid.nn.heads import LMHead
from pellucid.nn.stack import Stack
from pellucid.spec import DecoderSpec
from pellucid.taps import Activations, Edit, name_points, point_names, tapped


class Decoder(Stack):
    """A language model that reads from left to right: logits for the next token at every position.

    Points: ``embed`` (what enters the first block), the blocks' own, ``final_norm`` and ``logits``.
    """

    points: ClassVar[tuple[str, ...]] = ("embed", "final_norm", "logits")

    def __init__(self, spec: DecoderSpec):
        super().__init__(spec.stack)
        self.spec = spec
        self.embed = Embedding(spec.embed, spec.vocab_size, spec.context, spec.d_model)
        self.head = LMHead(spec.head, spec.vocab_size, spec.d_model)
        self.tokenizer: Any = None  # set by whoever loads model and tokenizer together
        name_points(self)

    def forward(
        self, ids: Int[Tensor, "batch time"], tokens: Tokens | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits. ``tokens`` says where each id stands (default: one document a row, going on where the cache ends).

        Raises DataError for ids outside the vocabulary, positions beyond learned ones, and a full cache.
        """
        return self.tap("logits", self.head(self.hidden(ids, tokens, cache), self.embed.tokens.weight))

    def hidden(
        self, ids: Int[Tensor, "batch time"], tokens: Tokens | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """The residual stream after the final norm: what the head reads."""
        if tokens is None:
            tokens = Tokens.plain(*ids.shape, device=ids.device) if cache is None else cache.continuing(ids.shape[1])
        if cache is not None:
            cache.take(tokens)
        x = self.tap("embed", self.embed(ids, tokens))
        x = self.run(x, tokens, cache)
        if cache is not None:
            cache.commit(tokens)
        return self.tap("final_norm", self.final_norm(x))

    def unembed(self, resid: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time vocab"]:
        """Logits of any residual stream: final norm and head (the logit lens, nostalgebraist 2020)."""
        return self.head(self.final_norm(resid), self.embed.tokens.weight)

    def nll_sum(self, batch: Batch) -> Float[Tensor, ""]:
        """Sum of -ln p(label) over the scored positions, in nats, without holding all logits."""
        hidden = self.hidden(batch.ids, batch.tokens)
        if self.wants("logits"):
            logits = self.tap("logits", self.head(hidden, self.embed.tokens.weight)).float()
            return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return self.head.nll_sum(hidden, batch.labels, self.embed.tokens.weight)

    def nll(self, batch: Batch) -> Float[Tensor, "batch time"]:
        """-ln p(label) at each position, in nats; 0 where the label is IGNORE."""
        logits = self(batch.ids, batch.tokens).float()
        return F.cross_entropy(logits.mT, batch.labels, ignore_index=IGNORE, reduction="none")

    def new_cache(self, batch: int, capacity: int | None = None, *, ring: bool = True) -> Cache:
        """An empty cache for ``batch`` rows of up to ``capacity`` tokens (default: the model's context).

        With ``ring``, layers whose mask is a window keep only as many tokens as it reaches.
        """
        capacity = self.spec.context if capacity is None else capacity
        weight = self.embed.tokens.weight
        layouts: dict[int, Slots] = {}
        layers: list[LayerCache] = []
        for block in self.spec.stack.blocks:
            mixer = block.mixer
            reach = mixer.mask.reach() if ring else None
            size = capacity if reach is None or reach >= capacity else reach
            if size not in layouts:
                kind = Contiguous if size == capacity else Ring
                layouts[size] = kind(batch, size, weight.device)
            slots = layouts[size]
            shape = (batch, mixer.n_kv_heads, slots.pos.shape[1], mixer.head_dim)
            k, v = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
            layers.append(LayerCache(slots, k, v))
        return Cache(layers, batch, capacity, weight.device)

    def taps(
        self, read: Iterable[str] | str = (), edit: Mapping[str, Edit] | None = None
    ) -> AbstractContextManager[Activations]:
        """``with model.taps(read=["blocks.*.attn.pattern"]) as acts: model(ids)``; see ``pellucid.taps.tapped``."""
        return tapped(self, read, edit)

    def point_names(self) -> list[str]:
        """Full names of all activation points."""
        return point_names(self)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def __rich__(self) -> str:
        spec, first = self.spec, self.spec.stack.blocks[0]
        return (
            f"[bold]Decoder[/] {self.n_parameters / 1e6:.2f} M parameters · {spec.n_layers} layers"
            f" × {spec.d_model} wide · {first.mixer.n_heads} heads ({first.mixer.n_kv_heads} key/value)"
            f" · d_ff {first.ffn.d_ff} · vocabulary {spec.vocab_size:,} · context {spec.context:,}"
        )
