"""The few names met first that belong to no single room: ``pellucid.build`` and ``pellucid.load``."""

from __future__ import annotations

from pathlib import Path
from typing import overload

from pellucid.data.tokenizer import Tokenizer
from pellucid.errors import CheckpointError
from pellucid.families.native import TOKENIZER, load_model
from pellucid.nn.init import initialise
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder, build_model
from pellucid.spec import DecoderSpec, EncoderDecoderSpec, EncoderSpec, InitRule, ModelSpec


@overload
def build(spec: DecoderSpec, *, init: InitRule = ..., seed: int = ...) -> Decoder: ...
@overload
def build(spec: EncoderSpec, *, init: InitRule = ..., seed: int = ...) -> Encoder: ...
@overload
def build(spec: EncoderDecoderSpec, *, init: InitRule = ..., seed: int = ...) -> EncoderDecoder: ...
def build(spec: ModelSpec, *, init: InitRule = "normal", seed: int = 0) -> AnyModel:
    """A new model of this spec, its weights drawn reproducibly (the rules are in ``pellucid.nn.init``)."""
    return initialise(build_model(spec), init, seed)


def load(path: str | Path) -> AnyModel:
    """The model, with its tokenizer, in a folder that ``pellucid train`` or ``save_model`` wrote.

    In eval mode, float32. Raises CheckpointError when something is missing, damaged, or does not belong together.
    """
    folder = Path(path)
    model = load_model(folder)
    if (folder / TOKENIZER).exists():
        model.tokenizer = Tokenizer.load(folder / TOKENIZER)
        if model.tokenizer.vocab_size > model.spec.vocab_size:
            raise CheckpointError(
                f"{folder / TOKENIZER} has {model.tokenizer.vocab_size} tokens, the model {model.spec.vocab_size}",
                "restore the tokenizer that belongs to this model",
            )
    return model
