"""Marian (Junczys-Dowmunt et al. 2018) translators, as Hugging Face publishes those of OPUS-MT.

A BART with fixed positions, all sines before all cosines, and no norm of its embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families.bart import (
    BIAS,
    COPIES,
    HEAD,
    IGNORED,
    SHARED,
    SIDES,
    attributes,
    layer_rows,
    refuse_variants,
    scale,
    stack,
)
from pellucid.families.config import Config, named_class, need
from pellucid.families.table import Row, Table
from pellucid.spec import (
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    LMHeadSpec,
    ModelSpec,
    SinusoidalSpec,
)

# they follow from the config, and old files carry them
SINES = tuple(f"model.{side}.embed_positions.weight" for side in SIDES)
ONE = Table((SHARED, *layer_rows(), BIAS, HEAD), SINES, COPIES, "model.")
TWO = Table(
    rows=(
        *(Row(f"model.{side}.embed_tokens.weight", f"{side}.embed.tokens.weight") for side in SIDES),
        *layer_rows(),
        BIAS,
        HEAD,
    ),
    ignored=SINES,
    copies=(("lm_head.weight", "model.decoder.embed_tokens.weight"),),
    base="model.",
)


def table(spec: EncoderDecoderSpec) -> Table:
    """The table for a model of this spec: its sides share one table of token vectors, or have two."""
    return ONE if spec.shared_embedding else TWO


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderDecoderSpec:
    """The spec of a Marian config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "marian config", f"{IGNORED} extra_pos_embeddings")  # Marian's positions have no extra rows
    read.expect("model_type", "marian")
    read.expect("tie_word_embeddings", True)
    read.expect("normalize_embedding", False)
    read.expect("static_position_embeddings", True)
    refuse_variants(read)
    name = named_class(read, architecture, ("MarianMTModel", "MarianModel"))
    context, vocab_size = read.count("max_position_embeddings", 1024), read.count("vocab_size")
    writes, shared = (
        read.count("decoder_vocab_size", vocab_size),
        read.take("share_encoder_decoder_embeddings", bool, True),
    )
    embed = EmbedSpec(SinusoidalSpec("halves"), scale(read))
    head = LMHeadSpec(bias=name != "MarianModel")
    spec = EncoderDecoderSpec(
        encoder=EncoderSpec(vocab_size, context, embed, stack(read, "encoder")),
        decoder=DecoderSpec(writes, context, embed, stack(read, "decoder"), head),
        start_id=read.take("decoder_start_token_id", int, read.take("pad_token_id", int, 58100)),
        shared_embedding=shared,
    )
    read.done()
    return spec


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Marian, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    model = need(spec, EncoderDecoderSpec, "the model")
    return {
        **attributes(spec, "marian", "MarianMTModel" if model.decoder.head.bias else "MarianModel"),
        "decoder_vocab_size": model.vocab_size,
        "share_encoder_decoder_embeddings": model.shared_embedding,
    }
