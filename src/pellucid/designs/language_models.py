"""Language models of any size: one function a design, each one idea away from ``modern``.

All have about 12 · d_model² parameters a block, as many as attention with a feed-forward layer of 4 · d_model, so that
two of them with the same depth and width may be compared. The exception is ``moe``: there a token meets as many.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pellucid.errors import SpecError
from pellucid.predicates import big_bird
from pellucid.spec import (
    CAUSAL,
    ALiBiSpec,
    AttentionSpec,
    BiasSpec,
    BlockSpec,
    BucketedBiasSpec,
    Cell,
    DecayRule,
    DecoderSpec,
    DeltaRule,
    EmbedSpec,
    FFNSpec,
    GatedDecayRule,
    GatedFFNSpec,
    KernelRule,
    LayerNormSpec,
    LearnedSpec,
    LinearAttentionSpec,
    LMHeadSpec,
    Mask,
    MixerSpec,
    MoESpec,
    PositionSpec,
    RecurrentSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
    UpdateRule,
    Window,
)

HEAD_DIM = 64
WINDOW = 256  # tokens that a windowed layer sees, or a quarter of the context where that is less
BLOCK = 64  # tokens of a block of sparse attention, or a sixteenth of the context where that is less
PERIOD = 4  # every so many blocks of a hybrid, one attends
NORM = RMSNormSpec()


def width(depth: int) -> int:
    """The d_model that suits a depth: 64 for each layer above two, so that shallow models stay narrow."""
    return 64 * max(2, depth - 2)


# --- parts that designs share ----------------------------------------------------------------------------------------


def _heads(d_model: int, head_dim: int) -> int:
    if d_model % head_dim:
        raise SpecError(f"d_model = {d_model} is no multiple of head_dim = {head_dim}", "change one of the two")
    return d_model // head_dim


def _near(x: float, step: int = 64) -> int:
    """The nearest multiple of ``step``, but not 0; matrix products like round sizes."""
    return max(1, round(x / step)) * step


def _attention(d_model: int, head_dim: int, mask: Mask = CAUSAL, *, rotary: bool = True) -> AttentionSpec:
    n = _heads(d_model, head_dim)
    return AttentionSpec(n, n, head_dim, mask, rotary=RotarySpec() if rotary else None, qk_norm=NORM)


def _linear(d_model: int, head_dim: int, rule: UpdateRule, *, rotary: bool = False, gate: bool) -> LinearAttentionSpec:
    n = _heads(d_model, head_dim)
    turned = RotarySpec() if rotary else None
    return LinearAttentionSpec(n, head_dim, rule, turned, out_norm=NORM, out_gate=gate)


def _gated(d_model: int, squares: int = 8) -> GatedFFNSpec:
    """SwiGLU of about ``squares`` · d_model² parameters; 8: as many as a plain layer of 4 · d_model."""
    return GatedFFNSpec(_near(squares * d_model / 3))


def _block(mixer: MixerSpec, d_model: int) -> BlockSpec:
    """A modern block around any mixer; the feed-forward layer is smaller where an output gate takes its share."""
    gated = isinstance(mixer, LinearAttentionSpec) and mixer.out_gate
    return BlockSpec(mixer, _gated(d_model, 7 if gated else 8), NORM)


def _model(
    vocab_size: int,
    context: int,
    d_model: int,
    blocks: tuple[BlockSpec, ...],
    *,
    positions: PositionSpec | None = None,
    bias: BiasSpec | None = None,
) -> DecoderSpec:
    stack = StackSpec(d_model, blocks, NORM, bias)
    return DecoderSpec(vocab_size, context, EmbedSpec(positions), stack, LMHeadSpec(tied=False))


def _attends(i: int, n_layers: int) -> bool:
    """Whether a hybrid's block attends: the last one does, and every fourth before it."""
    return (n_layers - 1 - i) % PERIOD == 0


# --- attention -------------------------------------------------------------------------------------------------------


