"""DistilBERT (Sanh et al. 2019), as Hugging Face publishes it: a BERT of half the depth, without types and pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families import encoders
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

# tie_weights_ is how old files say that the head is tied
IGNORED = "dropout attention_dropout qa_dropout seq_classif_dropout tie_weights_"
NORM = LayerNormSpec(1e-12)  # no attribute sets its eps
FIRST = PoolerHeadSpec(activation="relu")
SIZES = {  # BERT's names -> DistilBERT's
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}

LAYER, OURS = "distilbert.transformer.layer.#", "blocks.#"
ENCODER = (
    Row("distilbert.embeddings.word_embeddings.weight", "embed.tokens.weight"),
    Row("distilbert.embeddings.position_embeddings.weight", "embed.positions.weight"),
    *projection("distilbert.embeddings.LayerNorm", "embed.norm"),
    *projection(f"{LAYER}.attention.q_lin", f"{OURS}.attn.q"),
    *projection(f"{LAYER}.attention.k_lin", f"{OURS}.attn.k"),
    *projection(f"{LAYER}.attention.v_lin", f"{OURS}.attn.v"),
    *projection(f"{LAYER}.attention.out_lin", f"{OURS}.attn.o"),
    *projection(f"{LAYER}.sa_layer_norm", f"{OURS}.attn_norms.out"),
    *projection(f"{LAYER}.ffn.lin1", f"{OURS}.ffn.up"),
    *projection(f"{LAYER}.ffn.lin2", f"{OURS}.ffn.down"),
    *projection(f"{LAYER}.output_layer_norm", f"{OURS}.ffn_norms.out"),
)
MASKED_LM = (
    *projection("vocab_transform", "head.dense"),
    *projection("vocab_layer_norm", "head.norm"),
    Row("vocab_projector.bias", "head.bias"),
    Row("vocab_projector.weight", "head.weight"),
)
COPY = ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight")
OUT = projection("classifier", "head.out")
HEADS: dict[type[EncoderHeadSpec | None], tuple[Row, ...]] = {
    type(None): (),
    MaskedLMHeadSpec: MASKED_LM,
    ClassifierHeadSpec: (*projection("pre_classifier", "head.pooler.dense"), *OUT),
    TaggerHeadSpec: OUT,
}


def table(spec: EncoderSpec) -> Table:
    """The table for a model of this spec: one for each head. A bare one may be read from a file with another head."""
    masked = isinstance(spec.head, MaskedLMHeadSpec)
    others = (*(row.theirs for row in MASKED_LM), COPY[0], "pre_classifier.**", *encoders.TASKS)
    beside = () if spec.head is not None else others
    ignored = ("distilbert.embeddings.position_ids", *beside)
    return Table((*ENCODER, *HEADS.get(type(spec.head), ())), ignored, (COPY,) if masked else (), base="distilbert.")


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderSpec:
    """The spec of a DistilBERT config (a parsed ``config.json``).

    architecture: the class that the weights are of, such as DistilBertForMaskedLM; default: the config's, else
    DistilBertModel. Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family
    does not have.
    """
    read = Config(config, "distilbert config", IGNORED)
    read.expect("model_type", "distilbert")
    read.expect("tie_word_embeddings", True)
    read.take("sinusoidal_pos_embds", bool, False)  # how the table of positions was drawn; the file holds it
    block = encoders.block(read, NORM, called=SIZES)
    heads: encoders.Heads = {
        **encoders.text_heads(MaskedLMHeadSpec(read.activation("activation", "gelu"), NORM)),
        "Model": lambda read: None,
        "ForSequenceClassification": lambda read: ClassifierHeadSpec(encoders.n_classes(read), FIRST),
    }
    spec = EncoderSpec(
        vocab_size=read.count("vocab_size"),
        context=read.count("max_position_embeddings", 512),
        embed=EmbedSpec(LearnedSpec(), norm=NORM),
        stack=StackSpec(read.count("dim"), (block,) * read.layers("n_layers"), final_norm=None),
        head=encoders.head(read, architecture, ("DistilBert",), heads),
    )
    read.done()
    return spec


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a DistilBERT, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    need(spec, EncoderSpec, "the model")
    said = encoders.text_attributes(spec, "distilbert", "DistilBert")
    for name in ("type_vocab_size", "layer_norm_eps", encoders.UNPOOLED):
        said.pop(name, None)
    return {SIZES.get(name, name): value for name, value in said.items()}
