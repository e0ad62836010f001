"""What most decoders since 2023 share: attributes of their configs, both ways, and names of their weights.

RMSNorm first, rotary positions, grouped heads, a gated feed-forward layer; some layers may see a window only.
"""

from __future__ import annotations

from typing import Any

from pellucid.errors import CheckpointError
from pellucid.families.config import ACTIVATION_NAMES, Config, brief, need
from pellucid.families.rotary import rotary_attributes
from pellucid.families.table import Row, projection
from pellucid.predicates import And
from pellucid.spec import (
    AttentionSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    GatedFFNSpec,
    LMHeadSpec,
    Mask,
    ModelSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
    Window,
)

PLAIN = EmbedSpec()
LOCAL, GLOBAL = "sliding_attention", "full_attention"

# --- names of weights ------------------------------------------------------------------------------------------------

ENDS = (
    Row("model.embed_tokens.weight", "embed.tokens.weight"),
    Row("model.norm.weight", "final_norm.weight"),
    Row("lm_head.weight", "head.weight"),
)
ATTENTION = (
    *projection("model.layers.#.self_attn.q_proj", "blocks.#.attn.q"),
    *projection("model.layers.#.self_attn.k_proj", "blocks.#.attn.k"),
    *projection("model.layers.#.self_attn.v_proj", "blocks.#.attn.v"),
    *projection("model.layers.#.self_attn.o_proj", "blocks.#.attn.o"),
    Row("model.layers.#.self_attn.q_norm.weight", "blocks.#.attn.q_norm.weight"),
    Row("model.layers.#.self_attn.k_norm.weight", "blocks.#.attn.k_norm.weight"),
)
NORMS = (
    Row("model.layers.#.input_layernorm.weight", "blocks.#.attn_norms.pre.weight"),
    Row("model.layers.#.post_attention_layernorm.weight", "blocks.#.ffn_norms.pre.weight"),
)
GATED = (
    *projection("model.layers.#.mlp.gate_proj", "blocks.#.ffn.gate"),
    *projection("model.layers.#.mlp.up_proj", "blocks.#.ffn.up"),
    *projection("model.layers.#.mlp.down_proj", "blocks.#.ffn.down"),
)
IGNORED = ("model.layers.#.self_attn.rotary_emb.inv_freq",)  # follows from the config; old files carry it
COPIES = (("lm_head.weight", "model.embed_tokens.weight"),)

# --- from a config ---------------------------------------------------------------------------------------------------


