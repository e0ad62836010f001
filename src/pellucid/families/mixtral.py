"""Mixtral (Jiang et al. 2024), as Hugging Face publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pellucid.families.config import Config
from pellucid.families.llama import rotary
from pellucid.families.table import Row, Table, Transform
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    GatedFFNSpec,
    LMHeadSpec,
    MoESpec,
    RMSNormSpec,
    StackSpec,
    Window,
)

IGNORED = (
    "attention_dropout output_router_logits router_aux_loss_coef router_jitter_noise"  # the last: in training only
)

SIDE_BY_SIDE = Transform(  # of each expert, the rows of gate and then those of up
    lambda theirs, shapes: torch.split(theirs, [shape[1] for shape in shapes], 1),
    lambda ours: torch.cat(list(ours), 1),
)

COMMON = (
    Row("model.embed_tokens.weight", "embed.tokens.weight"),
    Row("model.layers.#.input_layernorm.weight", "blocks.#.attn_norms.pre.weight"),
    Row("model.layers.#.self_attn.q_proj.weight", "blocks.#.attn.q.weight"),
    Row("model.layers.#.self_attn.k_proj.weight", "blocks.#.attn.k.weight"),
    Row("model.layers.#.self_attn.v_proj.weight", "blocks.#.attn.v.weight"),
    Row("model.layers.#.self_attn.o_proj.weight", "blocks.#.attn.o.weight"),
    Row("model.layers.#.post_attention_layernorm.weight", "blocks.#.ffn_norms.pre.weight"),
    Row("model.norm.weight", "final_norm.weight"),
    Row("lm_head.weight", "head.weight"),
)

IGNORED_WEIGHTS = ("model.layers.#.self_attn.rotary_emb.inv_freq",)  # follows from the config; old files carry it
COPIES = (("lm_head.weight", "model.embed_tokens.weight"),)

STACKED_TABLE = Table(  # as transformers 5 holds it in memory: all experts in one tensor
    rows=(
        *COMMON,
        Row("model.layers.#.mlp.gate.weight", "blocks.#.ffn.router.weight"),
        Row(
            "model.layers.#.mlp.experts.gate_up_proj",
            ("blocks.#.ffn.gate.weight", "blocks.#.ffn.up.weight"),
            SIDE_BY_SIDE,
        ),
        Row("model.layers.#.mlp.experts.down_proj", "blocks.#.ffn.down.weight"),
    ),
    ignored=IGNORED_WEIGHTS,
    copies=COPIES,
    base="model.",
)

TABLE = Table(  # as files have it: a tensor for each matrix of each expert
    rows=(
        *COMMON,
        Row("model.layers.#.block_sparse_moe.gate.weight", "blocks.#.ffn.router.weight"),
        Row("model.layers.#.block_sparse_moe.experts.*.w1.weight", "blocks.#.ffn.gate.weight"),
        Row("model.layers.#.block_sparse_moe.experts.*.w3.weight", "blocks.#.ffn.up.weight"),
        Row("model.layers.#.block_sparse_moe.experts.*.w2.weight", "blocks.#.ffn.down.weight"),
    ),
    ignored=IGNORED_WEIGHTS,
    copies=COPIES,
    base="model.",
    versions=(STACKED_TABLE,),
)


def to_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of a Mixtral config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "mixtral config", IGNORED)
    read.expect("model_type", "mixtral")
    d_model, n_heads = read.take("hidden_size", int), read.take("num_attention_heads", int)
    context = read.take("max_position_embeddings", int, 4096 * 32)
    window = read.take("sliding_window", int, 0)  # 0: none
    if window < 0:
        raise read.refuse("sliding_window", "is negative", "null, or how many tokens a query sees")
    n_experts, top_k = read.take("num_local_experts", int, 8), read.take("num_experts_per_tok", int, 2)
    if not 1 <= top_k <= n_experts:
        raise read.refuse("num_experts_per_tok", f"is not from 1 to num_local_experts = {n_experts}")
    norm = RMSNormSpec(eps=read.take("rms_norm_eps", float, 1e-5))
    mixer = AttentionSpec(
        n_heads=n_heads,
        n_kv_heads=read.take("num_key_value_heads", int, n_heads),
        head_dim=read.take("head_dim", int, d_model // max(n_heads, 1)),
        mask=Causal() & Window(window) if window else Causal(),
        rotary=rotary(read, context, 1_000_000.0),
    )
    expert = GatedFFNSpec(read.take("intermediate_size", int), read.activation("hidden_act", "silu"))
    block = BlockSpec(mixer, MoESpec(expert, n_experts, top_k), norm)
    spec = DecoderSpec(
        vocab_size=read.take("vocab_size", int),
        context=context,
        embed=EmbedSpec(),
        stack=StackSpec(d_model, (block,) * read.take("num_hidden_layers", int), norm),
        head=LMHeadSpec(tied=read.take("tie_word_embeddings", bool, False)),
    )
    read.done()
    return spec
