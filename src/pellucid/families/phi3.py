"""Phi 3 (Abdin et al. 2024), as Hugging Face publishes it: a Mistral with q, k and v in one matrix, gate and up too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families import decoders
from pellucid.families.config import Config, need
from pellucid.families.rotary import rotary
from pellucid.families.table import STACKED, Row, Table
from pellucid.spec import BlockSpec, DecoderSpec, ModelSpec, RMSNormSpec, RotarySpec, StackSpec

# original_max_position_embeddings matters only to the scaling of long contexts, which is refused
IGNORED = "attention_dropout resid_pdrop embd_pdrop original_max_position_embeddings"

TABLE = Table(
    rows=(
        *decoders.ENDS,
        *decoders.NORMS,
        Row("model.layers.#.self_attn.qkv_proj.weight", tuple(f"blocks.#.attn.{x}.weight" for x in "qkv"), STACKED),
        Row("model.layers.#.self_attn.o_proj.weight", "blocks.#.attn.o.weight"),
        Row(
            "model.layers.#.mlp.gate_up_proj.weight",
            ("blocks.#.ffn.gate.weight", "blocks.#.ffn.up.weight"),
            STACKED,
        ),
        Row("model.layers.#.mlp.down_proj.weight", "blocks.#.ffn.down.weight"),
    ),
    ignored=decoders.IGNORED,
    copies=decoders.COPIES,
    base="model.",
)


def table(spec: DecoderSpec) -> Table:
    """All models of this family have one table."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a Phi 3 config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "phi3 config", IGNORED)
    read.expect("model_type", "phi3")
    read.expect("attention_bias", None, False)
    context = read.count("max_position_embeddings", 4096)
    turns = rotary(read, context, fraction=1.0)
    if turns.scaling is not None:
        raise read.refuse("rope_scaling", "is not supported; only null is")
    norm = RMSNormSpec(eps=read.positive("rms_norm_eps", 1e-5))
    mixer = decoders.attention(read, turns, mask=decoders.causal(decoders.window(read)))
    blocks = (BlockSpec(mixer, decoders.gated(read), norm),) * read.layers("num_hidden_layers")
    return decoders.decoder(read, architecture, StackSpec(read.count("hidden_size"), blocks, norm), context)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Phi 3, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    mixer = decoders.attentions(spec)[0]
    return {
        **decoders.attributes(spec, "phi3", "Phi3ForCausalLM"),
        **decoders.gated_attributes(spec),
        "original_max_position_embeddings": need(spec, DecoderSpec, "the model").context,
        "partial_rotary_factor": need(mixer.rotary, RotarySpec, "stack.blocks[0].mixer.rotary").fraction,
        "sliding_window": decoders.windows(spec)[1],
    }
