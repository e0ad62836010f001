"""Gemma 1 to 3 (Gemma Team 2024a, 2024b, 2025), the models of text, as Hugging Face publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.families import decoders
from pellucid.families.config import Config, need
from pellucid.families.decoders import GLOBAL, LOCAL
from pellucid.families.rotary import base_of, rotary, rotary_attributes, rotary_parameters
from pellucid.families.table import Row, Table
from pellucid.spec import (
    PRE_NORM,
    SANDWICH_NORM,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    ModelSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
)

IGNORED = "attention_dropout cache_implementation sliding_window_pattern _sliding_window_pattern"

# defaults of absent attributes; an explicit null may mean something else
SILENT: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    },
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
}
PATTERN = {"gemma2": 2, "gemma3_text": 6}  # in files that name no layer types, every n-th layer attends globally: n
BASES = {LOCAL: 10_000.0, GLOBAL: 1_000_000.0}  # the default bases of Gemma 3's two rotations
CONTEXT = {"gemma3_text": 131_072}  # the default; that of the others is 8192

FIRST = Table(  # Gemma 1 has no norms after its branches
    rows=(*decoders.ENDS, *decoders.NORMS, *decoders.ATTENTION, *decoders.GATED),
    ignored=decoders.IGNORED,
    copies=decoders.COPIES,
    base="model.",
)
TABLE = replace(
    FIRST,
    rows=(
        *decoders.ENDS,
        *decoders.ATTENTION,
        *decoders.GATED,
        Row("model.layers.#.input_layernorm.weight", "blocks.#.attn_norms.pre.weight"),
        Row("model.layers.#.post_attention_layernorm.weight", "blocks.#.attn_norms.post.weight"),
        Row("model.layers.#.pre_feedforward_layernorm.weight", "blocks.#.ffn_norms.pre.weight"),
        Row("model.layers.#.post_feedforward_layernorm.weight", "blocks.#.ffn_norms.post.weight"),
    ),
)


def table(spec: DecoderSpec) -> Table:
    """The table for a model of this spec: Gemma 1 has fewer norms than Gemma 2 and 3."""
    return TABLE if spec.stack.blocks[0].placement.post else FIRST


def _types(read: Config, kind: str, size: int | None) -> list[str]:
    """Which layers look at a window and which at everything, as newer files list or older ones count them."""
    n_layers = read.layers("num_hidden_layers")
    if kind == "gemma":
        return [GLOBAL] * n_layers
    usual = PATTERN[kind]
    period = read.count("sliding_window_pattern", read.count("_sliding_window_pattern", usual))
    return decoders.layer_types(read, [LOCAL if (i + 1) % period else GLOBAL for i in range(n_layers)], size)


def _rotaries(read: Config, context: int, two_bases: bool) -> dict[str, RotarySpec]:
    """The rotation of each type of layer. Of two, older files call the global one ``rope_theta`` and may scale it."""
    if not two_bases:
        return dict.fromkeys((LOCAL, GLOBAL), rotary(read, context))
    if (nested := read.nested("rope_parameters")).keys() & BASES.keys():
        read.expect("rope_scaling", None)
        each = Config(nested, f"{read.where}, rope_parameters", strict=True)
        found = {
            kind: rotary(Config({"rope_parameters": each.nested(kind)}, f"{each.where}, {kind}"), context, base)
            for kind, base in BASES.items()
        }
        each.done()
        return found
    local = RotarySpec(base_of(read, "rope_local_base_freq", BASES[LOCAL]))
    return {LOCAL: local, GLOBAL: rotary(read, context, BASES[GLOBAL])}


def _cap(read: Config, name: str) -> float | None:
    return read.positive(name) if read.take(name, float, 0.0) else None


def _activation(read: Config, kind: str) -> str:
    """The attribute that names the activation; some files have two."""
    if kind != "gemma":
        read.expect("hidden_act", read.take("hidden_activation", str, "gelu_pytorch_tanh"))
        return "hidden_activation"
    read.expect("hidden_activation", None, "gelu_pytorch_tanh")
    return "hidden_act"


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of a Gemma config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    values = {**SILENT.get(str(config.get("model_type")), {}), **config}
    if (values.get("model_type"), values.get("hidden_act")) == ("gemma", "gelu"):
        values["hidden_act"] = "gelu_pytorch_tanh"  # the first files say gelu and mean its tanh form
    read = Config(values, "gemma config", IGNORED)
    read.expect("model_type", *SILENT)
    kind = read.take("model_type", str)
    read.expect("use_bidirectional_attention", None, False)
    if kind != "gemma2":  # transformers keeps the number in the config and applies it in Gemma 2 only
        read.expect("attn_logit_softcapping", None)
    if kind == "gemma":
        read.expect("final_logit_softcapping", None)
        read.expect("sliding_window", None)
    d_model = read.count("hidden_size")
    context = read.count("max_position_embeddings", CONTEXT.get(kind, 8192))
    norm = RMSNormSpec(eps=read.positive("rms_norm_eps", 1e-6), offset=1.0)
    ffn = decoders.gated(read, _activation(read, kind), "gelu_pytorch_tanh")
    size, bias = decoders.window(read), read.take("attention_bias", bool, False)
    types, turns = _types(read, kind, size), _rotaries(read, context, kind == "gemma3_text")
    mixer = decoders.attention(read, turns[GLOBAL], bias=bias, out_bias=bias)
    scalar = float(mixer.head_dim) if kind == "gemma" else read.positive("query_pre_attn_scalar", 256.0)
    mixer = replace(
        mixer,
        qk_norm=norm if kind == "gemma3_text" else None,
        scale=None if scalar == mixer.head_dim else scalar**-0.5,
        soft_cap=_cap(read, "attn_logit_softcapping"),
    )
    attention = {each: replace(mixer, rotary=turns[each]) for each in (LOCAL, GLOBAL)}
    attention[LOCAL] = replace(attention[LOCAL], mask=decoders.causal(size))
    placement = PRE_NORM if kind == "gemma" else SANDWICH_NORM
    block = {each: BlockSpec(attention[each], ffn, norm, placement) for each in (LOCAL, GLOBAL)}
    return decoders.decoder(
        read,
        architecture,
        StackSpec(d_model, tuple(block[each] for each in types), norm),
        context,
        tied=True,
        embed=EmbedSpec(scale=d_model**0.5),
        soft_cap=_cap(read, "final_logit_softcapping"),
    )


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a Gemma, as near to the spec as they come. Raises CheckpointError for other parts."""
    mixer, model = decoders.attentions(spec)[0], need(spec, DecoderSpec, "the model")
    if not model.stack.blocks[0].placement.post:
        return {
            **decoders.attributes(spec, "gemma", "GemmaForCausalLM"),
            **decoders.gated_attributes(spec),
            "attention_bias": mixer.bias,
        }
    decoders.require_even_heads(spec)
    types, size = decoders.windows(spec)
    if mixer.qk_norm is None:
        said = decoders.attributes(spec, "gemma2", "Gemma2ForCausalLM")
    else:
        said = decoders.attributes(spec, "gemma3_text", "Gemma3ForCausalLM", _two_rotaries(spec))
    return {
        **said,
        **decoders.gated_attributes(spec, "hidden_activation"),
        "attention_bias": mixer.bias,
        "query_pre_attn_scalar": mixer.head_dim if mixer.scale is None else round(mixer.scale**-2),
        "attn_logit_softcapping": mixer.soft_cap,
        "final_logit_softcapping": model.head.soft_cap,
        "sliding_window": size or 4096,  # transformers requires a number even where no layer has a window
        "layer_types": types,
    }


def _two_rotaries(spec: ModelSpec) -> dict[str, Any]:
    """The rotation of both types of layer, as old files say it where they can."""
    turns = {LOCAL: RotarySpec(BASES[LOCAL]), GLOBAL: RotarySpec(BASES[GLOBAL])}
    for i, mixer in reversed(list(enumerate(decoders.attentions(spec)))):
        kind = GLOBAL if decoders.window_of(mixer.mask) is None else LOCAL
        turns[kind] = need(mixer.rotary, RotarySpec, f"stack.blocks[{i}].mixer.rotary")
    if turns[LOCAL].scaling is not None:
        return {"rope_parameters": {kind: rotary_parameters(each) for kind, each in turns.items()}}
    return {**rotary_attributes(turns[GLOBAL]), "rope_local_base_freq": turns[LOCAL].base}
