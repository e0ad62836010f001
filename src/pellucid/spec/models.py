"""Whole models: what stands before and after a stack, and how stacks make an encoder, a decoder, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pellucid.errors import SpecError
from pellucid.files import read_json
from pellucid.predicates import Ahead
from pellucid.spec.blocks import StackSpec
from pellucid.spec.heads import TIED_HEAD, EncoderHeadSpec, LMHeadSpec, MaskedLMHeadSpec
from pellucid.spec.parts import NormSpec, PositionSpec, SinusoidalSpec, require
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
        """How many values the pixels of one patch hold."""
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

    def parameters(self, vocab_size: int, context: int, d_model: int) -> int:
        """Trained values of all that stands before the blocks, its norm excepted."""
        rows = vocab_size + self.n_types + (0 if self.positions is None else self.positions.rows(context))
        rows += 0 if self.patches is None else self.patches.n_values + 2  # a bias, and the vector before them
        return rows * (self.d_embed or d_model) + (0 if self.d_embed is None else (self.d_embed + 1) * d_model)

    def flops(self, time: int, d_model: int) -> int:
        """FLOPs of patches and of a factorised table for ``time`` tokens; looking up a vector counts as none."""
        wider = 0 if self.d_embed is None else 2 * time * self.d_embed * d_model
        if self.patches is None:
            return wider
        return wider + 2 * (time - 1) * self.patches.n_values * (self.d_embed or d_model)


@dataclass(frozen=True)
class StackModelSpec(Value, abstract=True):
    """What a decoder and an encoder have in common: vectors of what is read, and one stack of blocks.

    context: the longest sequence, in tokens, that it is trained on.
    """

    vocab_size: int
    context: int
    embed: EmbedSpec
    stack: StackSpec

    def __post_init__(self) -> None:
        patches, width = self.embed.patches, self.d_embed
        if patches is None:
            sizes = f"vocab_size = {self.vocab_size}, context = {self.context}: both must be >= 2"
            require(min(self.vocab_size, self.context) >= 2, self, sizes)
        else:
            require(self.vocab_size == 0, self, f"vocab_size = {self.vocab_size}, but patches are no tokens", "0")
            ok, n_places = self.context == patches.n_places, patches.n_places
            require(ok, self, f"context = {self.context}, but the image has {n_places} places", f"context={n_places}")
        ok = width % 2 == 0 or not isinstance(self.embed.positions, SinusoidalSpec)
        require(ok, self, f"sinusoidal positions need an even width, not {width}")

    @property
    def n_layers(self) -> int:
        """Blocks, one after the other."""
        return len(self.stack.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.stack.d_model

    @property
    def d_embed(self) -> int:
        """Width of the token vectors."""
        return self.embed.d_embed or self.d_model

    @property
    def reads_memory(self) -> bool:
        """Whether it needs an encoder."""
        return any(block.reads_memory for block in self.stack.blocks)


@dataclass(frozen=True)
class DecoderSpec(StackModelSpec):
    """A language model that reads from left to right; with blocks that have ``cross``, half of an encoder–decoder."""

    head: LMHeadSpec = TIED_HEAD

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.embed.patches is None, self, "patches are read at once, by an encoder", "an EncoderSpec")
        ok = self.embed.d_embed is None or not self.head.tied
        require(ok, self, f"vectors of d_embed = {self.embed.d_embed} cannot be a head's", "head.tied=False")
        for i, block in enumerate(self.stack.blocks):
            problem = f"blocks[{i}] lets a token see later ones, so a decoder would be shown what it must predict"
            require(not block.sees_future, self, problem, "a causal mixer here, or an EncoderSpec")

    @property
    def ahead(self) -> Ahead:
        """Which tokens of a text must be read in one piece, because some layer lets them see later ones."""
        found = Ahead()
        for block in self.stack.blocks:
            found |= block.ahead or Ahead()  # a block without a bound is refused above
        return found

    @property
    def asks_part(self) -> bool:
        """Whether some layer must be told which tokens are a prefix."""
        return any(block.mixer.asks_part for block in self.stack.blocks)


@dataclass(frozen=True)
class EncoderSpec(StackModelSpec):
    """A model that reads a whole text at once, or an image (``embed.patches``; its vocab_size is 0).

    head: None: the states are the result.
    """

    head: EncoderHeadSpec | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.embed.patches is None or not isinstance(self.head, MaskedLMHeadSpec)
        require(ok, self, "an image has no tokens that a head could predict", "another head, or None")
        readers = [i for i, block in enumerate(self.stack.blocks) if block.reads_memory]
        require(not readers, self, f"blocks{readers} attend to an encoder, but this is one", "cross=None")


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
        """Entries of the vocabulary of the decoder."""
        return self.decoder.vocab_size

    @property
    def context(self) -> int:
        """Tokens that the decoder is made for."""
        return self.decoder.context

    @property
    def n_layers(self) -> int:
        """Blocks of both sides together."""
        return self.encoder.n_layers + self.decoder.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream, the same on both sides."""
        return self.decoder.d_model


ModelSpec: TypeAlias = DecoderSpec | EncoderSpec | EncoderDecoderSpec


def load_spec(path: Path) -> ModelSpec:
    """The spec in a JSON file, of whichever kind of model. Raises SpecError naming file and field."""
    value = read_json(path, SpecError)
    kinds: dict[object, type[ModelSpec]] = {kind.__name__: kind for kind in get_args(ModelSpec)}
    named = value.get("type") if isinstance(value, dict) else None
    return kinds.get(named if isinstance(named, str) else None, DecoderSpec).load(path)
