"""T5, versions 1.0 and 1.1 (Raffel et al. 2019, Shazeer 2020), and mT5, as Hugging Face publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.errors import suggest
from pellucid.families.config import ACTIVATION_NAMES, ACTIVATIONS, DEEPEST, Config, named_class, need
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
    ModelSpec,
    RMSNormSpec,
    StackSpec,
)

IGNORED = "dropout_rate classifier_dropout initializer_factor num_hidden_layers"
CLASSES = ("T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel", "MT5ForConditionalGeneration", "MT5Model")


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
        # old files carry it, and nothing reads it
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
    name = (
        "gelu_new" if proj == "gated-gelu" else name
    )  # transformers takes gated-gelu, and this name alone, for the tanh form
    if name not in ACTIVATIONS:
        raise read.refuse("feed_forward_proj", "is no activation of ours", suggest(name, ACTIVATIONS))
    read.expect("dense_act_fn", name)
    read.expect("is_gated_act", gated)
    kind = GatedFFNSpec if gated else FFNSpec
    return kind(read.count("d_ff"), ACTIVATIONS[name], bias=False)


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderDecoderSpec:
    """The spec of a T5 config (a parsed ``config.json``). Nothing in it limits the context: 512 is what it trained on.

    architecture: the class that the weights are of. Raises CheckpointError naming an attribute that is missing,
    unknown, or asks for what this family does not have.
    """
    read = Config(config, "t5 config", IGNORED)
    read.expect("model_type", "t5", "mt5")
    read.expect("is_encoder_decoder", True)
    read.expect("is_decoder", False)
    named_class(read, architecture, CLASSES)
    d_model, n_heads = read.count("d_model"), read.count("num_heads")
    vocab_size, context = read.count("vocab_size"), read.count("n_positions", 512)
    n_layers = read.layers("num_layers")
    tied = read.take("tie_word_embeddings", bool, True)
    old = tied and read.take("model_type", str, "t5") == "t5"  # no other model type was ever scaled
    scaled = read.take("scale_decoder_outputs", bool, old)  # newer configs state it; older ones scale exactly when tied
    norm = RMSNormSpec(eps=read.take("layer_norm_epsilon", float, 1e-6))
    bias = BucketedBiasSpec(
        read.count("relative_attention_num_buckets", 32, 2**16), read.count("relative_attention_max_distance", 128)
    )
    mixer = AttentionSpec(n_heads, n_heads, read.count("d_kv"), scale=1.0)
    everyone = replace(mixer, mask=Full())
    block = BlockSpec(mixer, _feed_forward(read), norm, cross=everyone)
    reading = replace(block, mixer=everyone, cross=None)
    encoder = StackSpec(d_model, (reading,) * n_layers, norm, replace(bias, both_directions=True))
    n_written = read.count("num_decoder_layers", n_layers, DEEPEST)
    decoder = StackSpec(d_model, (block,) * n_written, norm, bias)
    head = LMHeadSpec(tied=tied, scale=d_model**-0.5 if scaled else 1.0)
    spec = EncoderDecoderSpec(
        encoder=EncoderSpec(vocab_size, context, EmbedSpec(), encoder),
        decoder=DecoderSpec(vocab_size, context, EmbedSpec(), decoder, head),
        start_id=read.take("decoder_start_token_id", int, read.take("pad_token_id", int, 0)),
    )
    read.done()
    return spec


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a T5, as near to the spec as the family comes. Raises CheckpointError for other parts.

    The ids of special tokens are left to whoever saves a tokenizer with the model.
    """
    model = need(spec, EncoderDecoderSpec, "the model")
    stack, head = model.encoder.stack, model.decoder.head
    first, bias = stack.blocks[0], need(stack.bias, BucketedBiasSpec, "encoder.stack.bias")
    mixer, gated = (
        need(first.mixer, AttentionSpec, "encoder.stack.blocks[0].mixer"),
        isinstance(first.ffn, GatedFFNSpec),
    )
    ffn = first.ffn if isinstance(first.ffn, GatedFFNSpec) else need(first.ffn, FFNSpec, "encoder.stack.blocks[0].ffn")
    activation = "gelu" if gated and ffn.activation == "gelu_tanh" else ACTIVATION_NAMES[ffn.activation]
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": model.vocab_size,
        "n_positions": model.context,
        "d_model": model.d_model,
        "d_kv": mixer.head_dim,
        "d_ff": ffn.d_ff,
        "num_layers": model.encoder.n_layers,
        "num_decoder_layers": model.decoder.n_layers,
        "num_heads": mixer.n_heads,
        "relative_attention_num_buckets": bias.n_buckets,
        "relative_attention_max_distance": bias.max_distance,
        "layer_norm_epsilon": need(first.norm, RMSNormSpec, "encoder.stack.blocks[0].norm").eps,
        "feed_forward_proj": f"gated-{activation}" if gated else activation,
        "tie_word_embeddings": head.tied,
        "scale_decoder_outputs": head.scale != 1.0,
        "decoder_start_token_id": model.start_id,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # their defaults are of other vocabularies
    }
