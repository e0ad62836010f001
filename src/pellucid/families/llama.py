"""Llama 1 to 3 (Touvron et al. 2023, Grattafiori et al. 2024), as Hugging Face publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families import decoders
from pellucid.families.config import Config, need
from pellucid.families.rotary import rotary
from pellucid.families.table import Table
from pellucid.spec import BlockSpec, DecoderSpec, GatedFFNSpec, ModelSpec, RMSNormSpec, StackSpec

IGNORED = "attention_dropout pretraining_tp is_llama_config"

TABLE = Table(
    rows=(*decoders.ENDS, *decoders.NORMS, *decoders.ATTENTION, *decoders.GATED),
    ignored=decoders.IGNORED,
    copies=decoders.COPIES,
    base="model.",
)


def table(spec: DecoderSpec) -> Table:
    """All models of this family have one table."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a Llama config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "llama config", IGNORED)
    read.expect("model_type", "llama")
    read.expect("rope_interleaved", None, False)
    context = read.count("max_position_embeddings", read.take("max_sequence_length", int, 2048))
    bias = read.take("attention_bias", bool, False)
    norm = RMSNormSpec(eps=read.positive("rms_norm_eps", 1e-6))
    mixer = decoders.attention(read, rotary(read, context), bias=bias, out_bias=bias)
    ffn = decoders.gated(read, bias=read.take("mlp_bias", bool, False))
    blocks = (BlockSpec(mixer, ffn, norm),) * read.layers("num_hidden_layers")
    return decoders.decoder(read, architecture, StackSpec(read.count("hidden_size"), blocks, norm), context)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Llama, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    mixer = decoders.attentions(spec)[0]
    ffn = need(need(spec, DecoderSpec, "the model").stack.blocks[0].ffn, GatedFFNSpec, "stack.blocks[0].ffn")
    decoders.require_even_heads(spec)
    return {
        **decoders.attributes(spec, "llama", "LlamaForCausalLM"),
        **decoders.gated_attributes(spec),
        "attention_bias": mixer.bias,
        "mlp_bias": ffn.bias,
    }
