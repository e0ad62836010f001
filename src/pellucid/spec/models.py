"""Whole models: what stands before and after a stack, and how stacks make an encoder, a decoder, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pellucid.errors import SpecError
from pellucid.files import read_json
from pellucid.predicates import Ahead
from pellucid.spec.blocks import Activation, StackSpec
from pellucid.spec.parts import LayerNormSpec, NormSpec, PositionSpec, SinusoidalSpec, require
from pellucid.values import Value

InitRule = Literal["normal", "fan_in", "xavier"]  # the columns of the table in nn.init


@dataclass(frozen=True)
class PatchSpec(Value):
    """An image as tokens (Dosovitskiy et al. 2021): squares of ``size`` pixels, row by row, after one learned vector.

    height, width: of the image, in pixels.
    """

    height: int
    width: int
    size: int
    channels: int = 3

    def __post_init__(self) -> None:
        sizes = f"height = {self.height}, width = {self.width}, size = {self.size}, channels = {self.channels}"
        require(min(self.height, self.width, self.size, self.channels) >= 1, self, f"{sizes}: all must be >= 1")
        ok = self.height % self.size == 0 and self.width % self.size == 0
        require(ok, self, f"squares of size = {self.size} do not fill {self.height} × {self.width} pixels")

    @property
    def n_values(self) -> int:
        """Of one patch: what its pixels hold."""
        return self.channels * self.size**2

    @property
    def n_places(self) -> int:
        """Patches of an image, and the learned vector before them."""
        return 1 + (self.height // self.size) * (self.width // self.size)


@dataclass(frozen=True)
class EmbedSpec(Value):
    """Token vectors times ``scale`` (sqrt(d_model) in the 2017 model), plus positions, then ``norm``.

    n_types: how many kinds of token there are, each with a vector that is added (which sentence of a pair; Devlin et
    al. 2018, section 3); 0: none. d_embed: all this in another width, and then a matrix to d_model (Lan et al. 2020,
    section 3.1). patches: what is read is an image, not tokens.
    """

    positions: PositionSpec | None = None
    scale: float = 1.0
    norm: NormSpec | None = None
    n_types: int = 0
    d_embed: int | None = None
    patches: PatchSpec | None = None

    def __post_init__(self) -> None:
        require(self.n_types >= 0, self, f"n_types = {self.n_types} must be >= 0")
        require(self.d_embed is None or self.d_embed >= 1, self, f"d_embed = {self.d_embed} must be >= 1")


LAYER_NORM = LayerNormSpec()

# --- heads -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LMHeadSpec(Value):
    """Logits over the vocabulary, times ``scale``; ``tied`` uses the embedding's vectors (Press & Wolf 2016)."""

    tied: bool = True
    bias: bool = False
    soft_cap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.soft_cap is None or self.soft_cap > 0, self, f"soft_cap = {self.soft_cap} must be positive")


@dataclass(frozen=True)
class MaskedLMHeadSpec(Value):
    """norm(activation(dense(x))), then logits over the vocabulary (Devlin et al. 2018, in their code)."""

    activation: Activation = "gelu"
    norm: NormSpec = LAYER_NORM
    tied: bool = True
    bias: bool = True


@dataclass(frozen=True)
class PoolerHeadSpec(Value):
    """One vector a row: the first or last token's, or the mean or maximum of all.

    dense: then activation(W x + b) (Devlin et al. 2018). normalise: then to length 1, so that a product is a cosine.
    """

    take: Literal["first", "last", "mean", "max"] = "first"
    dense: bool = True
    normalise: bool = False
    activation: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self) -> None:
        ok = self.dense or self.activation == "tanh"
        require(ok, self, f"activation = {self.activation} stands after a matrix that is not there", "dense=True")


@dataclass(frozen=True)
class ClassifierHeadSpec(Value):
    """One class a row: logits of a pooled vector. One alone is a score, such as how well two texts fit."""

    n_classes: int
    pooler: PoolerHeadSpec = PoolerHeadSpec()

    def __post_init__(self) -> None:
        require(self.n_classes >= 1, self, f"n_classes = {self.n_classes} must be >= 1")


@dataclass(frozen=True)
class TaggerHeadSpec(Value):
    """One class a token."""

    n_classes: int

    def __post_init__(self) -> None:
        require(self.n_classes >= 2, self, f"n_classes = {self.n_classes} must be >= 2")


EncoderHeadSpec: TypeAlias = MaskedLMHeadSpec | PoolerHeadSpec | ClassifierHeadSpec | TaggerHeadSpec

# --- models ----------------------------------------------------------------------------------------------------------


def _require_sizes(spec: EncoderSpec | DecoderSpec) -> None:
    patches, width = spec.embed.patches, spec.d_embed
    if patches is None:
        sizes = f"vocab_size = {spec.vocab_size}, context = {spec.context}: both must be >= 2"
        require(min(spec.vocab_size, spec.context) >= 2, spec, sizes)
    else:
        require(spec.vocab_size == 0, spec, f"vocab_size = {spec.vocab_size}, but patches are no tokens", "0")
        ok, n_places = spec.context == patches.n_places, patches.n_places
        require(ok, spec, f"context = {spec.context}, but the image has {n_places} places", f"context={n_places}")
    ok = width % 2 == 0 or not isinstance(spec.embed.positions, SinusoidalSpec)
    require(ok, spec, f"sinusoidal positions need an even width, not {width}")


