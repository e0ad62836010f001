"""What BERT and those after it share: attributes of their configs, both ways, and the classes of their heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pellucid.errors import CheckpointError
from pellucid.families.config import ACTIVATION_NAMES, Config, brief, need
from pellucid.spec import (
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    ClassifierHeadSpec,
    EncoderHeadSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    MaskedLMHeadSpec,
    ModelSpec,
    NormSpec,
    Placement,
    PoolerHeadSpec,
    TaggerHeadSpec,
)

IGNORED = "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout"
TASKS = ("classifier.**", "qa_outputs.**")  # heads in a fine-tuned file that is opened as a bare encoder
UNPOOLED = "add_pooling_layer"  # a constructor argument that Hugging Face does not save; we write it when it is false
MOST_CLASSES = 2**20
LONGEST_NAME = 1000  # characters of a class's name
NUMBERED = "LABEL_{}".format  # what the library calls a class that has no name

# --- from a config ---------------------------------------------------------------------------------------------------


def block(
    read: Config,
    norm: NormSpec,
    placement: Placement = POST_NORM,
    *,
    bias: bool = True,
    activation: str = "gelu",
    called: Mapping[str, str] | None = None,
) -> BlockSpec:
    """The block of every layer.

    bias: whether q, k and v have one. activation: what it is where the config names none. called: how this family calls
    BERT's attributes.
    """
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
    width, heads, inner, act = ((called or {}).get(name, name) for name in names)
    d_model, n_heads = read.count(width), read.count(heads)
    if d_model % n_heads:
        raise read.refuse(heads, f"does not divide {width} = {d_model}", "the config is damaged")
    mixer = AttentionSpec(n_heads, n_heads, d_model // n_heads, mask=Full(), bias=bias, out_bias=True)
    ffn = FFNSpec(read.count(inner), read.activation(act, activation))
    return BlockSpec(mixer, ffn, norm, placement)


def n_classes(read: Config, least: int = 1) -> int:
    """How many the head of a class or a tagger has. Raises CheckpointError for too few."""
    n = read.count("num_labels", len(read.nested("id2label")) or 2, MOST_CLASSES)
    if n < least:
        raise read.refuse("id2label", f"is not of {least} or more classes")
    return n


Heads: TypeAlias = Mapping[
    str, Callable[[Config], EncoderHeadSpec | None]
]  # what follows the family's name -> the head


def pooled(read: Config) -> PoolerHeadSpec | None:
    """The pooler of a bare model, unless it is said to have none."""
    return PoolerHeadSpec() if read.take(UNPOOLED, bool, True) else None


def class_names(config: Mapping[str, Any], spec: ModelSpec) -> tuple[str, ...]:
    """What a config calls the classes of the model's head, in their order; () where it only numbers them."""
    head = getattr(spec, "head", None)
    n = head.n_classes if isinstance(head, ClassifierHeadSpec | TaggerHeadSpec) else 0
    listed = config.get("id2label")
    names = [listed.get(str(i)) for i in range(n)] if isinstance(listed, Mapping) else []
    known = tuple(name for name in names if isinstance(name, str) and len(name) <= LONGEST_NAME)
    return known if len(known) == n and known != tuple(map(NUMBERED, range(n))) else ()


def name_attributes(names: Sequence[str]) -> dict[str, Any]:
    """The attributes that name the classes of a head."""
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def text_heads(masked: MaskedLMHeadSpec) -> Heads:
    """The heads of a model of texts."""
    return {
        "Model": pooled,
        "ForMaskedLM": lambda read: masked,
        "ForPreTraining": lambda read: masked,
        "ForSequenceClassification": lambda read: ClassifierHeadSpec(n_classes(read)),
        "ForTokenClassification": lambda read: TaggerHeadSpec(n_classes(read, 2)),
    }


def head(read: Config, architecture: str | None, prefixes: tuple[str, ...], heads: Heads) -> EncoderHeadSpec | None:
    """The head of one of the library's classes, by default the one that the file names, else the bare model's.

    prefixes: how names of its classes begin. Raises CheckpointError for a class with another head.
    """
    named = read.take("architectures", list, [])
    name = str(architecture or (named[0] if named else f"{prefixes[0]}Model"))
    kind = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
    if kind not in heads:
        raise CheckpointError(
            f"{read.where}: no head of ours is that of {brief(name)}",
            f'known: {", ".join(prefixes[0] + each for each in heads)}; with architecture="{prefixes[0]}Model",'
            " pellucid.load gives the encoder alone",
        )
    read.take(UNPOOLED, bool, True)
    return heads[kind](read)


# --- to a config: as near as the family comes; what it cannot express is found when it is read back ------------------

SUFFIXES: dict[type[EncoderHeadSpec | None], str] = {
    type(None): "Model",
    PoolerHeadSpec: "Model",
    MaskedLMHeadSpec: "ForMaskedLM",
    ClassifierHeadSpec: "ForSequenceClassification",
    TaggerHeadSpec: "ForTokenClassification",
}


def attributes(spec: ModelSpec, model_type: str, architecture: str) -> dict[str, Any]:
    """What all these families say of a model alike. Raises CheckpointError for other parts."""
    model = need(spec, EncoderSpec, "the model")
    first = model.stack.blocks[0]
    ffn = need(first.ffn, FFNSpec, "stack.blocks[0].ffn")
    named = model.head.n_classes if isinstance(model.head, ClassifierHeadSpec | TaggerHeadSpec) else 2
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": need(first.mixer, AttentionSpec, "stack.blocks[0].mixer").n_heads,
        "intermediate_size": ffn.d_ff,
        "hidden_act": ACTIVATION_NAMES[ffn.activation],
        "layer_norm_eps": need(first.norm, LayerNormSpec, "stack.blocks[0].norm").eps,
        **name_attributes([NUMBERED(i) for i in range(named)]),
        **({UNPOOLED: False} if model.head is None else {}),
    }


def text_attributes(spec: ModelSpec, model_type: str, prefix: str) -> dict[str, Any]:
    """The same, and what models of texts say besides; ids of special tokens are left to whoever saves a tokenizer."""
    model = need(spec, EncoderSpec, "the model")
    return {
        **attributes(spec, model_type, prefix + SUFFIXES[type(model.head)]),
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context,
        "type_vocab_size": model.embed.n_types,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # their defaults are of other vocabularies
    }
