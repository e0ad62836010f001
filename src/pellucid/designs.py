"""Model designs: functions from a few numbers to a whole spec. A design is a choice of parts; sizes are arguments."""

from __future__ import annotations

from collections.abc import Callable

from pellucid.errors import SpecError, suggest
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    GatedFFNSpec,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
)

HEAD_DIM = 64


def width(depth: int) -> int:
    """The d_model that suits a depth: 64 for each layer above two, so that shallow models stay narrow."""
    return 64 * max(2, depth - 2)


def _heads(d_model: int, head_dim: int) -> int:
    if d_model % head_dim:
        raise SpecError(f"d_model = {d_model} is no multiple of head_dim = {head_dim}", "change one of the two")
    return d_model // head_dim


def modern(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """What small models are made of today: RMSNorm first, rotary positions, normalised q and k, SwiGLU."""
    heads = _heads(d_model, head_dim)
    norm = RMSNormSpec()
    d_ff = max(64, round(8 * d_model / 3 / 64) * 64)  # as many parameters as a plain layer of 4 · d_model
    block = BlockSpec(
        AttentionSpec(heads, heads, head_dim, rotary=RotarySpec(), qk_norm=norm), GatedFFNSpec(d_ff), norm
    )
    return DecoderSpec(
        vocab_size, context, EmbedSpec(), StackSpec(d_model, (block,) * n_layers, norm), LMHeadSpec(tied=False)
    )


def classic(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """The decoder of Radford et al. 2019: LayerNorm, learned positions, biases, tanh-GELU of 4 · d_model, tied head."""
    heads = _heads(d_model, head_dim)
    norm = LayerNormSpec()
    block = BlockSpec(
        AttentionSpec(heads, heads, head_dim, bias=True, out_bias=True), FFNSpec(4 * d_model, "gelu_tanh"), norm
    )
    return DecoderSpec(vocab_size, context, EmbedSpec(LearnedSpec()), StackSpec(d_model, (block,) * n_layers, norm))


DESIGNS: dict[str, Callable[[int, int, int, int, int], DecoderSpec]] = {"modern": modern, "classic": classic}


def design(name: str) -> Callable[[int, int, int, int, int], DecoderSpec]:
    """(vocab_size, context, n_layers, d_model, head_dim) -> spec, by name. Raises SpecError with a suggestion."""
    if name not in DESIGNS:
        raise SpecError(f"there is no design {name!r}", suggest(name, DESIGNS))
    return DESIGNS[name]
