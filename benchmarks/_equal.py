"""Designs of equal size: as many parameters as the Transformer of the same depth and width of the stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from pellucid.designs import DESIGNS
from pellucid.nn.flops import count_parameters
from pellucid.spec import DecoderSpec, FFNSpec, GatedFFNSpec, RecurrentSpec

YARDSTICK = "modern"
STEP, FAR = 4, 128  # inner widths change by multiples of 4, up to 4 · 128 a block
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


def widened(spec: DecoderSpec, steps: int) -> DecoderSpec | None:
    """With cells of recurrent blocks ``steps`` times STEP wider in all, or without any, feed-forward layers.

    The steps are shared out, one block getting one more than another at most. None where no width would be left.
    """
    blocks = list(spec.stack.blocks)
    chosen = [i for i, block in enumerate(blocks) if isinstance(block.mixer, RecurrentSpec)] or list(range(len(blocks)))
    each, more = divmod(steps, len(chosen))
    for place, i in enumerate(chosen):
        by, mixer, ffn = STEP * (each + (place < more)), blocks[i].mixer, blocks[i].ffn
        if isinstance(mixer, RecurrentSpec):
            width = mixer.d_hidden + by
            mixer = replace(mixer, d_hidden=max(1, width))
        else:
            assert isinstance(ffn, FFNSpec | GatedFFNSpec)
            width = ffn.d_ff + by
            ffn = replace(ffn, d_ff=max(1, width))
        if width < STEP:
            return None
        blocks[i] = replace(blocks[i], mixer=mixer, ffn=ffn)
    return replace(spec, stack=replace(spec.stack, blocks=tuple(blocks)))


def equal(name: str) -> Callable[[int, int, int, int, int], DecoderSpec]:
    """A design like ``name``, its inner width chosen so that it has as many parameters as the Transformer, nearly."""

    def design(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> DecoderSpec:
        sizes = (vocab_size, context, n_layers, d_model, head_dim)
        target, spec = count_parameters(DESIGNS[YARDSTICK](*sizes)).total, DESIGNS[name](*sizes)

        def count(steps: int) -> int:
            wide = widened(spec, steps)
            return 0 if wide is None else count_parameters(wide).total

        steps = range(-FAR * n_layers, FAR * n_layers)
        above = bisect_left(steps, target, key=count)
        nearest = min(steps[max(0, above - 1) : above + 1], key=lambda one: abs(count(one) - target))
        found = widened(spec, nearest)
        assert found is not None
        return found

    design.__doc__ = f"{NAMES.get(name, name)}, with as many parameters as {YARDSTICK}."
    return design


def register(name: str) -> str:
    """Make the equal design known to ``pellucid.train`` in this process, under the name that is returned."""
    known = f"equal_{name}"
    DESIGNS[known] = equal(name)
    return known
