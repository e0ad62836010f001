"""ALBERT (Lan et al. 2019), as Hugging Face publishes it: narrow token vectors, and layers that share weights.

Layers stand in groups. A group's ``inner_group_num`` layers run one after the other, and a group is repeated
num_hidden_layers / num_hidden_groups times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pellucid.errors import CheckpointError
from pellucid.families import encoders
from pellucid.families.bert import embedding_rows
from pellucid.families.config import DEEPEST, Config, need
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

IGNORED = f"{encoders.IGNORED} classifier_dropout_prob down_scale_factor gap_size net_structure_type layers_to_keep"

MASKED_LM = (
    *projection("predictions.dense", "head.dense"),
    *projection("predictions.LayerNorm", "head.norm"),
    Row("predictions.bias", "head.bias"),
    Row("predictions.decoder.weight", "head.weight"),
)
MASKED_LM_COPIES = (
    ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    ("predictions.decoder.bias", "predictions.bias"),
)
PREDICTIONS = (*(row.theirs for row in MASKED_LM), *(copy for copy, _ in MASKED_LM_COPIES))
ORDER = (
    "sop_classifier.classifier.weight",
    "sop_classifier.classifier.bias",
)  # the head that tells which of two texts comes first
POOLER = ("albert.pooler.weight", "albert.pooler.bias")
OUT = projection("classifier", "head.out")
HEADS: dict[
    type[EncoderHeadSpec | None], tuple[tuple[Row, ...], tuple[str, ...]]
] = {  # rows, and names that may stand beside them
    type(None): ((), (*POOLER, *PREDICTIONS, *ORDER, *encoders.TASKS)),
    PoolerHeadSpec: (projection("albert.pooler", "head.dense"), (*PREDICTIONS, *ORDER, *encoders.TASKS)),
    MaskedLMHeadSpec: (MASKED_LM, (*POOLER, *ORDER)),
    ClassifierHeadSpec: ((*projection("albert.pooler", "head.pooler.dense"), *OUT), ()),
    TaggerHeadSpec: (OUT, POOLER),
}


def sharing(n_layers: int, n_groups: int, inner: int) -> tuple[int, ...]:
    """For each of our layers the first one with its weights; empty where none is there twice."""
    groups = [int(i / (n_layers / n_groups)) for i in range(n_layers)]
    owners = tuple(groups.index(group) * inner + j for group in groups for j in range(inner))
    return () if len(set(owners)) == len(owners) else owners


def groups_of(stack: StackSpec) -> tuple[int, int, int]:
    """Layers, groups, and layers of a group: the way back. Raises CheckpointError for weights shared otherwise."""
    n, distinct = len(stack.blocks), len(set(stack.owners))
    for inner in range(1, distinct + 1):
        if n % inner == 0 and distinct % inner == 0:
            sizes = n // inner, distinct // inner, inner
            if sharing(*sizes) == stack.shared:
                return sizes
    raise CheckpointError(f"stack.shared = {stack.shared} (there: groups of layers)")


def _layer_rows(stack: StackSpec) -> Iterator[Row]:
    _, _, inner = groups_of(stack)
    for number, owner in enumerate(sorted(set(stack.owners))):
        group, j = divmod(number, inner)
        theirs, ours = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{j}", f"blocks.{owner}"
        yield from projection(f"{theirs}.attention.query", f"{ours}.attn.q")
        yield from projection(f"{theirs}.attention.key", f"{ours}.attn.k")
        yield from projection(f"{theirs}.attention.value", f"{ours}.attn.v")
        yield from projection(f"{theirs}.attention.dense", f"{ours}.attn.o")
        yield from projection(f"{theirs}.attention.LayerNorm", f"{ours}.attn_norms.out")
        yield from projection(f"{theirs}.ffn", f"{ours}.ffn.up")
        yield from projection(f"{theirs}.ffn_output", f"{ours}.ffn.down")
        yield from projection(f"{theirs}.full_layer_layer_norm", f"{ours}.ffn_norms.out")


def table(spec: EncoderSpec) -> Table:
    """The table for a model of this spec: its layers' groups, and its head."""
    head, others = HEADS[type(spec.head)]
    rows = (
        *embedding_rows("albert.embeddings"),
        *projection("albert.encoder.embedding_hidden_mapping_in", "embed.project"),
        *_layer_rows(spec.stack),
        *head,
    )
    copies = MASKED_LM_COPIES if isinstance(spec.head, MaskedLMHeadSpec) else ()
    return Table(rows, ("albert.embeddings.position_ids", *others), copies, base="albert.")


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderSpec:
    """The spec of an ALBERT config (a parsed ``config.json``).

    architecture: the class that the weights are of, such as AlbertForMaskedLM; default: the config's, else AlbertModel.
    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "albert config", IGNORED)
    read.expect("model_type", "albert")
    read.expect("is_decoder", False)
    read.expect("position_embedding_type", "absolute")
    read.expect("tie_word_embeddings", True)
    read.expect("num_memory_blocks", 0)
    norm = LayerNormSpec(eps=read.take("layer_norm_eps", float, 1e-12))
    block = encoders.block(read, norm, activation="gelu_new")
    n_layers, inner = read.layers("num_hidden_layers"), read.count("inner_group_num", 1)
    n_groups = read.count("num_hidden_groups", 1)
    if n_groups > n_layers:
        raise read.refuse("num_hidden_groups", f"is more than num_hidden_layers = {n_layers}", "the config is damaged")
    if n_layers * inner > DEEPEST:
        raise read.refuse("inner_group_num", f"makes more than {DEEPEST} layers", "the config is damaged")
    masked = MaskedLMHeadSpec(read.activation("hidden_act", "gelu_new"), norm)
    embed = EmbedSpec(
        LearnedSpec(), norm=norm, n_types=read.count("type_vocab_size", 2), d_embed=read.count("embedding_size", 128)
    )
    blocks, shared = (block,) * (n_layers * inner), sharing(n_layers, n_groups, inner)
    spec = EncoderSpec(
        vocab_size=read.count("vocab_size"),
        context=read.count("max_position_embeddings", 512),
        embed=embed,
        stack=StackSpec(read.count("hidden_size"), blocks, final_norm=None, shared=shared),
        head=encoders.head(read, architecture, ("Albert",), encoders.text_heads(masked)),
    )
    read.done()
    return spec


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of an ALBERT, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    model = need(spec, EncoderSpec, "the model")
    n_layers, n_groups, inner = groups_of(model.stack)
    return {
        **encoders.text_attributes(spec, "albert", "Albert"),
        "embedding_size": need(model.embed.d_embed, int, "embed.d_embed"),
        "num_hidden_layers": n_layers,
        "num_hidden_groups": n_groups,
        "inner_group_num": inner,
    }
