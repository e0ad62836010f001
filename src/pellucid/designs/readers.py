"""Models of any size that read a text, or its prefix, at once: an encoder, an encoder–decoder, a prefix model."""

from __future__ import annotations

import math
from dataclasses import replace

from pellucid.designs.language_models import modern
from pellucid.spec import (
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    MaskedLMHeadSpec,
    PrefixPart,
    SinusoidalSpec,
    StackSpec,
    TaggerHeadSpec,
)


def encoder(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> EncoderSpec:
    """The modern design, looking both ways: it fills in masked tokens (objective mlm)."""
    of = modern(vocab_size, context, n_layers, d_model, head_dim)
    head = MaskedLMHeadSpec(norm=of.stack.blocks[0].norm)
    return EncoderSpec(vocab_size, context, of.embed, _reading(of).stack, head)


def discriminator(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> EncoderSpec:
    """The modern design, looking both ways: it tells replaced tokens from those of a text (objective rtd)."""
    return replace(encoder(vocab_size, context, n_layers, d_model, head_dim), head=TaggerHeadSpec(2))


def encoder_decoder(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> EncoderDecoderSpec:
    """The modern design twice: ``n_layers`` that read, and as many that write (objective seq2seq)."""
    of = modern(vocab_size, context, n_layers, d_model, head_dim)
    return EncoderDecoderSpec(_reading(of), _writing(of), start_id=0)


def transformer_2017(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> EncoderDecoderSpec:
    """The model of Vaswani et al. 2017, figure 1, in any size: post-norm, sines, one table of vectors."""
    norm = LayerNormSpec(eps=1e-6)  # as in the authors' code; the paper names no number
    causal = AttentionSpec(d_model // head_dim, d_model // head_dim, head_dim)
    full = replace(causal, mask=Full())
    reads = BlockSpec(full, FFNSpec(4 * d_model, "relu"), norm, POST_NORM)
    writes = replace(reads, mixer=causal, cross=full)
    embed = EmbedSpec(SinusoidalSpec(), scale=math.sqrt(d_model))
    return EncoderDecoderSpec(
        encoder=EncoderSpec(vocab_size, context, embed, StackSpec(d_model, (reads,) * n_layers, None)),
        decoder=DecoderSpec(vocab_size, context, embed, StackSpec(d_model, (writes,) * n_layers, None)),
        start_id=0,
    )


def prefix(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> DecoderSpec:
    """The modern design, looking both ways within a document's prefix, which training draws (objective prefix)."""
    of = modern(vocab_size, context, n_layers, d_model, head_dim)
    mask = Causal() | PrefixPart()
    blocks = tuple(replace(block, mixer=replace(_attention(block), mask=mask)) for block in of.stack.blocks)
    return replace(of, stack=replace(of.stack, blocks=blocks))


def _attention(block: BlockSpec) -> AttentionSpec:
    """The block's attention, able to see everything."""
    assert isinstance(block.mixer, AttentionSpec)
    return replace(block.mixer, mask=Full())


def _reading(of: DecoderSpec) -> EncoderSpec:
    blocks = tuple(replace(block, mixer=_attention(block)) for block in of.stack.blocks)
    return EncoderSpec(of.vocab_size, of.context, of.embed, replace(of.stack, blocks=blocks))


def _writing(of: DecoderSpec) -> DecoderSpec:
    blocks = tuple(replace(block, cross=replace(_attention(block), rotary=None)) for block in of.stack.blocks)
    return replace(of, stack=replace(of.stack, blocks=blocks))
