"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023), as Hugging Face publishes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Size, Tensor

from pellucid.families.config import ACTIVATION_NAMES, Config, need
from pellucid.families.decoders import attentions, decoder, require_even_heads
from pellucid.families.rotary import base_of, rotary, rotary_attributes
from pellucid.families.table import Row, Table, Transform, projection
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    FFNSpec,
    LayerNormSpec,
    ModelSpec,
    RotarySpec,
    StackSpec,
)

IGNORED = """attention_dropout hidden_dropout classifier_dropout
    attention_probs_dropout_prob hidden_dropout_prob"""  # as the first files had them


def by_head(n_heads: int) -> Transform:
    """q, k and v in one tensor, head by head: the rows of the first head's q, of its k, of its v, then the second's."""

    def take(theirs: Tensor, shapes: Sequence[Size]) -> list[Tensor]:
        each = theirs.unflatten(0, (n_heads, 3, -1))  # (heads, 3, head_dim, ...)
        return [each[:, i].flatten(0, 1) for i in range(3)]

    def give(ours: Sequence[Tensor]) -> Tensor:
        return torch.stack([x.unflatten(0, (n_heads, -1)) for x in ours], 1).flatten(0, 2)

    return Transform(take, give, by_rows=True)


def table(spec: DecoderSpec) -> Table:
    """The table for a model of this spec: how q, k and v lie in one tensor depends on the number of heads."""
    layer, block = "gpt_neox.layers.#", "blocks.#"
    fused = by_head(attentions(spec)[0].n_heads)
    new = Table(
        rows=(
            Row("gpt_neox.embed_in.weight", "embed.tokens.weight"),
            *projection(f"{layer}.input_layernorm", f"{block}.attn_norms.pre"),
            *projection(f"{layer}.post_attention_layernorm", f"{block}.ffn_norms.pre"),
            *(
                Row(
                    f"{layer}.attention.query_key_value.{part}", tuple(f"{block}.attn.{x}.{part}" for x in "qkv"), fused
                )
                for part in ("weight", "bias")
            ),
            *projection(f"{layer}.attention.dense", f"{block}.attn.o"),
            *projection(f"{layer}.mlp.dense_h_to_4h", f"{block}.ffn.up"),
            *projection(f"{layer}.mlp.dense_4h_to_h", f"{block}.ffn.down"),
            *projection("gpt_neox.final_layer_norm", "final_norm"),
            Row("lm_head.weight", "head.weight"),
        ),
        # causal masks and frequencies that old files carry
        ignored=tuple(f"{layer}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
        copies=(("lm_head.weight", "gpt_neox.embed_in.weight"), ("embed_out.weight", "gpt_neox.embed_in.weight")),
        base="gpt_neox.",
    )
    published = replace(new, rows=(*new.rows[:-1], Row("embed_out.weight", "head.weight")))
    return replace(published, versions=(new,))


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a GPT-NeoX config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "gpt_neox config", IGNORED)
    read.expect("model_type", "gpt_neox")
    d_model, n_heads = read.count("hidden_size"), read.count("num_attention_heads")
    if d_model % n_heads:
        raise read.refuse("num_attention_heads", f"does not divide hidden_size = {d_model}", "the config is damaged")
    context, bias = read.count("max_position_embeddings", 2048), read.take("attention_bias", bool, True)
    base, turned = base_of(read, "rotary_emb_base", 10_000.0), read.take("rotary_pct", float, 0.25)
    if not 0 < turned <= 1:
        raise read.refuse("rotary_pct", "is no share of a head")
    turns = rotary(read, context, base, turned)
    for name, used in (("rotary_emb_base", turns.base), ("rotary_pct", turns.fraction)):
        if read.values.get(name) not in (None, used):
            raise read.refuse(name, f"contradicts {used} in rope_parameters", "keep one of them")
    mixer = AttentionSpec(n_heads, n_heads, d_model // n_heads, rotary=turns, bias=bias, out_bias=bias)
    norm = LayerNormSpec(eps=read.positive("layer_norm_eps", 1e-5))
    ffn = FFNSpec(read.count("intermediate_size"), read.activation("hidden_act", "gelu"))
    block = BlockSpec(mixer, ffn, norm, parallel=read.take("use_parallel_residual", bool, True))
    stack = StackSpec(d_model, (block,) * read.layers("num_hidden_layers"), norm)
    return decoder(read, architecture, stack, context)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a GPT-NeoX, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    mixer, model = attentions(spec)[0], need(spec, DecoderSpec, "the model")
    block = model.stack.blocks[0]
    ffn, turns = (
        need(block.ffn, FFNSpec, "stack.blocks[0].ffn"),
        need(mixer.rotary, RotarySpec, "stack.blocks[0].mixer.rotary"),
    )
    require_even_heads(spec)
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": mixer.n_heads,
        "intermediate_size": ffn.d_ff,
        "hidden_act": ACTIVATION_NAMES[ffn.activation],
        "layer_norm_eps": need(block.norm, LayerNormSpec, "stack.blocks[0].norm").eps,
        "attention_bias": mixer.bias,
        "use_parallel_residual": block.parallel,
        "rotary_emb_base": turns.base,
        "rotary_pct": turns.fraction,
        "rope_scaling": rotary_attributes(turns)["rope_scaling"],
        "tie_word_embeddings": model.head.tied,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # the defaults are of another vocabulary
    }
