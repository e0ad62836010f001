"""GPT-2 (Radford et al. 2019), as Hugging Face publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.families.config import ACTIVATION_NAMES, Config, need
from pellucid.families.decoders import attentions, decoder
from pellucid.families.table import STACKED, TRANSPOSED, Row, Table
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    LayerNormSpec,
    LearnedSpec,
    ModelSpec,
    StackSpec,
)

IGNORED = """predict_special_tokens attn_pdrop embd_pdrop resid_pdrop reorder_and_upcast_attn
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"""

TABLE = Table(  # its matrices are stored as (in, out), so they are transposed; q, k and v are one tensor
    rows=(
        Row("transformer.wte.weight", "embed.tokens.weight"),
        Row("transformer.wpe.weight", "embed.positions.weight"),
        Row("transformer.h.#.ln_1.weight", "blocks.#.attn_norms.pre.weight"),
        Row("transformer.h.#.ln_1.bias", "blocks.#.attn_norms.pre.bias"),
        Row(
            "transformer.h.#.attn.c_attn.weight",
            ("blocks.#.attn.q.weight", "blocks.#.attn.k.weight", "blocks.#.attn.v.weight"),
            TRANSPOSED.then(STACKED),
        ),
        Row(
            "transformer.h.#.attn.c_attn.bias",
            ("blocks.#.attn.q.bias", "blocks.#.attn.k.bias", "blocks.#.attn.v.bias"),
            STACKED,
        ),
        Row("transformer.h.#.attn.c_proj.weight", "blocks.#.attn.o.weight", TRANSPOSED),
        Row("transformer.h.#.attn.c_proj.bias", "blocks.#.attn.o.bias"),
        Row("transformer.h.#.ln_2.weight", "blocks.#.ffn_norms.pre.weight"),
        Row("transformer.h.#.ln_2.bias", "blocks.#.ffn_norms.pre.bias"),
        Row("transformer.h.#.mlp.c_fc.weight", "blocks.#.ffn.up.weight", TRANSPOSED),
        Row("transformer.h.#.mlp.c_fc.bias", "blocks.#.ffn.up.bias"),
        Row("transformer.h.#.mlp.c_proj.weight", "blocks.#.ffn.down.weight", TRANSPOSED),
        Row("transformer.h.#.mlp.c_proj.bias", "blocks.#.ffn.down.bias"),
        Row("transformer.ln_f.weight", "final_norm.weight"),
        Row("transformer.ln_f.bias", "final_norm.bias"),
        Row("lm_head.weight", "head.weight"),
    ),
    ignored=("transformer.h.#.attn.bias", "transformer.h.#.attn.masked_bias"),  # causal masks that old files carry
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    base="transformer.",
)


def table(spec: DecoderSpec) -> Table:
    """All models of this family have one table."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a GPT-2 config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "gpt2 config", IGNORED)
    read.expect("model_type", "gpt2")
    read.expect("n_special", 0)  # rows of the vocabulary that the first release of the library added
    d_model, n_heads = read.count("n_embd"), read.count("n_head")
    context = read.count("n_positions", 1024)
    read.expect("n_ctx", context)
    if d_model % n_heads:
        raise read.refuse("n_head", f"does not divide n_embd = {d_model}", "the config is damaged")
    head_dim = d_model // n_heads
    first = None if read.take("scale_attn_weights", bool, True) else 1.0
    by_layer = read.take("scale_attn_by_inverse_layer_idx", bool, False)
    norm = LayerNormSpec(eps=read.positive("layer_norm_epsilon", 1e-5))
    ffn = FFNSpec(read.count("n_inner", 4 * d_model), read.activation("activation_function", "gelu_new"))
    n_layers = read.layers("n_layer")
    scales = _scales(first, head_dim, n_layers) if by_layer else [first] * n_layers
    mixer = AttentionSpec(n_heads, n_heads, head_dim, bias=True, out_bias=True)
    blocks = tuple(BlockSpec(replace(mixer, scale=scale), ffn, norm) for scale in scales)
    stack = StackSpec(d_model, blocks, norm)
    return decoder(read, architecture, stack, context, tied=True, embed=EmbedSpec(LearnedSpec()))


def _scales(first: float | None, head_dim: int, n_layers: int) -> list[float | None]:
    """The scale of scores in each layer, where each layer divides by its number, counted from 1."""
    usual = head_dim**-0.5 if first is None else first
    return [first, *(usual / (i + 1) for i in range(1, n_layers))]


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a GPT-2, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    scales = [each.head_dim**-0.5 if each.scale is None else each.scale for each in attentions(spec)]
    mixer, model = attentions(spec)[0], need(spec, DecoderSpec, "the model")
    block = model.stack.blocks[0]
    ffn = need(block.ffn, FFNSpec, "stack.blocks[0].ffn")
    named = {"gelu_tanh": "gelu_new"}  # as its own files say it
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": model.vocab_size,
        "n_positions": model.context,
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": mixer.n_heads,
        "n_inner": ffn.d_ff,
        "activation_function": named.get(ffn.activation, ACTIVATION_NAMES[ffn.activation]),
        "layer_norm_epsilon": need(block.norm, LayerNormSpec, "stack.blocks[0].norm").eps,
        "scale_attn_weights": scales[0] != 1.0,
        "scale_attn_by_inverse_layer_idx": len(set(scales)) > 1,
        "tie_word_embeddings": model.head.tied,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # the defaults are of another vocabulary
    }
