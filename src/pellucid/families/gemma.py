"""Gemma 2 and 3 (Gemma Team 2024, 2025), the models of text, as Hugging Face publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families.config import Config
from pellucid.families.llama import rotary
from pellucid.families.table import Row, Table
from pellucid.spec import (
    SANDWICH_NORM,
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    GatedFFNSpec,
    LMHeadSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
    Window,
)

IGNORED = "attention_dropout cache_implementation sliding_window_pattern _sliding_window_pattern"

LOCAL, GLOBAL = "sliding_attention", "full_attention"

# what it means that an attribute is absent; null may mean something else
SILENT: dict[str, dict[str, Any]] = {
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096},
    "gemma3_text": {"sliding_window": 4096},
}
PATTERN = {"gemma2": 2, "gemma3_text": 6}  # in files that name no layer types, each so manieth layer is global

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
        Row("model.layers.#.self_attn.q_norm.weight", "blocks.#.attn.q_norm.weight"),
        Row("model.layers.#.self_attn.k_norm.weight", "blocks.#.attn.k_norm.weight"),
        Row("model.layers.#.self_attn.o_proj.weight", "blocks.#.attn.o.weight"),
        Row("model.layers.#.self_attn.o_proj.bias", "blocks.#.attn.o.bias"),
        Row("model.layers.#.post_attention_layernorm.weight", "blocks.#.attn_norms.post.weight"),
        Row("model.layers.#.pre_feedforward_layernorm.weight", "blocks.#.ffn_norms.pre.weight"),
        Row("model.layers.#.mlp.gate_proj.weight", "blocks.#.ffn.gate.weight"),
        Row("model.layers.#.mlp.up_proj.weight", "blocks.#.ffn.up.weight"),
        Row("model.layers.#.mlp.down_proj.weight", "blocks.#.ffn.down.weight"),
        Row("model.layers.#.post_feedforward_layernorm.weight", "blocks.#.ffn_norms.post.weight"),
        Row("model.norm.weight", "final_norm.weight"),
        Row("lm_head.weight", "head.weight"),
    ),
    copies=(("lm_head.weight", "model.embed_tokens.weight"),),
    base="model.",
)


def _layer_types(read: Config, usual: int) -> list[str]:
    """Which layers look at a window and which at everything, as newer files list or older ones count them."""
    n_layers = read.take("num_hidden_layers", int)
    period = read.take("sliding_window_pattern", int, read.take("_sliding_window_pattern", int, usual))
    if period < 1:
        raise read.refuse("sliding_window_pattern", "is no number of layers")
    counted = [LOCAL if (i + 1) % period else GLOBAL for i in range(n_layers)]
    types = read.take("layer_types", list, counted)
    if len(types) != n_layers or not set(types) <= {LOCAL, GLOBAL}:
        raise read.refuse("layer_types", f"is not {n_layers} times {LOCAL} or {GLOBAL}")
    return types


def _rotaries(read: Config, context: int, two_bases: bool) -> dict[str, RotarySpec]:
    """The rotation of each type of layer. Of two, older files call the global one ``rope_theta`` and may scale it."""
    if not two_bases:
        return dict.fromkeys((LOCAL, GLOBAL), rotary(read, context))
    bases = {LOCAL: 10_000.0, GLOBAL: 1_000_000.0}
    if (nested := read.nested("rope_parameters")).keys() & bases.keys():
        read.expect("rope_scaling", None)
        each = Config(nested, f"{read.where}, rope_parameters")
        found = {
            kind: rotary(Config({"rope_parameters": each.nested(kind)}, f"{each.where}, {kind}"), context, base)
            for kind, base in bases.items()
        }
        each.done()
        return found
    local = RotarySpec(base=read.take("rope_local_base_freq", float, bases[LOCAL]))
    return {LOCAL: local, GLOBAL: rotary(read, context, bases[GLOBAL])}


def to_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a Gemma 2 or 3 config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config({**SILENT.get(str(config.get("model_type")), {}), **config}, "gemma config", IGNORED)
    read.expect("model_type", *SILENT)
    kind = read.take("model_type", str)
    read.expect("use_bidirectional_attention", None, False)
    if kind == "gemma3_text":
        read.expect("attn_logit_softcapping", None)  # the library keeps the number and never applies it
    d_model, context = read.take("hidden_size", int), read.take("max_position_embeddings", int, 8192)
    activation = read.take("hidden_activation", str, "gelu_pytorch_tanh")
    read.expect("hidden_act", activation)  # some files say it twice
    types, turns = _layer_types(read, PATTERN[kind]), _rotaries(read, context, kind == "gemma3_text")
    window = read.take("sliding_window", int, 0)
    if LOCAL in types and window < 1:
        raise read.refuse("sliding_window", f"is no number of tokens, but layer_types has {LOCAL}")
    norm = RMSNormSpec(eps=read.take("rms_norm_eps", float, 1e-6), offset=1.0)
    bias = read.take("attention_bias", bool, False)
    attention = {
        layer_type: AttentionSpec(
            n_heads=read.take("num_attention_heads", int),
            n_kv_heads=read.take("num_key_value_heads", int, 4),
            head_dim=read.take("head_dim", int, 256),
            mask=Causal() & Window(window) if layer_type == LOCAL else Causal(),
            rotary=turns[layer_type],
            qk_norm=norm if kind == "gemma3_text" else None,
            bias=bias,
            out_bias=bias,
            scale=read.take("query_pre_attn_scalar", float, 256.0) ** -0.5,
            soft_cap=read.take("attn_logit_softcapping", float, 0.0) or None,
        )
        for layer_type in set(types)
    }
    ffn = GatedFFNSpec(read.take("intermediate_size", int), read.activation("hidden_activation", "gelu_pytorch_tanh"))
    tied, cap = read.take("tie_word_embeddings", bool, True), read.take("final_logit_softcapping", float, 0.0) or None
    blocks = tuple(BlockSpec(attention[layer_type], ffn, norm, SANDWICH_NORM) for layer_type in types)
    spec = DecoderSpec(
        vocab_size=read.take("vocab_size", int),
        context=context,
        embed=EmbedSpec(scale=d_model**0.5),
        stack=StackSpec(d_model, blocks, norm),
        head=LMHeadSpec(tied, soft_cap=cap),
    )
    read.done()
    return spec
