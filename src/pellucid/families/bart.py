"""BART (Lewis et al. 2019), as Hugging Face publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families.config import Config
from pellucid.families.table import ROW, Row, Table
from pellucid.spec import (
    CAUSAL,
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    Mask,
    StackSpec,
)

IGNORED = """dropout attention_dropout activation_dropout classifier_dropout classif_dropout encoder_layerdrop
    decoder_layerdrop init_std num_hidden_layers output_past forced_bos_token_id force_bos_token_to_be_generated"""

UNUSED_ROWS = 2  # of the table of positions, by which it is longer than the context


def _both(theirs: str, ours: str) -> tuple[Row, ...]:
    return tuple(Row(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias"))


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
    return tuple(row for a, b in names.items() for row in _both(f"{theirs}.{a}", f"{ours}.{b}"))


def _side(side: str) -> tuple[Row, ...]:
    """The rows of encoder or decoder, without what only the decoder has."""
    theirs, ours = f"model.{side}.layers.#", f"{side}.blocks.#"
    return (
        Row(f"model.{side}.embed_positions.weight", f"{side}.embed.positions.weight"),
        *_both(f"model.{side}.layernorm_embedding", f"{side}.embed.norm"),
        *_attention(f"{theirs}.self_attn", f"{ours}.attn"),
        *_both(f"{theirs}.self_attn_layer_norm", f"{ours}.attn_norms.out"),
        *_both(f"{theirs}.fc1", f"{ours}.ffn.up"),
        *_both(f"{theirs}.fc2", f"{ours}.ffn.down"),
        *_both(f"{theirs}.final_layer_norm", f"{ours}.ffn_norms.out"),
    )


TABLE = Table(
    rows=(
        Row("model.shared.weight", "encoder.embed.tokens.weight"),
        *_side("encoder"),
        *_side("decoder"),
        *_attention("model.decoder.layers.#.encoder_attn", "decoder.blocks.#.cross"),
        *_both("model.decoder.layers.#.encoder_attn_layer_norm", "decoder.blocks.#.cross_norms.out"),
        Row("final_logits_bias", "decoder.head.bias", ROW),
    ),
    copies=(
        ("model.encoder.embed_tokens.weight", "model.shared.weight"),
        ("model.decoder.embed_tokens.weight", "model.shared.weight"),
        ("lm_head.weight", "model.shared.weight"),
    ),
    base="model.",
)


def _stack(read: Config, side: str, d_model: int, mask: Mask, norm: LayerNormSpec) -> StackSpec:
    heads = f"{side}_attention_heads"
    n_heads = read.take(heads, int)
    if n_heads < 1 or d_model % n_heads:
        raise read.refuse(heads, f"does not divide d_model = {d_model}", "the config is damaged")

    def attention(mask: Mask) -> AttentionSpec:
        return AttentionSpec(n_heads, n_heads, d_model // n_heads, mask=mask, bias=True, out_bias=True)

    ffn = FFNSpec(read.take(f"{side}_ffn_dim", int), read.activation("activation_function", "gelu"))
    cross = attention(Full()) if side == "decoder" else None
    block = BlockSpec(attention(mask), ffn, norm, POST_NORM, cross=cross)
    return StackSpec(d_model, (block,) * read.take(f"{side}_layers", int), final_norm=None)


def to_spec(config: Mapping[str, Any]) -> EncoderDecoderSpec:
    """The spec of a BART config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "bart config", IGNORED)
    read.expect("model_type", "bart")
    read.expect("is_encoder_decoder", True)
    read.expect("is_decoder", False)
    read.expect("tie_word_embeddings", True)
    read.expect("extra_pos_embeddings", UNUSED_ROWS)
    read.expect("normalize_embedding", True)
    for name in ("normalize_before", "add_final_layer_norm", "add_bias_logits", "static_position_embeddings"):
        read.expect(name, False)
    d_model, vocab_size = read.take("d_model", int), read.take("vocab_size", int)
    context = read.take("max_position_embeddings", int, 1024)
    norm = LayerNormSpec()  # torch's own eps: nothing sets it
    scale = d_model**0.5 if read.take("scale_embedding", bool, False) else 1.0
    embed = EmbedSpec(LearnedSpec(UNUSED_ROWS), scale, norm)
    spec = EncoderDecoderSpec(
        encoder=EncoderSpec(vocab_size, context, embed, _stack(read, "encoder", d_model, Full(), norm)),
        decoder=DecoderSpec(
            vocab_size, context, embed, _stack(read, "decoder", d_model, CAUSAL, norm), LMHeadSpec(bias=True)
        ),
        start_id=read.take("decoder_start_token_id", int, 2),
    )
    read.done()
    return spec
