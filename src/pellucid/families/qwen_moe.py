"""Qwen 3 with experts (Yang et al. 2025), as Hugging Face publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.families import decoders
from pellucid.families.config import ACTIVATION_NAMES, Config, need
from pellucid.families.mixtral import STACKED_TABLE
from pellucid.families.rotary import rotary
from pellucid.families.table import Row, Table
from pellucid.spec import BlockSpec, DecoderSpec, GatedFFNSpec, ModelSpec, MoESpec, RMSNormSpec, StackSpec

# intermediate_size is that of layers without experts, which are refused; max_window_layers is read by nothing
IGNORED = "attention_dropout output_router_logits router_aux_loss_coef intermediate_size max_window_layers"
SILENT = {
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}  # defaults of absent keys; an explicit null means something else

TABLE = replace(  # as files have it: a tensor for each matrix of each expert
    STACKED_TABLE,
    rows=(
        *decoders.ENDS,
        *decoders.NORMS,
        *decoders.ATTENTION,
        Row("model.layers.#.mlp.gate.weight", "blocks.#.ffn.router.weight"),
        *(
            Row(f"model.layers.#.mlp.experts.*.{part}_proj.weight", f"blocks.#.ffn.{part}.weight")
            for part in ("gate", "up", "down")
        ),
    ),
    versions=(STACKED_TABLE,),
)


def table(spec: DecoderSpec) -> Table:
    """All models of this family have one table."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a Qwen 3 MoE config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config({**SILENT, **config}, "qwen3_moe config", IGNORED)
    read.expect("model_type", "qwen3_moe")
    read.expect("decoder_sparse_step", None, 1)  # layers without experts have other names
    read.expect("mlp_only_layers", None, [])
    context = read.count("max_position_embeddings", 32768)
    norm = RMSNormSpec(eps=read.positive("rms_norm_eps", 1e-6))
    size = decoders.window(read)
    mixer = decoders.attention(
        read,
        rotary(read, context),
        mask=decoders.causal(size if read.take("use_sliding_window", bool, False) else None),
        bias=read.take("attention_bias", bool, False),
        out_bias=read.take("attention_bias", bool, False),
        qk_norm=norm,
    )
    n_experts, top_k = (
        read.count("num_experts", read.count("num_local_experts", 128)),
        read.count("num_experts_per_tok", 8),
    )
    if top_k > n_experts:
        raise read.refuse("num_experts_per_tok", f"is not from 1 to num_experts = {n_experts}")
    expert = GatedFFNSpec(read.count("moe_intermediate_size", 768), read.activation("hidden_act", "silu"))
    experts = MoESpec(expert, n_experts, top_k, renormalise=read.take("norm_topk_prob", bool, False))
    blocks = (BlockSpec(mixer, experts, norm),) * read.layers("num_hidden_layers")
    return decoders.decoder(read, architecture, StackSpec(read.count("hidden_size"), blocks, norm), context)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Qwen 3 MoE, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    experts = need(need(spec, DecoderSpec, "the model").stack.blocks[0].ffn, MoESpec, "stack.blocks[0].ffn")
    expert = need(experts.expert, GatedFFNSpec, "stack.blocks[0].ffn.expert")
    size = decoders.windows(spec)[1]
    return {
        **decoders.attributes(spec, "qwen3_moe", "Qwen3MoeForCausalLM"),
        "attention_bias": decoders.attentions(spec)[0].bias,
        "moe_intermediate_size": expert.d_ff,
        "hidden_act": ACTIVATION_NAMES[expert.activation],
        "num_experts": experts.n_experts,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": size is not None,
        "sliding_window": size,
    }
