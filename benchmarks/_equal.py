"""Designs of equal size: as many parameters as the Transformer of the same depth and width of the stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pellucid.designs import DESIGNS
from pellucid.nn.flops import count_parameters
from pellucid.spec import BlockSpec, DecoderSpec, FFNSpec, GatedFFNSpec, RecurrentSpec

YARDSTICK = "modern"
STEP, FAR = 8, 64  # inner widths are tried in multiples of 8, which matrix products like, up to 8 · 64 off
NAMES = {  # design: what it is called in tables
    "modern": "Transformer",
    "lstm": "LSTM",
    "gru": "GRU",
    "lstm_attention": "LSTM + attention",
    "linear": "linear attention",
    "retention": "retention",
    "delta": "delta rule",
}


@dataclass(frozen=True)
class Size:
    """Of the models of speed and text."""

    n_layers: int = 4
    d_model: int = 256
    vocab_size: int = 2048
    head_dim: int = 64
    context: int = 256  # of text


def widened(spec: DecoderSpec, by: int) -> DecoderSpec | None:
    """With the cells of recurrent blocks ``by`` wider, or without any, the feed-forward layers; None below a width."""
    recurs = any(isinstance(block.mixer, RecurrentSpec) for block in spec.stack.blocks)
    blocks: list[BlockSpec] = []
    for block in spec.stack.blocks:
        mixer, ffn = block.mixer, block.ffn
        if isinstance(mixer, RecurrentSpec):
            if mixer.d_hidden + by < STEP:
                return None
            mixer = replace(mixer, d_hidden=mixer.d_hidden + by)
        elif not recurs and isinstance(ffn, FFNSpec | GatedFFNSpec):
            if ffn.d_ff + by < STEP:
                return None
            ffn = replace(ffn, d_ff=ffn.d_ff + by)
        blocks.append(replace(block, mixer=mixer, ffn=ffn))
    return replace(spec, stack=replace(spec.stack, blocks=tuple(blocks)))


def equal(name: str) -> Callable[[int, int, int, int, int], DecoderSpec]:
    """A design like ``name``, its inner width chosen so that it has as many parameters as the Transformer, nearly."""

    def design(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> DecoderSpec:
        sizes = (vocab_size, context, n_layers, d_model, head_dim)
        target, spec = count_parameters(DESIGNS[YARDSTICK](*sizes)).total, DESIGNS[name](*sizes)
        tried = [one for by in range(-FAR * STEP, FAR * STEP + 1, STEP) if (one := widened(spec, by)) is not None]
        return min(tried, key=lambda one: abs(count_parameters(one).total - target))

    design.__doc__ = f"{NAMES.get(name, name)}, with as many parameters as {YARDSTICK}."
    return design


def register(name: str) -> str:
    """Make the equal design known to ``pellucid.train`` in this process, under the name that is returned."""
    known = f"equal_{name}"
    DESIGNS[known] = equal(name)
    return known
