"""T5, versions 1.0 and 1.1 (Raffel et al. 2019, Shazeer 2020), as Hugging Face publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.errors import suggest
from pellucid.families.config import ACTIVATIONS, Config
from pellucid.families.table import Row, Table
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    BucketedBiasSpec,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    FFNSpec,
    Full,
    GatedFFNSpec,
    LMHeadSpec,
    RMSNormSpec,
    StackSpec,
)

IGNORED = "dropout_rate classifier_dropout initializer_factor output_past"


def _stack(side: str, n_sublayers: int, gated: bool) -> tuple[Row, ...]:
    """The rows of one stack: its first block keeps the score term, the last sublayer of each is feed-forward."""
    theirs, ours, last = f"{side}.block.#.layer", f"{side}.blocks.#", n_sublayers - 1
    matrices = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    return (
        Row(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{side}.score_bias.weight"),
        Row(f"{theirs}.0.layer_norm.weight", f"{ours}.attn_norms.pre.weight"),
        *(Row(f"{theirs}.0.SelfAttention.{x}.weight", f"{ours}.attn.{x}.weight") for x in "qkvo"),
        Row(f"{theirs}.{last}.layer_norm.weight", f"{ours}.ffn_norms.pre.weight"),
        *(Row(f"{theirs}.{last}.DenseReluDense.{a}.weight", f"{ours}.ffn.{b}.weight") for a, b in matrices.items()),
        Row(f"{side}.final_layer_norm.weight", f"{side}.final_norm.weight"),
    )


def _table(gated: bool) -> Table:
    theirs, ours = "decoder.block.#.layer.1", "decoder.blocks.#"
    return Table(
        rows=(
            Row("shared.weight", "encoder.embed.tokens.weight"),
            *_stack("encoder", 2, gated),
            *_stack("decoder", 3, gated),
            Row(f"{theirs}.layer_norm.weight", f"{ours}.cross_norms.pre.weight"),
            *(Row(f"{theirs}.EncDecAttention.{x}.weight", f"{ours}.cross.{x}.weight") for x in "qkvo"),
            Row("lm_head.weight", "decoder.head.weight"),
        ),
        # in old files, and never read by anyone
        ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
        copies=tuple(
            (copy, "shared.weight")
            for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        ),
    )


PLAIN, GATED = _table(gated=False), _table(gated=True)


def table(spec: EncoderDecoderSpec) -> Table:
    """The table for a model of this spec: what enters its feed-forward layers has other names with a gate."""
    return GATED if isinstance(spec.encoder.stack.blocks[0].ffn, GatedFFNSpec) else PLAIN


def _feed_forward(read: Config) -> FeedForwardSpec:
    """What ``feed_forward_proj`` names: an activation, after ``gated-`` where there is a gate."""
    proj = read.take("feed_forward_proj", str, "relu")
    name, gated = proj.removeprefix("gated-"), proj.startswith("gated-")
    name = "gelu_new" if proj == "gated-gelu" else name  # the library's: their gelu is the tanh form, but only here
    if name not in ACTIVATIONS:
        raise read.refuse("feed_forward_proj", "is no activation of ours", suggest(name, ACTIVATIONS))
    read.expect("dense_act_fn", name)
    read.expect("is_gated_act", gated)
    kind = GatedFFNSpec if gated else FFNSpec
    return kind(read.take("d_ff", int), ACTIVATIONS[name], bias=False)


def to_spec(config: Mapping[str, Any]) -> EncoderDecoderSpec:
    """The spec of a T5 config (a parsed ``config.json``). Nothing in it limits the context: 512 is what it trained on.

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "t5 config", IGNORED)
    read.expect("model_type", "t5")
    read.expect("is_encoder_decoder", True)
    read.expect("is_decoder", False)
    d_model, n_heads = read.take("d_model", int), read.take("num_heads", int)
    vocab_size, context = read.take("vocab_size", int), read.take("n_positions", int, 512)
    n_layers = read.take("num_layers", int)
    tied = read.take("tie_word_embeddings", bool, True)
    scaled = read.take("scale_decoder_outputs", bool, tied)  # newer files say so; before, who was tied was scaled
    norm = RMSNormSpec(eps=read.take("layer_norm_epsilon", float, 1e-6))
    bias = BucketedBiasSpec(
        read.take("relative_attention_num_buckets", int, 32), read.take("relative_attention_max_distance", int, 128)
    )
    mixer = AttentionSpec(n_heads, n_heads, read.take("d_kv", int), scale=1.0)
    everyone = replace(mixer, mask=Full())
    block = BlockSpec(mixer, _feed_forward(read), norm, cross=everyone)
    reading = replace(block, mixer=everyone, cross=None)
    encoder = StackSpec(d_model, (reading,) * n_layers, norm, replace(bias, both_directions=True))
    decoder = StackSpec(d_model, (block,) * read.take("num_decoder_layers", int, n_layers), norm, bias)
    head = LMHeadSpec(tied=tied, scale=d_model**-0.5 if scaled else 1.0)
    spec = EncoderDecoderSpec(
        encoder=EncoderSpec(vocab_size, context, EmbedSpec(), encoder),
        decoder=DecoderSpec(vocab_size, context, EmbedSpec(), decoder, head),
        start_id=read.take("decoder_start_token_id", int, read.take("pad_token_id", int, 0)),
    )
    read.done()
    return spec
