"""BERT (Devlin et al. 2018), as Hugging Face publishes it: an encoder under one of several heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.errors import CheckpointError, suggest
from pellucid.families.config import Config
from pellucid.families.table import Row, Table
from pellucid.spec import (
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    ClassifierHeadSpec,
    EmbedSpec,
    EncoderHeadSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    LearnedSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    StackSpec,
    TaggerHeadSpec,
)

IGNORED = """hidden_dropout_prob attention_probs_dropout_prob classifier_dropout directionality pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head"""

ENCODER = (
    Row("bert.embeddings.word_embeddings.weight", "embed.tokens.weight"),
    Row("bert.embeddings.position_embeddings.weight", "embed.positions.weight"),
    Row("bert.embeddings.token_type_embeddings.weight", "embed.types.weight"),
    Row("bert.embeddings.LayerNorm.weight", "embed.norm.weight"),
    Row("bert.embeddings.LayerNorm.bias", "embed.norm.bias"),
    Row("bert.encoder.layer.#.attention.self.query.weight", "blocks.#.attn.q.weight"),
    Row("bert.encoder.layer.#.attention.self.query.bias", "blocks.#.attn.q.bias"),
    Row("bert.encoder.layer.#.attention.self.key.weight", "blocks.#.attn.k.weight"),
    Row("bert.encoder.layer.#.attention.self.key.bias", "blocks.#.attn.k.bias"),
    Row("bert.encoder.layer.#.attention.self.value.weight", "blocks.#.attn.v.weight"),
    Row("bert.encoder.layer.#.attention.self.value.bias", "blocks.#.attn.v.bias"),
    Row("bert.encoder.layer.#.attention.output.dense.weight", "blocks.#.attn.o.weight"),
    Row("bert.encoder.layer.#.attention.output.dense.bias", "blocks.#.attn.o.bias"),
    Row("bert.encoder.layer.#.attention.output.LayerNorm.weight", "blocks.#.attn_norms.out.weight"),
    Row("bert.encoder.layer.#.attention.output.LayerNorm.bias", "blocks.#.attn_norms.out.bias"),
    Row("bert.encoder.layer.#.intermediate.dense.weight", "blocks.#.ffn.up.weight"),
    Row("bert.encoder.layer.#.intermediate.dense.bias", "blocks.#.ffn.up.bias"),
    Row("bert.encoder.layer.#.output.dense.weight", "blocks.#.ffn.down.weight"),
    Row("bert.encoder.layer.#.output.dense.bias", "blocks.#.ffn.down.bias"),
    Row("bert.encoder.layer.#.output.LayerNorm.weight", "blocks.#.ffn_norms.out.weight"),
    Row("bert.encoder.layer.#.output.LayerNorm.bias", "blocks.#.ffn_norms.out.bias"),
)

MASKED_LM = (
    Row("cls.predictions.transform.dense.weight", "head.dense.weight"),
    Row("cls.predictions.transform.dense.bias", "head.dense.bias"),
    Row("cls.predictions.transform.LayerNorm.weight", "head.norm.weight"),
    Row("cls.predictions.transform.LayerNorm.bias", "head.norm.bias"),
    Row("cls.predictions.bias", "head.bias"),
)
MASKED_LM_COPIES = (
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
)

# what else a pretrained file holds: which of two texts comes first, asked of the pooled vector
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


def _pooler(ours: str) -> tuple[Row, ...]:
    return Row(POOLER[0], f"{ours}.dense.weight"), Row(POOLER[1], f"{ours}.dense.bias")


def _classifier(ours: str) -> tuple[Row, ...]:
    return Row("classifier.weight", f"{ours}.weight"), Row("classifier.bias", f"{ours}.bias")


PREDICTIONS = (*(row.theirs for row in MASKED_LM), *(copy for copy, _ in MASKED_LM_COPIES))
TABLES: dict[type[EncoderHeadSpec | None], Table] = {
    type(None): _table((), (*POOLER, *PREDICTIONS, *NEXT_TEXT)),
    PoolerHeadSpec: _table(_pooler("head"), (*PREDICTIONS, *NEXT_TEXT)),
    MaskedLMHeadSpec: _table(MASKED_LM, (*POOLER, *NEXT_TEXT), MASKED_LM_COPIES),
    ClassifierHeadSpec: _table((*_pooler("head.pooler"), *_classifier("head.out")), ()),
    TaggerHeadSpec: _table(_classifier("head.out"), ()),
}


def table(spec: EncoderSpec) -> Table:
    """The table for a model of this spec: one for each head, since to us their first matrix has one name."""
    return TABLES[type(spec.head)]


def _n_classes(read: Config) -> int:
    named = len(read.nested("id2label")) or 2
    n_classes = read.take("num_labels", int, named)
    if n_classes < 2:
        raise read.refuse("id2label", "is not of two or more classes", "a regression has no head of ours")
    return n_classes


def _head(read: Config, architecture: str | None, norm: LayerNormSpec) -> EncoderHeadSpec:
    """The head of one of the library's classes, by default the one that the file names."""
    named = read.take("architectures", list, [])
    name = str(architecture or (named[0] if named else "BertModel"))
    if name in ("BertForMaskedLM", "BertForPreTraining"):
        return MaskedLMHeadSpec(read.activation("hidden_act", "gelu"), norm)
    if name == "BertModel":
        return PoolerHeadSpec()
    if name == "BertForSequenceClassification":
        return ClassifierHeadSpec(_n_classes(read))
    if name == "BertForTokenClassification":
        return TaggerHeadSpec(_n_classes(read))
    known = "BertModel BertForMaskedLM BertForPreTraining BertForSequenceClassification BertForTokenClassification"
    raise CheckpointError(f"{read.where}: no head of ours is that of {name}", suggest(name, known.split()))


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
    d_model, n_heads = read.take("hidden_size", int), read.take("num_attention_heads", int)
    if n_heads < 1 or d_model % n_heads:
        raise read.refuse("num_attention_heads", f"does not divide hidden_size = {d_model}", "the config is damaged")
    norm = LayerNormSpec(eps=read.take("layer_norm_eps", float, 1e-12))
    mixer = AttentionSpec(n_heads, n_heads, d_model // n_heads, mask=Full(), bias=True, out_bias=True)
    ffn = FFNSpec(read.take("intermediate_size", int), read.activation("hidden_act", "gelu"))
    block = BlockSpec(mixer, ffn, norm, POST_NORM)
    spec = EncoderSpec(
        vocab_size=read.take("vocab_size", int),
        context=read.take("max_position_embeddings", int, 512),
        embed=EmbedSpec(LearnedSpec(), norm=norm, n_types=read.take("type_vocab_size", int, 2)),
        stack=StackSpec(d_model, (block,) * read.take("num_hidden_layers", int), final_norm=None),
        head=_head(read, architecture, norm),
    )
    read.done()
    return spec
