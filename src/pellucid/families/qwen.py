"""Qwen 2 and 3 (Yang et al. 2024, 2025), as Hugging Face publishes them.

The former has biases on q, k and v alone; the latter norms on q and k. In both, the last layers may see a window only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.families import decoders
from pellucid.families.config import Config
from pellucid.families.decoders import GLOBAL, LOCAL
from pellucid.families.llama import TABLE
from pellucid.families.rotary import rotary
from pellucid.families.table import Table
from pellucid.spec import BlockSpec, DecoderSpec, ModelSpec, RMSNormSpec, StackSpec

IGNORED = "attention_dropout"

# defaults of absent attributes; an explicit null may mean something else
SILENT: dict[str, dict[str, Any]] = {
    "qwen2": {"sliding_window": 4096, "num_key_value_heads": 32},
    "qwen3": {"sliding_window": 4096, "num_key_value_heads": 32, "head_dim": 128},
}


def table(spec: DecoderSpec) -> Table:
    """Llama's table, which names the norms of q and k too."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a Qwen 2 or 3 config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config({**SILENT.get(str(config.get("model_type")), {}), **config}, "qwen config", IGNORED)
    read.expect("model_type", *SILENT)
    read.expect("use_mrope", None, False)
    third = read.take("model_type", str) == "qwen3"
    context = read.count("max_position_embeddings", 32768)
    norm = RMSNormSpec(eps=read.positive("rms_norm_eps", 1e-6))
    mixer = decoders.attention(
        read,
        rotary(read, context),
        bias=read.take("attention_bias", bool, False) if third else True,
        out_bias=read.take("attention_bias", bool, False) if third else False,
        qk_norm=norm if third else None,
    )
    windowed = read.take("use_sliding_window", bool, False)
    size, first = decoders.window(read), read.take("max_window_layers", int, 28)
    if first < 0:
        raise read.refuse("max_window_layers", "is negative")
    size = size if windowed else None
    n_layers = read.layers("num_hidden_layers")
    counted = [LOCAL if size is not None and i >= first else GLOBAL for i in range(n_layers)]
    masks = {GLOBAL: decoders.causal(None), LOCAL: decoders.causal(size)}
    ffn = decoders.gated(read)
    block = {kind: BlockSpec(replace(mixer, mask=mask), ffn, norm) for kind, mask in masks.items()}
    blocks = tuple(block[kind] for kind in decoders.layer_types(read, counted, size))
    return decoders.decoder(read, architecture, StackSpec(read.count("hidden_size"), blocks, norm), context)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Qwen 2 or 3, as near to the spec as they come. Raises CheckpointError for other parts."""
    mixer, (types, size) = decoders.attentions(spec)[0], decoders.windows(spec)
    version = 2 if mixer.qk_norm is None else 3
    return {
        **decoders.attributes(spec, f"qwen{version}", f"Qwen{version}ForCausalLM"),
        **decoders.gated_attributes(spec),
        **({"attention_bias": mixer.bias} if version == 3 else {}),
        "use_sliding_window": size is not None,
        "sliding_window": size,
        "max_window_layers": [*types, LOCAL].index(LOCAL),
        "layer_types": types,
    }
