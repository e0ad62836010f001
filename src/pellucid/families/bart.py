"""BART (Lewis et al. 2019), as Hugging Face publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families.config import ACTIVATION_NAMES, Config, named_class, need
from pellucid.families.table import ROW, Row, Table, projection
from pellucid.spec import (
    CAUSAL,
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    Mask,
    ModelSpec,
    StackSpec,
)

IGNORED = """dropout attention_dropout activation_dropout classifier_dropout classif_dropout encoder_layerdrop
    decoder_layerdrop init_std num_hidden_layers forced_bos_token_id force_bos_token_to_be_generated
    _num_labels save_step replacing_rate student_encoder_layers student_decoder_layers"""

UNUSED_ROWS = 2  # the table of positions is longer than the context by these
NORM = LayerNormSpec()  # with torch's own eps: no attribute sets it
SIDES = ("encoder", "decoder")

# --- names of weights ------------------------------------------------------------------------------------------------


def attention_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of one attention."""
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
    return tuple(row for a, b in names.items() for row in projection(f"{theirs}.{a}", f"{ours}.{b}"))


def layer_rows() -> tuple[Row, ...]:
    """The rows of all layers of both sides."""
    rows: list[Row] = []
    for side in SIDES:
        theirs, ours = f"model.{side}.layers.#", f"{side}.blocks.#"
        rows += attention_rows(f"{theirs}.self_attn", f"{ours}.attn")
        rows += projection(f"{theirs}.self_attn_layer_norm", f"{ours}.attn_norms.out")
        rows += projection(f"{theirs}.fc1", f"{ours}.ffn.up")
        rows += projection(f"{theirs}.fc2", f"{ours}.ffn.down")
        rows += projection(f"{theirs}.final_layer_norm", f"{ours}.ffn_norms.out")
    rows += attention_rows("model.decoder.layers.#.encoder_attn", "decoder.blocks.#.cross")
    rows += projection("model.decoder.layers.#.encoder_attn_layer_norm", "decoder.blocks.#.cross_norms.out")
    return tuple(rows)


SHARED = Row("model.shared.weight", "encoder.embed.tokens.weight")
BIAS = Row("final_logits_bias", "decoder.head.bias", ROW)
HEAD = Row("lm_head.weight", "decoder.head.weight")
COPIES = tuple(
    (copy, "model.shared.weight")
    for copy in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
)
TABLE = Table(
    rows=(
        SHARED,
        *(Row(f"model.{side}.embed_positions.weight", f"{side}.embed.positions.weight") for side in SIDES),
        *(row for side in SIDES for row in projection(f"model.{side}.layernorm_embedding", f"{side}.embed.norm")),
        *layer_rows(),
        BIAS,
        HEAD,
    ),
    copies=COPIES,
    base="model.",
)


def table(spec: EncoderDecoderSpec) -> Table:
    """All models of this family have one table."""
    return TABLE


# --- from a config ---------------------------------------------------------------------------------------------------


def refuse_variants(read: Config) -> None:
    """Raise CheckpointError for what some configs could ask for and no published model does."""
    read.expect("is_encoder_decoder", True)
    read.expect("is_decoder", False)
    for name in ("normalize_before", "add_final_layer_norm", "add_bias_logits"):
        read.expect(name, False)


def stack(read: Config, side: str, activation: str = "gelu") -> StackSpec:
    """The layers of one side. activation: where the config names none."""

    def attention(mask: Mask) -> AttentionSpec:
        return AttentionSpec(n_heads, n_heads, d_model // n_heads, mask=mask, bias=True, out_bias=True)

    heads, d_model = f"{side}_attention_heads", read.count("d_model")
    n_heads = read.count(heads)
    if d_model % n_heads:
        raise read.refuse(heads, f"does not divide d_model = {d_model}", "the config is damaged")
    ffn = FFNSpec(read.count(f"{side}_ffn_dim"), read.activation("activation_function", activation))
    writes = side == "decoder"
    cross = attention(Full()) if writes else None
    block = BlockSpec(attention(CAUSAL if writes else Full()), ffn, NORM, POST_NORM, cross=cross)
    return StackSpec(d_model, (block,) * read.layers(f"{side}_layers"), final_norm=None)


def scale(read: Config) -> float:
    """The factor on token vectors."""
    return read.count("d_model") ** 0.5 if read.take("scale_embedding", bool, False) else 1.0


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderDecoderSpec:
    """The spec of a BART config (a parsed ``config.json``).

    architecture: the class that the weights are of; files of BartModel have no bias of the logits. Raises
    CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "bart config", IGNORED)
    read.expect("model_type", "bart")
    read.expect("tie_word_embeddings", True)
    read.expect("extra_pos_embeddings", UNUSED_ROWS)
    read.expect("normalize_embedding", True)
    read.expect("static_position_embeddings", False)
    refuse_variants(read)
    name = named_class(read, architecture, ("BartForConditionalGeneration", "BartModel"))
    vocab_size, context = read.count("vocab_size"), read.count("max_position_embeddings", 1024)
    embed, head = EmbedSpec(LearnedSpec(UNUSED_ROWS), scale(read), NORM), LMHeadSpec(bias=name != "BartModel")
    spec = EncoderDecoderSpec(
        encoder=EncoderSpec(vocab_size, context, embed, stack(read, "encoder")),
        decoder=DecoderSpec(vocab_size, context, embed, stack(read, "decoder"), head),
        start_id=read.take("decoder_start_token_id", int, 2),
    )
    read.done()
    return spec


# --- to a config: as near as the family comes; what it cannot express is found when it is read back ------------------


def attributes(spec: ModelSpec, model_type: str, architecture: str) -> dict[str, Any]:
    """What BART and Marian say of a model alike. The ids of special tokens are left to whoever saves a tokenizer."""
    model = need(spec, EncoderDecoderSpec, "the model")
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [architecture],
        "is_encoder_decoder": True,
        "vocab_size": model.encoder.vocab_size,
        "d_model": model.d_model,
        "max_position_embeddings": model.context,
        "scale_embedding": model.encoder.embed.scale != 1.0,
        "decoder_start_token_id": model.start_id,
        # their defaults are of other vocabularies
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id")),
    }
    for side, each in (("encoder", model.encoder), ("decoder", model.decoder)):
        first = each.stack.blocks[0]
        ffn = need(first.ffn, FFNSpec, f"{side}.stack.blocks[0].ffn")
        config[f"{side}_layers"] = each.n_layers
        config[f"{side}_attention_heads"] = need(first.mixer, AttentionSpec, f"{side}.stack.blocks[0].mixer").n_heads
        config[f"{side}_ffn_dim"] = ffn.d_ff
        config["activation_function"] = ACTIVATION_NAMES[ffn.activation]
    return config


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a BART, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    model = need(spec, EncoderDecoderSpec, "the model")
    return attributes(spec, "bart", "BartForConditionalGeneration" if model.decoder.head.bias else "BartModel")
