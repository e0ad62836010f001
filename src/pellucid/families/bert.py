"""BERT (Devlin et al. 2018), as Hugging Face publishes it: an encoder under one of several heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.families import encoders
from pellucid.families.config import Config
from pellucid.families.table import Row, Table, projection
from pellucid.spec import (
    ClassifierHeadSpec,
    EmbedSpec,
    EncoderHeadSpec,
    EncoderSpec,
    LayerNormSpec,
    LearnedSpec,
    MaskedLMHeadSpec,
    ModelSpec,
    PoolerHeadSpec,
    StackSpec,
    TaggerHeadSpec,
)

IGNORED = f"""{encoders.IGNORED} directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head"""


def encoder_rows(base: str) -> tuple[Row, ...]:
    """The rows of all below the head. base: how their names begin, as in "bert."."""
    layer, ours = f"{base}encoder.layer.#", "blocks.#"
    return (
        *embedding_rows(f"{base}embeddings"),
        *projection(f"{layer}.attention.self.query", f"{ours}.attn.q"),
        *projection(f"{layer}.attention.self.key", f"{ours}.attn.k"),
        *projection(f"{layer}.attention.self.value", f"{ours}.attn.v"),
        *projection(f"{layer}.attention.output.dense", f"{ours}.attn.o"),
        *projection(f"{layer}.attention.output.LayerNorm", f"{ours}.attn_norms.out"),
        *projection(f"{layer}.intermediate.dense", f"{ours}.ffn.up"),
        *projection(f"{layer}.output.dense", f"{ours}.ffn.down"),
        *projection(f"{layer}.output.LayerNorm", f"{ours}.ffn_norms.out"),
    )


def embedding_rows(theirs: str) -> tuple[Row, ...]:
    """The rows of three tables and their norm."""
    return (
        Row(f"{theirs}.word_embeddings.weight", "embed.tokens.weight"),
        Row(f"{theirs}.position_embeddings.weight", "embed.positions.weight"),
        Row(f"{theirs}.token_type_embeddings.weight", "embed.types.weight"),
        *projection(f"{theirs}.LayerNorm", "embed.norm"),
    )


ENCODER = encoder_rows("bert.")
MASKED_LM = (
    *projection("cls.predictions.transform.dense", "head.dense"),
    *projection("cls.predictions.transform.LayerNorm", "head.norm"),
    Row("cls.predictions.bias", "head.bias"),
    Row("cls.predictions.decoder.weight", "head.weight"),
)
MASKED_LM_COPIES = (
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
)

# a pretrained file also holds the head that tells from the pooled vector which of two texts comes first
NEXT_TEXT = ("cls.seq_relationship.weight", "cls.seq_relationship.bias")
POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")


def _old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _table(head: tuple[Row, ...], others: tuple[str, ...], copies: tuple[tuple[str, str], ...] = ()) -> Table:
    """One head's table. ``others``: names of other heads' weights, which a pretrained file may hold beside."""
    ignored = ("bert.embeddings.position_ids", *others, *map(_old_name, others))
    new = Table(rows=(*ENCODER, *head), ignored=ignored, copies=copies, base="bert.")
    old = replace(new, rows=tuple(replace(row, theirs=_old_name(row.theirs)) for row in new.rows))
    return replace(new, versions=(old,))


PREDICTIONS = (*(row.theirs for row in MASKED_LM), *(copy for copy, _ in MASKED_LM_COPIES))
OUT = projection("classifier", "head.out")
TABLES: dict[type[EncoderHeadSpec | None], Table] = {
    type(None): _table((), (*POOLER, *PREDICTIONS, *NEXT_TEXT, *encoders.TASKS)),
    PoolerHeadSpec: _table(projection("bert.pooler.dense", "head.dense"), (*PREDICTIONS, *NEXT_TEXT, *encoders.TASKS)),
    MaskedLMHeadSpec: _table(MASKED_LM, (*POOLER, *NEXT_TEXT), MASKED_LM_COPIES),
    ClassifierHeadSpec: _table((*projection("bert.pooler.dense", "head.pooler.dense"), *OUT), ()),
    TaggerHeadSpec: _table(OUT, POOLER),
}


def table(spec: EncoderSpec) -> Table:
    """The table for a model of this spec: one for each head, since to us their first matrix has one name."""
    return TABLES[type(spec.head)]


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderSpec:
    """The spec of a BERT config (a parsed ``config.json``).

    architecture: the class that the weights are of, such as BertForMaskedLM; default: the config's, else BertModel.
    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "bert config", IGNORED)
    read.expect("model_type", "bert")
    read.expect("is_decoder", False)
    read.expect("position_embedding_type", "absolute")
    read.expect("pooler_type", "first_token_transform")
    read.expect("tie_word_embeddings", True)
    norm = LayerNormSpec(eps=read.take("layer_norm_eps", float, 1e-12))
    block = encoders.block(read, norm)
    heads = encoders.text_heads(MaskedLMHeadSpec(read.activation("hidden_act", "gelu"), norm))
    spec = EncoderSpec(
        vocab_size=read.count("vocab_size"),
        context=read.count("max_position_embeddings", 512),
        embed=EmbedSpec(LearnedSpec(), norm=norm, n_types=read.count("type_vocab_size", 2)),
        stack=StackSpec(read.count("hidden_size"), (block,) * read.layers("num_hidden_layers"), final_norm=None),
        head=encoders.head(read, architecture, ("Bert",), heads),
    )
    read.done()
    return spec


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a BERT, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    return encoders.text_attributes(spec, "bert", "Bert")
