"""Mistral (Jiang et al. 2023), as Hugging Face publishes it: a Llama whose layers may all see a window only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families import decoders
from pellucid.families.config import Config
from pellucid.families.llama import TABLE
from pellucid.families.rotary import rotary
from pellucid.families.table import Table
from pellucid.spec import BlockSpec, DecoderSpec, ModelSpec, RMSNormSpec, StackSpec

IGNORED = "attention_dropout"
SILENT = {
    "sliding_window": 4096,
    "num_key_value_heads": 8,
}  # defaults of absent keys; an explicit null means something else


def table(spec: DecoderSpec) -> Table:
    """Llama's table: the names are the same."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a Mistral config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config({**SILENT, **config}, "mistral config", IGNORED)
    read.expect("model_type", "mistral")
    context = read.count("max_position_embeddings", 4096 * 32)
    norm = RMSNormSpec(eps=read.positive("rms_norm_eps", 1e-6))
    mixer = decoders.attention(read, rotary(read, context), mask=decoders.causal(decoders.window(read)))
    blocks = (BlockSpec(mixer, decoders.gated(read), norm),) * read.layers("num_hidden_layers")
    return decoders.decoder(read, architecture, StackSpec(read.count("hidden_size"), blocks, norm), context)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Mistral, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    return {
        **decoders.attributes(spec, "mistral", "MistralForCausalLM"),
        **decoders.gated_attributes(spec),
        "sliding_window": decoders.windows(spec)[1],
    }
