"""Vision Transformer (Dosovitskiy et al. 2020), as Hugging Face publishes it: an encoder of the patches of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pellucid.families import encoders
from pellucid.families.config import Config, need
from pellucid.families.table import ROW, Row, Table, Transform, projection
from pellucid.spec import (
    PRE_NORM,
    AttentionSpec,
    ClassifierHeadSpec,
    EmbedSpec,
    EncoderHeadSpec,
    EncoderSpec,
    LayerNormSpec,
    LearnedSpec,
    ModelSpec,
    PatchSpec,
    PoolerHeadSpec,
    StackSpec,
)

IGNORED = f"{encoders.IGNORED} encoder_stride"  # encoder_stride belongs to a head that reconstructs images
FIRST = PoolerHeadSpec("first", dense=False)
HEADS: encoders.Heads = {
    "Model": encoders.pooled,
    "ForImageClassification": lambda read: ClassifierHeadSpec(encoders.n_classes(read), FIRST),
}
SUFFIXES: dict[type[EncoderHeadSpec | None], str] = {
    type(None): "Model",
    PoolerHeadSpec: "Model",
    ClassifierHeadSpec: "ForImageClassification",
}
POOLER = ("vit.pooler.dense.weight", "vit.pooler.dense.bias")


def _kernel(spec: PatchSpec) -> Transform:
    """Their convolution, whose kernel is as large as its step, is our matrix."""

    def give(ours: Sequence[Tensor]) -> Tensor:
        return ours[0].unflatten(1, (spec.channels, spec.size, spec.size))

    return Transform(lambda theirs, _: [theirs.flatten(1)], give)


# a part of each layer as files name it -> as the library names it in memory since 2026, and as we do
LAYERS = {
    "layernorm_before": ("layernorm_before", "attn_norms.pre"),
    "attention.attention.query": ("attention.q_proj", "attn.q"),
    "attention.attention.key": ("attention.k_proj", "attn.k"),
    "attention.attention.value": ("attention.v_proj", "attn.v"),
    "attention.output.dense": ("attention.o_proj", "attn.o"),
    "layernorm_after": ("layernorm_after", "ffn_norms.pre"),
    "intermediate.dense": ("mlp.fc1", "ffn.up"),
    "output.dense": ("mlp.fc2", "ffn.down"),
}


def table(spec: EncoderSpec) -> Table:
    """The table for a model of this spec: its patches, and its head."""
    patches = need(spec.embed.patches, PatchSpec, "embed.patches")
    first = (
        Row("vit.embeddings.cls_token", "embed.patches.first", ROW),
        Row("vit.embeddings.position_embeddings", "embed.positions.weight", ROW),
        Row("vit.embeddings.patch_embeddings.projection.weight", "embed.patches.project.weight", _kernel(patches)),
        Row("vit.embeddings.patch_embeddings.projection.bias", "embed.patches.project.bias"),
    )
    classes = isinstance(spec.head, ClassifierHeadSpec)
    head = projection("classifier", "head.out") if classes else projection("vit.pooler.dense", "head.dense")
    last = (*projection("vit.layernorm", "final_norm"), *head)
    files = [
        row for a, (_, ours) in LAYERS.items() for row in projection(f"vit.encoder.layer.#.{a}", f"blocks.#.{ours}")
    ]
    memory = [row for _, (b, ours) in LAYERS.items() for row in projection(f"vit.layers.#.{b}", f"blocks.#.{ours}")]
    ignored = (
        "vit.embeddings.mask_token",
        *(() if isinstance(spec.head, PoolerHeadSpec) else POOLER),
        *(() if classes else encoders.TASKS),
    )
    newest = Table((*first, *memory, *last), ignored, base="vit.")
    return Table((*first, *files, *last), ignored, base="vit.", versions=(newest,))


def _square(read: Config, name: str, default: int) -> tuple[int, int]:
    """Height and width: one number, or two."""
    value = read.values.get(name, default)
    read.known.add(name)
    sides = [value, value] if type(value) is int else value
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(type(n) is int and n > 0 for n in sides)):
        raise read.refuse(name, "is no number of pixels, or two", "the config is damaged")
    return sides[0], sides[1]


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> EncoderSpec:
    """The spec of a ViT config (a parsed ``config.json``).

    architecture: the class that the weights are of, such as ViTForImageClassification; default: the config's, else
    ViTModel. Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not
    have.
    """
    read = Config(config, "vit config", IGNORED)
    read.expect("model_type", "vit")
    read.expect("pooler_act", "tanh")
    norm = LayerNormSpec(eps=read.take("layer_norm_eps", float, 1e-12))
    block = encoders.block(read, norm, PRE_NORM, bias=read.take("qkv_bias", bool, True))
    d_model = read.count("hidden_size")
    read.expect("pooler_output_size", None, d_model)
    (height, width), (down, across) = _square(read, "image_size", 224), _square(read, "patch_size", 16)
    if down != across or height % down or width % down:
        raise read.refuse("patch_size", f"is no square that fills {height} × {width} pixels")
    patches = PatchSpec(height, width, down, read.count("num_channels", 3))
    spec = EncoderSpec(
        vocab_size=0,
        context=patches.n_places,
        embed=EmbedSpec(LearnedSpec(), patches=patches),
        stack=StackSpec(d_model, (block,) * read.layers("num_hidden_layers"), norm),
        head=encoders.head(read, architecture, ("ViT",), HEADS),
    )
    read.done()
    return spec


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of a ViT, as near to the spec as the family comes. Raises CheckpointError for other parts."""
    model = need(spec, EncoderSpec, "the model")
    patches = need(model.embed.patches, PatchSpec, "embed.patches")
    square = patches.height == patches.width
    return {
        **encoders.attributes(spec, "vit", "ViT" + SUFFIXES.get(type(model.head), "Model")),
        "image_size": patches.height if square else [patches.height, patches.width],
        "patch_size": patches.size,
        "num_channels": patches.channels,
        "qkv_bias": need(model.stack.blocks[0].mixer, AttentionSpec, "stack.blocks[0].mixer").bias,
    }