@dataclass(frozen=True)
class DecoderSpec(Value):
    """A language model that reads from left to right; with blocks that have ``cross``, half of an encoder–decoder.

    context: the longest sequence, in tokens, that it is trained on.
    """

    vocab_size: int
    context: int
    embed: EmbedSpec
    stack: StackSpec
    head: LMHeadSpec = LMHeadSpec()

    def __post_init__(self) -> None:
        _require_sizes(self)
        require(self.embed.patches is None, self, "patches are read at once, by an encoder", "an EncoderSpec")
        ok = self.embed.d_embed is None or not self.head.tied
        require(ok, self, f"vectors of d_embed = {self.embed.d_embed} cannot be a head's", "head.tied=False")
        for i, block in enumerate(self.stack.blocks):
            problem = f"blocks[{i}] lets a token see later ones, so a decoder would be shown what it must predict"
            require(not block.sees_future, self, problem, "a causal mixer here, or an EncoderSpec")

    @property
    def n_layers(self) -> int:
        return len(self.stack.blocks)

    @property
    def d_model(self) -> int:
        return self.stack.d_model

    @property
    def d_embed(self) -> int:
        """Width of the token vectors."""
        return self.embed.d_embed or self.d_model

    @property
    def reads_memory(self) -> bool:
        """Whether it needs an encoder."""
        return any(block.reads_memory for block in self.stack.blocks)

    @property
    def ahead(self) -> Ahead:
        """Which tokens of a text must be read in one piece, because some layer lets them see later ones."""
        found = Ahead()
        for block in self.stack.blocks:
            found |= block.ahead or Ahead()  # a block without a bound is refused above
        return found


@dataclass(frozen=True)
class EncoderSpec(Value):
    """A model that reads a whole text at once, or an image (``embed.patches``; its vocab_size is 0).

    head: None: the states are the result.
    """

    vocab_size: int
    context: int
    embed: EmbedSpec
    stack: StackSpec
    head: EncoderHeadSpec | None = None

    def __post_init__(self) -> None:
        _require_sizes(self)
        ok = self.embed.patches is None or not isinstance(self.head, MaskedLMHeadSpec)
        require(ok, self, "an image has no tokens that a head could predict", "another head, or None")
        readers = [i for i, block in enumerate(self.stack.blocks) if block.reads_memory]
        require(not readers, self, f"blocks{readers} attend to an encoder, but this is one", "cross=None")

    @property
    def n_layers(self) -> int:
        return len(self.stack.blocks)

    @property
    def d_model(self) -> int:
        return self.stack.d_model

    @property
    def d_embed(self) -> int:
        """Width of the token vectors."""
        return self.embed.d_embed or self.d_model


@dataclass(frozen=True)
class EncoderDecoderSpec(Value):
    """An encoder that reads, and a decoder that writes while it attends to what was read (Vaswani et al. 2017).

    start_id: what the decoder reads first. shared_embedding: one table of token vectors for both sides.
    """

    encoder: EncoderSpec
    decoder: DecoderSpec
    start_id: int
    shared_embedding: bool = True

    def __post_init__(self) -> None:
        a, b = self.encoder, self.decoder
        require(a.head is None, self, "the encoder's states go to the decoder: it has no head", "encoder.head=None")
        require(a.embed.patches is None, self, "its encoder reads a text, not patches", "encoder.embed.patches=None")
        require(b.reads_memory, self, "no block of the decoder attends to the encoder", "give its blocks a cross")
        require(a.d_model == b.d_model, self, f"d_model is {a.d_model} in the encoder, {b.d_model} in the decoder")
        ok = not self.shared_embedding or a.vocab_size == b.vocab_size
        require(ok, self, f"vocabularies of {a.vocab_size} and {b.vocab_size} share no table", "shared_embedding=False")
        ok = not self.shared_embedding or a.d_embed == b.d_embed
        require(ok, self, f"vectors of {a.d_embed} and {b.d_embed} share no table", "shared_embedding=False")
        require(0 <= self.start_id < b.vocab_size, self, f"start_id = {self.start_id} is not in the vocabulary")

    @property
    def vocab_size(self) -> int:
        """Of the side that writes."""
        return self.decoder.vocab_size

    @property
    def context(self) -> int:
        """Of the side that writes."""
        return self.decoder.context

    @property
    def n_layers(self) -> int:
        return self.encoder.n_layers + self.decoder.n_layers

    @property
    def d_model(self) -> int:
        return self.decoder.d_model


ModelSpec: TypeAlias = DecoderSpec | EncoderSpec | EncoderDecoderSpec


def load_spec(path: Path) -> ModelSpec:
    """The spec in a JSON file, of whichever kind of model. Raises SpecError naming file and field."""
    value = read_json(path, SpecError)
    kinds: dict[object, type[ModelSpec]] = {kind.__name__: kind for kind in get_args(ModelSpec)}
    named = value.get("type") if isinstance(value, dict) else None
    return kinds.get(named if isinstance(named, str) else None, DecoderSpec).load(path)
