"""GPT-2 (Radford et al. 2019), as Hugging Face publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families.config import Config
from pellucid.families.table import STACKED, TRANSPOSED, Row, Table
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    StackSpec,
)

IGNORED = """attn_pdrop embd_pdrop resid_pdrop reorder_and_upcast_attn
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"""

TABLE = Table(  # their matrices are (in, out), so transposed; q, k and v are one
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


def to_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a GPT-2 config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "gpt2 config", IGNORED)
    read.expect("model_type", "gpt2")
    d_model, n_heads = read.take("n_embd", int), read.take("n_head", int)
    context = read.take("n_positions", int)
    read.expect("n_ctx", context)
    if n_heads < 1 or d_model % n_heads:
        raise read.refuse("n_head", f"does not divide n_embd = {d_model}", "the config is damaged")
    head_dim = d_model // n_heads
    scale = head_dim**-0.5 if read.take("scale_attn_weights", bool, True) else 1.0
    by_layer = read.take("scale_attn_by_inverse_layer_idx", bool, False)
    norm = LayerNormSpec(eps=read.take("layer_norm_epsilon", float, 1e-5))
    ffn = FFNSpec(read.take("n_inner", int, 4 * d_model), read.activation("activation_function", "gelu_new"))
    blocks = tuple(
        BlockSpec(
            AttentionSpec(
                n_heads, n_heads, head_dim, bias=True, out_bias=True, scale=scale / (i + 1 if by_layer else 1)
            ),
            ffn,
            norm,
        )
        for i in range(read.take("n_layer", int))
    )
    spec = DecoderSpec(
        vocab_size=read.take("vocab_size", int),
        context=context,
        embed=EmbedSpec(LearnedSpec()),
        stack=StackSpec(d_model, blocks, norm),
        head=LMHeadSpec(tied=read.take("tie_word_embeddings", bool, True)),
    )
    read.done()
    return spec
