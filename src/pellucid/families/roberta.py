"""RoBERTa (Liu et al. 2019) and what was trained in other languages with its code, as Hugging Face publishes them.

The model is a BERT. Its position table begins with padding_idx + 1 rows that no token uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families import encoders
from pellucid.families.bert import encoder_rows
from pellucid.families.config import Config, need
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

PREFIXES = ("Roberta", "XLMRoberta", "Camembert")

MASKED_LM = (
    *projection("lm_head.dense", "head.dense"),
    *projection("lm_head.layer_norm", "head.norm"),
    Row("lm_head.bias", "head.bias"),
    Row("lm_head.decoder.weight", "head.weight"),
)
MASKED_LM_COPIES = (
    ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ("lm_head.decoder.bias", "lm_head.bias"),
)
PREDICTIONS = (*(row.theirs for row in MASKED_LM), *(copy for copy, _ in MASKED_LM_COPIES))
POOLER = ("roberta.pooler.dense.weight", "roberta.pooler.dense.bias")


def _table(head: tuple[Row, ...], others: tuple[str, ...], copies: tuple[tuple[str, str], ...] = ()) -> Table:
    """One head's table. ``others``: names of other heads' weights, which a pretrained file may hold beside."""
    ignored = ("roberta.embeddings.position_ids", *others)
    return Table(rows=(*encoder_rows("roberta."), *head), ignored=ignored, copies=copies, base="roberta.")


TABLES: dict[type[EncoderHeadSpec | None], Table] = {
    type(None): _table((), (*POOLER, *PREDICTIONS, *encoders.TASKS)),
    PoolerHeadSpec: _table(projection("roberta.pooler.dense", "head.dense"), (*PREDICTIONS, *encoders.TASKS)),
    MaskedLMHeadSpec: _table(MASKED_LM, POOLER, MASKED_LM_COPIES),
    ClassifierHeadSpec: _table(
        (*projection("classifier.dense", "head.pooler.dense"), *projection("classifier.out_proj", "head.out")), POOLER
    ),
    TaggerHeadSpec: _table(projection("classifier", "head.out"), POOLER),
}


def table(spec: EncoderSpec) -> Table:
    """The table for a model of this spec: one for each head."""
    return TABLES[type(spec.head)]


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderSpec:
    """The spec of a RoBERTa, XLM-RoBERTa or CamemBERT config (a parsed ``config.json``).

    architecture: the class that the weights are of, such as RobertaForMaskedLM; default: the config's, else
    RobertaModel. Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does
    not have.
    """
    read = Config(config, "roberta config", encoders.IGNORED)
    read.expect("model_type", "roberta", "xlm-roberta", "camembert")
    read.expect("is_decoder", False)
    read.expect("position_embedding_type", "absolute")
    read.expect("tie_word_embeddings", True)
    norm = LayerNormSpec(eps=read.take("layer_norm_eps", float, 1e-12))
    block = encoders.block(read, norm)
    heads = encoders.text_heads(MaskedLMHeadSpec("gelu", norm))  # whatever hidden_act is
    unused, rows = read.take("pad_token_id", int, 1) + 1, read.count("max_position_embeddings", 512)
    if not 0 <= unused < rows:
        raise read.refuse("max_position_embeddings", f"leaves no place after the {unused} before the first")
    spec = EncoderSpec(
        vocab_size=read.count("vocab_size"),
        context=rows - unused,
        embed=EmbedSpec(LearnedSpec(unused), norm=norm, n_types=read.count("type_vocab_size", 2)),
        stack=StackSpec(read.count("hidden_size"), (block,) * read.layers("num_hidden_layers"), final_norm=None),
        head=encoders.head(read, architecture, PREFIXES, heads),
    )
    read.done()
    return spec


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a RoBERTa, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    model = need(spec, EncoderSpec, "the model")
    positions = need(model.embed.positions, LearnedSpec, "embed.positions")
    return {
        **encoders.text_attributes(spec, "roberta", "Roberta"),
        "max_position_embeddings": model.context + positions.offset,
        "pad_token_id": positions.offset - 1,
    }
