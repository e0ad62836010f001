"""Mixtral (Jiang et al. 2024), as Hugging Face publishes it: a Mistral with experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pellucid.families import decoders
from pellucid.families.config import ACTIVATION_NAMES, Config, need
from pellucid.families.rotary import rotary
from pellucid.families.table import Row, Table, Transform
from pellucid.spec import BlockSpec, DecoderSpec, GatedFFNSpec, ModelSpec, MoESpec, RMSNormSpec, StackSpec

IGNORED = (
    # router_jitter_noise acts in training only
    "attention_dropout output_router_logits router_aux_loss_coef router_jitter_noise"
)
SILENT = {"num_key_value_heads": 8}  # default of an absent key; an explicit null means something else

SIDE_BY_SIDE = Transform(  # each expert has the rows of gate, and then those of up
    lambda theirs, shapes: torch.split(theirs, [shape[1] for shape in shapes], 1),
    lambda ours: torch.cat(list(ours), 1),
    by_rows=True,
)

STACKED_TABLE = Table(  # as transformers 5 holds it in memory: all experts in one tensor
    rows=(
        *decoders.ENDS,
        *decoders.NORMS,
        *decoders.ATTENTION,
        Row("model.layers.#.mlp.gate.weight", "blocks.#.ffn.router.weight"),
        Row(
            "model.layers.#.mlp.experts.gate_up_proj",
            ("blocks.#.ffn.gate.weight", "blocks.#.ffn.up.weight"),
            SIDE_BY_SIDE,
        ),
        Row("model.layers.#.mlp.experts.down_proj", "blocks.#.ffn.down.weight"),
    ),
    ignored=decoders.IGNORED,
    copies=decoders.COPIES,
    base="model.",
)

TABLE = replace(  # as files have it: a tensor for each matrix of each expert
    STACKED_TABLE,
    rows=(
        *decoders.ENDS,
        *decoders.NORMS,
        *decoders.ATTENTION,
        Row("model.layers.#.block_sparse_moe.gate.weight", "blocks.#.ffn.router.weight"),
        Row("model.layers.#.block_sparse_moe.experts.*.w1.weight", "blocks.#.ffn.gate.weight"),
        Row("model.layers.#.block_sparse_moe.experts.*.w3.weight", "blocks.#.ffn.up.weight"),
        Row("model.layers.#.block_sparse_moe.experts.*.w2.weight", "blocks.#.ffn.down.weight"),
    ),
    versions=(STACKED_TABLE,),
)


def table(spec: DecoderSpec) -> Table:
    """All models of this family have one table."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a Mixtral config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config({**SILENT, **config}, "mixtral config", IGNORED)
    read.expect("model_type", "mixtral")
    context = read.count("max_position_embeddings", 4096 * 32)
    n_experts, top_k = read.count("num_local_experts", 8), read.take("num_experts_per_tok", int, 2)
    if not 1 <= top_k <= n_experts:
        raise read.refuse("num_experts_per_tok", f"is not from 1 to num_local_experts = {n_experts}")
    norm = RMSNormSpec(eps=read.positive("rms_norm_eps", 1e-5))
    turns = rotary(read, context, 1_000_000.0)
    mixer = decoders.attention(read, turns, mask=decoders.causal(decoders.window(read)))
    block = BlockSpec(mixer, MoESpec(decoders.gated(read), n_experts, top_k), norm)
    stack = StackSpec(read.count("hidden_size"), (block,) * read.layers("num_hidden_layers"), norm)
    return decoders.decoder(read, architecture, stack, context)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Mixtral, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    experts = need(need(spec, DecoderSpec, "the model").stack.blocks[0].ffn, MoESpec, "stack.blocks[0].ffn")
    expert = need(experts.expert, GatedFFNSpec, "stack.blocks[0].ffn.expert")
    return {
        **decoders.attributes(spec, "mixtral", "MixtralForCausalLM"),
        "intermediate_size": expert.d_ff,
        "hidden_act": ACTIVATION_NAMES[expert.activation],
        "num_local_experts": experts.n_experts,
        "num_experts_per_tok": experts.top_k,
        "sliding_window": decoders.windows(spec)[1],
    }
