"""pellucid: the Transformer, whole. One model object is trained, generates, and is looked into.

::

    import pellucid

    result = pellucid.train("book.txt", "runs/book", minutes=5)
    model = pellucid.load("runs/book")
    print(pellucid.generate(model, "Once upon a time")[0])
    with model.taps(read="blocks.*.attn.pattern") as acts:
        logits = model(ids)
    look = pellucid.look(model, "To be, or not to be")

Everything here is looked up when first used, so ``import pellucid`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pellucid.api import build, convert, load, save
    from pellucid.checkpoints.peft.read import open_adapter
    from pellucid.checkpoints.peft.write import save_adapter
    from pellucid.evaluate.texts import evaluate, logprob
    from pellucid.evaluate.vectors import embed
    from pellucid.generate.beam import Beams
    from pellucid.generate.chat import chat
    from pellucid.generate.decode import Completion, generate, stream
    from pellucid.generate.sample import Sampling
    from pellucid.generate.speculate import Speculation
    from pellucid.look.look import Look, look
    from pellucid.nn.models import Decoder
    from pellucid.spec import DecoderSpec
    from pellucid.surgery.lora import LoRA, adapt
    from pellucid.train.config import TrainOptions
    from pellucid.train.run import train
    from pellucid.verify.run import verify

_HOMES = {
    "build": "api",
    "convert": "api",
    "load": "api",
    "save": "api",
    "open_adapter": "checkpoints.peft.read",
    "save_adapter": "checkpoints.peft.write",
    "adapt": "surgery.lora",
    "LoRA": "surgery.lora",
    "embed": "evaluate.vectors",
    "logprob": "evaluate.texts",
    "chat": "generate.chat",
    "Completion": "generate.decode",
    "stream": "generate.decode",
    "Beams": "generate.beam",
    "Sampling": "generate.sample",
    "Speculation": "generate.speculate",
    "Look": "look.look",
    "Decoder": "nn.models",
    "DecoderSpec": "spec",
    "TrainOptions": "train.config",
}
_VERBS = ("evaluate", "generate", "look", "train", "verify")  # rooms that can be called: see pellucid.rooms

__all__ = [
    "Beams",
    "Completion",
    "Decoder",
    "DecoderSpec",
    "LoRA",
    "Look",
    "Sampling",
    "Speculation",
    "TrainOptions",
    "adapt",
    "build",
    "chat",
    "convert",
    "embed",
    "evaluate",
    "generate",
    "load",
    "logprob",
    "look",
    "open_adapter",
    "save",
    "save_adapter",
    "stream",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"pellucid.{_HOMES[name]}"), name)
    if name in _VERBS:
        return import_module(f"pellucid.{name}")
    raise AttributeError(f"module 'pellucid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