def modern(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """What small models are made of today: RMSNorm first, rotary positions, normalised q and k, SwiGLU."""
    return _model(vocab_size, context, d_model, (_block(_attention(d_model, head_dim), d_model),) * n_layers)


def classic(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """The decoder of Radford et al. 2019: LayerNorm, learned positions, biases, tanh-GELU of 4 · d_model, tied head."""
    heads = _heads(d_model, head_dim)
    norm = LayerNormSpec()
    block = BlockSpec(
        AttentionSpec(heads, heads, head_dim, bias=True, out_bias=True), FFNSpec(4 * d_model, "gelu_tanh"), norm
    )
    return DecoderSpec(vocab_size, context, EmbedSpec(LearnedSpec()), StackSpec(d_model, (block,) * n_layers, norm))


def parallel(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Modern, with attention and feed-forward side by side instead of one after the other (Wang & Komatsuzaki 2021)."""
    block = replace(_block(_attention(d_model, head_dim), d_model), parallel=True)
    return _model(vocab_size, context, d_model, (block,) * n_layers)


def nope(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Modern, without any positions: only the causal mask tells order (Haviv et al. 2022)."""
    block = _block(_attention(d_model, head_dim, rotary=False), d_model)
    return _model(vocab_size, context, d_model, (block,) * n_layers)


def alibi(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Modern, with scores that fall linearly with distance instead of rotary positions (Press et al. 2021)."""
    block = _block(_attention(d_model, head_dim, rotary=False), d_model)
    return _model(vocab_size, context, d_model, (block,) * n_layers, bias=ALiBiSpec())


def t5_bias(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Modern, with a learned score a bucket of distances instead of rotary positions (Raffel et al. 2019)."""
    block = _block(_attention(d_model, head_dim, rotary=False), d_model)
    return _model(vocab_size, context, d_model, (block,) * n_layers, bias=BucketedBiasSpec())


def window(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Modern, where a token sees the last 256 only, or a quarter of the context where that is less."""
    mask = CAUSAL & Window(min(WINDOW, max(1, context // 4)))
    return _model(vocab_size, context, d_model, (_block(_attention(d_model, head_dim, mask), d_model),) * n_layers)


def sparse(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Modern, where a token sees blocks nearby, the first two, and three at random (Zaheer et al. 2020)."""
    mask = CAUSAL & big_bird(min(BLOCK, max(1, context // 16)))
    return _model(vocab_size, context, d_model, (_block(_attention(d_model, head_dim, mask), d_model),) * n_layers)


def moe(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Modern, with 8 experts of which a token is given 2; those 2 have the parameters of the one layer they replace."""
    experts = MoESpec(_gated(d_model, 4), n_experts=8, top_k=2)
    block = replace(_block(_attention(d_model, head_dim), d_model), ffn=experts)
    return _model(vocab_size, context, d_model, (block,) * n_layers)


# --- linearised attention --------------------------------------------------------------------------------------------


def linear(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Softmax replaced by a product of features, elu + 1 (Katharopoulos et al. 2020); learned positions."""
    n = _heads(d_model, head_dim)
    block = _block(LinearAttentionSpec(n, head_dim, KernelRule()), d_model)
    return _model(vocab_size, context, d_model, (block,) * n_layers, positions=LearnedSpec())


def retention(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """A state that decays at a fixed rate a head, rotary positions, gated output (Sun et al. 2023)."""
    block = _block(_linear(d_model, head_dim, DecayRule(), rotary=True, gate=True), d_model)
    return _model(vocab_size, context, d_model, (block,) * n_layers)


def gated(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """A state that decays as each token decides, channel by channel; gated output (Yang et al. 2024a)."""
    block = _block(_linear(d_model, head_dim, GatedDecayRule(), gate=True), d_model)
    return _model(vocab_size, context, d_model, (block,) * n_layers)


def delta(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """A state in which what a key stored is replaced, not added to: the delta rule (Yang et al. 2024b)."""
    block = _block(_linear(d_model, head_dim, DeltaRule(), gate=False), d_model)
    return _model(vocab_size, context, d_model, (block,) * n_layers)


def hybrid(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Three blocks with the delta rule, then one with attention, and again; the last one attends."""
    state = _block(_linear(d_model, head_dim, DeltaRule(), gate=False), d_model)
    attends = _block(_attention(d_model, head_dim), d_model)
    blocks = tuple(attends if _attends(i, n_layers) else state for i in range(n_layers))
    return _model(vocab_size, context, d_model, blocks)


# --- recurrence ------------------------------------------------------------------------------------------------------


def _recurrent(cell: Cell, d_model: int) -> BlockSpec:
    """A cell so wide that it and its projection have 12 · d_model² parameters: it is all there is in the block.

    Measured (4 × 128, 120 steps on Python's library, bits a byte): so 2.31; with a feed-forward layer, as many
    parameters, 2.31; with post-norm 2.46; without the residual stream 2.52, and without norms too 3.13.
    """
    gates = 4 if cell == "lstm" else 3  # gates · h (d + h) + h d = 12 d², solved for h / d
    ratio = (math.sqrt((gates + 1) ** 2 + 48 * gates) - (gates + 1)) / (2 * gates)
    return BlockSpec(RecurrentSpec(cell, _near(ratio * d_model, 16)), None, NORM)


def lstm(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Stacked LSTMs, each after a norm and added to the stream, so that many layers train; no attention."""
    return _model(vocab_size, context, d_model, (_recurrent("lstm", d_model),) * n_layers)


def gru(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Stacked GRUs, each after a norm and added to the stream, so that many layers train; no attention."""
    return _model(vocab_size, context, d_model, (_recurrent("gru", d_model),) * n_layers)


def lstm_attention(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int = HEAD_DIM) -> DecoderSpec:
    """Three blocks with an LSTM, then one with attention, and again; the last one attends, without any positions."""
    attends = _block(_attention(d_model, head_dim, rotary=False), d_model)
    cells = _recurrent("lstm", d_model)
    blocks = tuple(attends if _attends(i, n_layers) else cells for i in range(n_layers))
    return _model(vocab_size, context, d_model, blocks)
