"""The few names met first that belong to no single room: ``pellucid.build`` and ``pellucid.load``."""

from __future__ import annotations

from pathlib import Path

from pellucid.data.tokenizer import Tokenizer
from pellucid.families.native import TOKENIZER, load_model
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.spec import DecoderSpec, InitRule


def build(spec: DecoderSpec, *, init: InitRule = "normal", seed: int = 0) -> Decoder:
    """A new model of this spec, its weights drawn reproducibly (the rules are in ``pellucid.nn.init``)."""
    return initialise(Decoder(spec), init, seed)


def load(path: str | Path) -> Decoder:
    """The model, with its tokenizer, in a folder that ``pellucid train`` wrote (a finished run or a checkpoint).

    In eval mode, float32. Raises CheckpointError when something is missing, damaged, or does not belong together.
    """
    folder = Path(path)
    model = load_model(folder)
    if (folder / TOKENIZER).exists():
        model.tokenizer = Tokenizer.load(folder / TOKENIZER)
        if model.tokenizer.vocab_size > model.spec.vocab_size:
            from pellucid.errors import CheckpointError

            raise CheckpointError(
                f"{folder / TOKENIZER} has {model.tokenizer.vocab_size} tokens, the model {model.spec.vocab_size}",
                "restore the tokenizer that belongs to this model",
            )
    return model