def attention(read: Config, turns: RotarySpec, **parts: Any) -> AttentionSpec:
    """Attention of the sizes that a config gives; ``parts`` are the other fields of the spec."""
    n_heads = read.count("num_attention_heads")
    n_kv_heads = read.count("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise read.refuse("num_key_value_heads", f"does not divide num_attention_heads = {n_heads}")
    head_dim = read.count("head_dim", max(read.count("hidden_size") // n_heads, 1))
    return AttentionSpec(n_heads, n_kv_heads, head_dim, rotary=turns, **parts)


def gated(read: Config, activation: str = "hidden_act", default: str = "silu", bias: bool = False) -> GatedFFNSpec:
    """The feed-forward layer; ``activation`` is the attribute that names the activation."""
    return GatedFFNSpec(read.count("intermediate_size"), read.activation(activation, default), bias)


def decoder(
    read: Config,
    architecture: str | None,
    stack: StackSpec,
    context: int,
    *,
    tied: bool = False,
    embed: EmbedSpec = PLAIN,
    soft_cap: float | None = None,
) -> DecoderSpec:
    """The whole model, once its layers are read.

    tied: whether the head uses the table of tokens where the config does not say. soft_cap: of the logits.

    Raises CheckpointError for a head that does not predict tokens, and as ``Config.done`` does.
    """
    named = read.take("architectures", list, [])
    name = str(architecture or (named[0] if named else "Model"))
    if not name.endswith(("CausalLM", "LMHeadModel", "Model")):  # a bare model may be one whose head is tied
        raise CheckpointError(f"{read.where}: no head of ours is that of {brief(name)}", "load a causal language model")
    head = LMHeadSpec(read.take("tie_word_embeddings", bool, tied), soft_cap=soft_cap)
    spec = DecoderSpec(read.count("vocab_size"), context, embed, stack, head)
    read.done()
    return spec


def window(read: Config, name: str = "sliding_window") -> int | None:
    """How many tokens a query sees, itself included; None: all. Raises CheckpointError where it is no such number."""
    if read.take(name, int, 0) < 0:
        raise read.refuse(name, "is negative", "null, or how many tokens a query sees")
    return read.take(name, int, 0) or None


def causal(size: int | None) -> Mask:
    """The mask of a window, or without one."""
    return Causal() if size is None else Causal() & Window(size)


def layer_types(read: Config, counted: list[str], size: int | None) -> list[str]:
    """Which layers look at a window of ``size`` and which at everything, as the config lists them or as ``counted``."""
    types = read.take("layer_types", list, counted)
    if len(types) != len(counted) or any(each not in (LOCAL, GLOBAL) for each in types):
        raise read.refuse("layer_types", f"is not {len(counted)} times {LOCAL} or {GLOBAL}")
    if LOCAL in types and size is None:
        raise read.refuse("sliding_window", f"is no number of tokens, but layer_types has {LOCAL}")
    return types


# --- to a config: as near as the family comes; what it cannot express is found when it is read back ------------------


def attentions(spec: ModelSpec) -> list[AttentionSpec]:
    """The attention of every layer. Raises CheckpointError for a model that is no decoder, or mixes otherwise."""
    blocks = need(spec, DecoderSpec, "the model").stack.blocks
    return [need(block.mixer, AttentionSpec, f"stack.blocks[{i}].mixer") for i, block in enumerate(blocks)]


def window_of(mask: Mask) -> int | None:
    """The size of a causal mask's window."""
    return mask.b.size if isinstance(mask, And) and isinstance(mask.b, Window) else None


def windows(spec: ModelSpec) -> tuple[list[str], int | None]:
    """Which layers look at a window, and its size."""
    sizes = [window_of(each.mask) for each in attentions(spec)]
    return [GLOBAL if size is None else LOCAL for size in sizes], next((size for size in sizes if size), None)


def attributes(
    spec: ModelSpec, model_type: str, architecture: str, turns: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What all these families say of a model alike. The ids of special tokens are left to whoever saves a tokenizer.

    turns: the attributes of the rotary positions, where layers turn differently (default: those of the first layer).
    """
    mixer, model = attentions(spec)[0], need(spec, DecoderSpec, "the model")
    block = model.stack.blocks[0]
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_kv_heads,
        "head_dim": mixer.head_dim,
        "rms_norm_eps": need(block.norm, RMSNormSpec, "stack.blocks[0].norm").eps,
        "tie_word_embeddings": model.head.tied,
        **(
            rotary_attributes(need(mixer.rotary, RotarySpec, "stack.blocks[0].mixer.rotary"))
            if turns is None
            else turns
        ),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # their defaults are of other vocabularies
    }


def gated_attributes(spec: ModelSpec, activation: str = "hidden_act") -> dict[str, Any]:
    """The feed-forward layer's."""
    ffn = need(need(spec, DecoderSpec, "the model").stack.blocks[0].ffn, GatedFFNSpec, "stack.blocks[0].ffn")
    return {"intermediate_size": ffn.d_ff, activation: ACTIVATION_NAMES[ffn.activation]}


def require_even_heads(spec: ModelSpec) -> None:
    """Raise CheckpointError where heads do not divide the width: some families' readers refuse that."""
    d_model, n_heads = need(spec, DecoderSpec, "the model").d_model, attentions(spec)[0].n_heads
    if d_model % n_heads:
        raise CheckpointError(f"stack.d_model = {d_model} is no multiple of stack.blocks[0].mixer.n_heads = {n_heads}")
