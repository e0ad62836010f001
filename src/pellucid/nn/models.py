"""Whole models: a decoder, an encoder, and the two together."""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.batch import Batch, Tokens
from pellucid.errors import DataError
from pellucid.nn.base import Model
from pellucid.nn.cache import Cache
from pellucid.nn.embed import Embedding, Inputs, TokenTable
from pellucid.nn.heads import ClassifierHead, LMHead, MaskedLMHead, PoolerHead, TaggerHead
from pellucid.nn.loss import Predictions
from pellucid.nn.registry import build
from pellucid.nn.stack import Stack
from pellucid.nn.stores import Memory, StorePlan
from pellucid.spec import DecoderSpec, EncoderDecoderSpec, EncoderSpec, ModelSpec
from pellucid.taps import name_points


class Decoder(Stack, Model):
    """A language model that reads from left to right: logits for the next token at every position.

    Points: ``embed`` (what enters the first block), the blocks' own, ``final_norm`` and ``logits``, which ``forward``
    alone passes: losses never hold them all. shared: the table of an encoder's embedding, to be used instead of an own
    one.
    """

    spec: DecoderSpec

    def __init__(self, spec: DecoderSpec, shared: TokenTable | None = None):
        super().__init__(spec.stack)
        self.spec = spec
        self.embed = Embedding(spec.embed, spec.vocab_size, spec.context, spec.d_model, shared)
        self.head = LMHead(spec.head, spec)
        name_points(self)

    def points(self) -> dict[str, str]:
        return {**dict.fromkeys(("embed", "final_norm"), "batch time d_model"), "logits": "batch time vocab"}

    def forward(
        self,
        ids: Int[Tensor, "batch time"],
        tokens: Tokens | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits. ``tokens`` says where each id stands (default: one document a row, going on where the cache ends).

        memory: what an encoder has read, for a decoder that attends to it (default: the cache's). Raises DataError for
        ids outside the vocabulary, positions beyond learned ones, a full cache, and missing memory.
        """
        return self.tap("logits", self.head(self.states(ids, tokens, cache, memory), self.embed.head_table))

    def states(
        self,
        ids: Int[Tensor, "batch time"],
        tokens: Tokens | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """The residual stream after the final norm: what the head reads."""
        if tokens is None:
            tokens = self.embed.places(ids) if cache is None else cache.continuing(ids.shape[1])
        if cache is not None:
            memory = cache.memory if memory is None else memory
            cache.take(tokens)
        x = self.tap("embed", self.embed(ids, tokens))
        x = self.blocks_from(x, tokens, cache, memory)
        if cache is not None:
            cache.commit(tokens)
        return self.tap("final_norm", self.final_norm(x))

    def unembed(self, resid: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time vocab"]:
        """Logits of any residual stream: final norm and head (the logit lens, nostalgebraist 2020)."""
        return self.head(self.final_norm(resid), self.embed.head_table)

    def predictions(self, batch: Batch, memory: Memory | None = None) -> Predictions:
        """The distribution of the token after each one, given what an encoder has read.

        Raises TapError where ``logits`` is edited.
        """
        self.refuse_edit("logits", "a loss never makes its logits")
        return self.head.predictions(self.states(batch.ids, batch.tokens, memory=memory), self.embed.head_table)

    def new_cache(
        self,
        batch: int,
        capacity: int | None = None,
        *,
        ring: bool = True,
        memory: Memory | None = None,
        dtype: torch.dtype | None = None,
        fixed: bool = False,
        grows: bool = False,
        slack: int = 0,
    ) -> Cache:
        """An empty cache for ``batch`` rows of up to ``capacity`` tokens (default: the model's context).

        ring: layers whose mask is a window keep only as many tokens as it reaches, and ``slack`` more, which may be
        taken back (``Cache.truncate``). Layers with a running state keep that alone. memory: what the encoder has read.
        dtype: of what is kept (default: that of the weights). fixed: every layer attends to all slots, empty ones
        included, so that compiled blocks meet one shape however long the rows are. grows: memory is taken as rows get
        longer, not for the whole capacity at once.
        """
        capacity = self.spec.context if capacity is None else capacity
        plan = StorePlan(
            batch,
            capacity,
            dtype=self.dtype if dtype is None else dtype,
            state_dtype=self.dtype,
            device=self.device,
            ring=ring,
            fixed=fixed,
            grows=grows,
            slack=slack,
        )
        layers = [block.mixer.new_store(plan) for block in self.layers]
        return Cache(layers, batch, capacity, self.device, memory)


class Encoder(Stack, Model):
    """A model that reads a whole text or image at once: a state for each token, and what its head makes of them.

    Points: ``embed``, the blocks' own, ``final_norm``; ``logits`` with a head that predicts, ``head.pooled`` with one
    that pools. shared: the table of another model's embedding, to be used instead of an own one.
    """

    spec: EncoderSpec

    def __init__(self, spec: EncoderSpec, shared: TokenTable | None = None):
        super().__init__(spec.stack)
        self.spec = spec
        self.embed = Embedding(spec.embed, spec.vocab_size, spec.context, spec.d_model, shared)
        self.head = None if spec.head is None else build(spec.head, spec)  # None: the states are the result
        name_points(self)

    def points(self) -> dict[str, str]:
        states: dict[str, str] = dict.fromkeys(("embed", "final_norm"), "batch time d_model")
        if self.head is None or isinstance(self.head, PoolerHead):
            return states
        if isinstance(self.head, ClassifierHead):
            return {**states, "logits": "batch row classes"}
        return {**states, "logits": "batch time vocab" if isinstance(self.head, MaskedLMHead) else "batch time classes"}

    def forward(
        self, ids: Inputs, tokens: Tokens | None = None, types: Int[Tensor, "batch places"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """What the head gives: logits (batch, time, vocab) of a masked-LM head, (batch, time, classes) of a tagger,
        (batch, 1, classes) of a classifier; vectors (batch, d_model) of a pooler; states without a head.

        ids: token ids (batch, time); images (batch, channels, height, width) for a model that reads patches. tokens:
        where each token or patch stands (default: one document a row). types: the kind of each. Raises DataError for
        ids outside the vocabulary, positions beyond learned ones, and images of another size.
        """
        tokens = self.embed.places(ids) if tokens is None else tokens
        x = self.states(ids, tokens, types)
        if self.head is None:
            return x
        if isinstance(self.head, PoolerHead):
            return self.head(x, tokens)
        return self.tap("logits", self._predictions(x, tokens).logits())

    def _predictions(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Predictions:
        if isinstance(self.head, MaskedLMHead):
            return self.head.predictions(x, self.embed.head_table)
        assert isinstance(self.head, ClassifierHead | TaggerHead)
        return self.head.predictions(x, tokens)

    def states(
        self, ids: Inputs, tokens: Tokens | None = None, types: Int[Tensor, "batch places"] | None = None
    ) -> Float[Tensor, "batch places d_model"]:
        """The residual stream after the final norm: a state for each token."""
        tokens = self.embed.places(ids) if tokens is None else tokens
        x = self.tap("embed", self.embed(ids, tokens, types))
        return self.tap("final_norm", self.final_norm(self.blocks_from(x, tokens)))

    def unembed(self, resid: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time vocab"]:
        """Logits of any residual stream, by a masked-LM head. Raises DataError for a model with another head."""
        if not isinstance(self.head, MaskedLMHead):
            raise DataError("this encoder has no head that predicts tokens", "give its spec a MaskedLMHeadSpec")
        return self.head(self.final_norm(resid), self.embed.head_table)

    def predictions(self, batch: Batch) -> Predictions:
        """The distribution of each token, or of a classifier's class for each row.

        Raises DataError for a model whose head predicts nothing, TapError where ``logits`` is edited.
        """
        self.refuse_edit("logits", "a loss never makes its logits")
        if self.spec.head is None or not self.spec.head.predicts:
            return super().predictions(batch)
        return self._predictions(self.states(batch.ids, batch.tokens, batch.types), batch.tokens)


class EncoderDecoder(Model):
    """An encoder that reads and a decoder that writes (Vaswani et al. 2017, figure 1).

    Points are those of ``encoder`` and ``decoder``, with that name in front.
    """

    spec: EncoderDecoderSpec

    def __init__(self, spec: EncoderDecoderSpec):
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec.encoder)
        self.decoder = Decoder(spec.decoder, self.encoder.embed.tokens if spec.shared_embedding else None)
        name_points(self)

    def encode(self, ids: Int[Tensor, "batch time"], tokens: Tokens | None = None) -> Memory:
        """Read the source once; what comes back is what the decoder attends to."""
        tokens = self.encoder.embed.places(ids) if tokens is None else tokens
        return Memory(self.encoder.states(ids, tokens), tokens)

    def forward(
        self,
        source: Int[Tensor, "batch source_time"],
        ids: Int[Tensor, "batch time"],
        source_tokens: Tokens | None = None,
        tokens: Tokens | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits for the token after each of ``ids``, given the source; ``ids`` begin with ``spec.start_id``."""
        return self.decoder(ids, tokens, memory=self.encode(source, source_tokens))

    def new_cache(
        self,
        source: Int[Tensor, "batch source_time"],
        source_tokens: Tokens | None = None,
        capacity: int | None = None,
    ) -> Cache:
        """Read the source; a cache that ``model.decoder(ids, cache=cache)`` goes on from, up to ``capacity`` tokens."""
        memory = self.encode(source, source_tokens)
        return self.decoder.new_cache(source.shape[0], capacity, memory=memory)

    def predictions(self, batch: Batch) -> Predictions:
        """The distribution of the token after each one that the decoder reads, given the source."""
        if batch.source is None:
            raise DataError("an encoder–decoder needs something to read", "give the batch a source")
        return self.decoder.predictions(batch, self.encode(batch.source.ids, batch.source.tokens))


AnyModel: TypeAlias = Decoder | Encoder | EncoderDecoder


def build_model(spec: ModelSpec) -> AnyModel:
    """The model that a spec describes, its weights not yet drawn (``nn.init``)."""
    if isinstance(spec, DecoderSpec):
        return Decoder(spec)
    return Encoder(spec) if isinstance(spec, EncoderSpec) else EncoderDecoder(spec)
