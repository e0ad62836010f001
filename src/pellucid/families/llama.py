"""Llama 1 to 3 (Touvron et al. 2023, Grattafiori et al. 2024), as Hugging Face publishes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pellucid.families.config import Config
from pellucid.families.table import Row, Table
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    ByPartsScaling,
    DecoderSpec,
    EmbedSpec,
    GatedFFNSpec,
    LinearScaling,
    LMHeadSpec,
    RMSNormSpec,
    RotaryScaling,
    RotarySpec,
    StackSpec,
    YaRNScaling,
)

IGNORED = "attention_dropout pretraining_tp"

TABLE = Table(
    rows=(
        Row("model.embed_tokens.weight", "embed.tokens.weight"),
        Row("model.layers.#.input_layernorm.weight", "blocks.#.attn_norms.pre.weight"),
        Row("model.layers.#.self_attn.q_proj.weight", "blocks.#.attn.q.weight"),
        Row("model.layers.#.self_attn.q_proj.bias", "blocks.#.attn.q.bias"),
        Row("model.layers.#.self_attn.k_proj.weight", "blocks.#.attn.k.weight"),
        Row("model.layers.#.self_attn.k_proj.bias", "blocks.#.attn.k.bias"),
        Row("model.layers.#.self_attn.v_proj.weight", "blocks.#.attn.v.weight"),
        Row("model.layers.#.self_attn.v_proj.bias", "blocks.#.attn.v.bias"),
        Row("model.layers.#.self_attn.o_proj.weight", "blocks.#.attn.o.weight"),
        Row("model.layers.#.self_attn.o_proj.bias", "blocks.#.attn.o.bias"),
        Row("model.layers.#.post_attention_layernorm.weight", "blocks.#.ffn_norms.pre.weight"),
        Row("model.layers.#.mlp.gate_proj.weight", "blocks.#.ffn.gate.weight"),
        Row("model.layers.#.mlp.gate_proj.bias", "blocks.#.ffn.gate.bias"),
        Row("model.layers.#.mlp.up_proj.weight", "blocks.#.ffn.up.weight"),
        Row("model.layers.#.mlp.up_proj.bias", "blocks.#.ffn.up.bias"),
        Row("model.layers.#.mlp.down_proj.weight", "blocks.#.ffn.down.weight"),
        Row("model.layers.#.mlp.down_proj.bias", "blocks.#.ffn.down.bias"),
        Row("model.norm.weight", "final_norm.weight"),
        Row("lm_head.weight", "head.weight"),
    ),
    ignored=("model.layers.#.self_attn.rotary_emb.inv_freq",),  # follows from the config; old files carry it
    copies=(("lm_head.weight", "model.embed_tokens.weight"),),
    base="model.",
)


def _scaling(read: Config, context: int) -> RotaryScaling | None:
    """The rule that ``rope_type`` names, with its numbers. Raises CheckpointError for a rule that no spec expresses."""
    kind = read.take("rope_type", str, read.take("type", str, "default"))
    read.expect("partial_rotary_factor", None, 1.0)
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise read.refuse("rope_type", "is not supported", "known: default, linear, llama3, yarn")
    factor = read.take("factor", float)
    if factor < 1:
        raise read.refuse("factor", "is below 1")
    if kind == "linear":
        return LinearScaling(factor)
    original = read.take("original_max_position_embeddings", int, context)
    if kind == "llama3":
        return ByPartsScaling(
            factor, original, read.take("low_freq_factor", float), read.take("high_freq_factor", float)
        )
    for name in ("mscale", "mscale_all_dim"):
        read.expect(name, None)
    read.expect("truncate", None, True)
    usual = 0.1 * math.log(factor) + 1.0
    if not math.isclose(read.take("attention_factor", float, usual), usual, rel_tol=1e-6):
        raise read.refuse("attention_factor", f"is not the paper's {usual:.6f}")
    return YaRNScaling(factor, original, read.take("beta_fast", float, 32.0), read.take("beta_slow", float, 1.0))


def rotary(read: Config, context: int, base: float = 10_000.0) -> RotarySpec:
    """Base and scaling from ``rope_parameters``, or in older files from ``rope_theta`` and ``rope_scaling``.

    base: where no attribute says it.
    """
    theta = read.take("rope_theta", float, base)
    new, old = read.nested("rope_parameters"), read.nested("rope_scaling")
    if new and old and new != old:
        raise read.refuse("rope_scaling", f"contradicts rope_parameters = {new!r}", "keep one of them")
    inner = Config(new or old, f"{read.where}, {'rope_parameters' if new else 'rope_scaling'}")
    spec = RotarySpec(base=inner.take("rope_theta", float, theta), scaling=_scaling(inner, context))
    inner.done()
    return spec


def to_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a Llama config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "llama config", IGNORED)
    read.expect("model_type", "llama")
    d_model, n_heads = read.take("hidden_size", int), read.take("num_attention_heads", int)
    context = read.take("max_position_embeddings", int, read.take("max_sequence_length", int, 2048))
    bias = read.take("attention_bias", bool, False)
    norm = RMSNormSpec(eps=read.take("rms_norm_eps", float, 1e-6))
    mixer = AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=read.take("num_key_value_heads", int, n_heads),
        head_dim=read.take("head_dim", int, d_model // max(n_heads, 1)),
        rotary=rotary(read, context),
        bias=bias,
        out_bias=bias,
    )
    ffn = GatedFFNSpec(
        read.take("intermediate_size", int), read.activation("hidden_act", "silu"), read.take("mlp_bias", bool, False)
    )
    spec = DecoderSpec(
        vocab_size=read.take("vocab_size", int),
        context=context,
        embed=EmbedSpec(),
        stack=StackSpec(d_model, (BlockSpec(mixer, ffn, norm),) * read.take("num_hidden_layers", int), norm),
        head=LMHeadSpec(tied=read.take("tie_word_embeddings", bool, False)),
    )
    read.done()
    return spec
