"""What the property tests draw: legal models of tiny width, masks, and rows with padding and documents in them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.nn.models import build_model
from pellucid.predicates import GlobalTokens, NearBlocks, PrefixPart, RandomBlocks, Strided, Summary
from pellucid.spec import (
    NO_NORM,
    POST_NORM,
    PRE_NORM,
    REORDERED_NORM,
    SANDWICH_NORM,
    Activation,
    ALiBiSpec,
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    BucketedBiasSpec,
    ByPartsScaling,
    Causal,
    ClassifierHeadSpec,
    DecayRule,
    DecoderSpec,
    DeltaRule,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    GatedDecayRule,
    GatedFFNSpec,
    KernelRule,
    LayerNormSpec,
    LearnedSpec,
    LinearAttentionSpec,
    LinearScaling,
    LMHeadSpec,
    Mask,
    MaskedLMHeadSpec,
    MoESpec,
    NTKScaling,
    PatchSpec,
    PoolerHeadSpec,
    Prefix,
    RecurrentSpec,
    ResidualSpec,
    RMSNormSpec,
    RotarySpec,
    SameSegment,
    SinusoidalSpec,
    StackSpec,
    TaggerHeadSpec,
    Window,
    YaRNScaling,
)

VOCAB, CONTEXT = 11, 24
S = TypeVar("S", DecoderSpec, EncoderSpec)


@contextmanager
def steady() -> Iterator[None]:
    """Type checks choose the list items they look at by ``random``, which Hypothesis wants left alone meanwhile."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


# --- masks -----------------------------------------------------------------------------------------------------------

windows = st.integers(1, 6).map(Window)
few_blocks, any_seed = st.integers(1, 3), st.integers(0, 9)
sparse = st.one_of(
    st.integers(1, 5).map(Strided),
    st.builds(lambda a, b: Summary(a + b, a), st.integers(1, 2), st.integers(0, 3)),
    st.integers(0, 3).map(GlobalTokens),
    st.builds(NearBlocks, few_blocks, st.integers(0, 1)),
    st.builds(RandomBlocks, few_blocks, st.integers(1, 2), any_seed, st.none() | st.integers(1, 4)),
)
plain = st.sampled_from([Causal(), Full(), SameSegment(), PrefixPart()]) | windows | st.integers(0, 4).map(Prefix)
leaves: st.SearchStrategy[Mask] = plain | sparse
masks: st.SearchStrategy[Mask] = st.recursive(
    leaves,
    lambda m: st.one_of(
        st.builds(lambda a, b: a & b, m, m), st.builds(lambda a, b: a | b, m, m), st.builds(lambda a: ~a, m)
    ),
    max_leaves=4,
)
causal_masks: st.SearchStrategy[Mask] = st.one_of(
    st.just(Causal()), windows.map(lambda w: Causal() & w), masks.map(lambda m: Causal() & m)
)

# --- models ----------------------------------------------------------------------------------------------------------

norms = st.one_of(
    st.builds(LayerNormSpec, bias=st.booleans()), st.builds(RMSNormSpec, offset=st.sampled_from([0.0, 1.0]))
)
scalings = st.sampled_from(
    [None, LinearScaling(2.0), NTKScaling(4.0), YaRNScaling(4.0, 8), ByPartsScaling(4.0, 8, 1.0, 4.0)]
)
rotaries = st.builds(
    RotarySpec, base=st.sampled_from([10.0, 10_000.0]), fraction=st.sampled_from([1.0, 0.5]), scaling=scalings
)
biases = st.sampled_from([None, ALiBiSpec(), BucketedBiasSpec(8, 6), BucketedBiasSpec(8, 6, both_directions=True)])
head_counts = st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 2), (2, 1), (4, 1)])  # MHA, GQA, MQA
caps = st.sampled_from([None, None, 1.5])
heads = st.builds(LMHeadSpec, st.booleans(), st.booleans(), caps, st.sampled_from([1.0, 0.5]))
activations = st.sampled_from(get_args(Activation))
masked_heads = st.builds(MaskedLMHeadSpec, activations, norms, st.booleans(), st.booleans())
poolers = st.builds(
    PoolerHeadSpec, st.sampled_from(["first", "last", "mean", "max"]), dense=st.booleans(), normalise=st.booleans()
) | st.builds(PoolerHeadSpec, activation=st.just("relu"))
classifiers = st.builds(ClassifierHeadSpec, st.integers(2, 4), poolers)
taggers = st.builds(TaggerHeadSpec, st.integers(2, 4))
ffns = st.sampled_from([FFNSpec, GatedFFNSpec]).flatmap(
    lambda kind: st.builds(kind, d_ff=st.just(12), activation=activations, bias=st.booleans())
)
residuals = st.sampled_from(
    [ResidualSpec(), ResidualSpec(), ResidualSpec(skip=0.0), ResidualSpec(1.5, 0.7), ResidualSpec(layer_scale=0.3)]
)
experts = st.builds(MoESpec, ffns, n_experts=st.integers(2, 4), top_k=st.integers(1, 2), renormalise=st.booleans())


@st.composite
def attentions(draw: st.DrawFn, mask: st.SearchStrategy[Mask], n_heads: tuple[int, int], rotary: bool) -> AttentionSpec:
    return AttentionSpec(
        *n_heads,
        head_dim=4,
        mask=draw(mask),
        rotary=draw(rotaries) if rotary else None,
        qk_norm=draw(st.none() | norms),
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        scale=draw(st.sampled_from([None, 1.0])),
        soft_cap=draw(caps),
    )


@st.composite
def linear_attentions(draw: st.DrawFn, rotary: bool, causal: bool = True) -> LinearAttentionSpec:
    rules = [KernelRule(), DecayRule(), GatedDecayRule(2, 4.0), DeltaRule()]
    rule = draw(st.sampled_from(rules)) if causal else KernelRule(causal=False)
    return LinearAttentionSpec(
        draw(st.integers(1, 3)),
        head_dim=4,
        rule=rule,
        rotary=draw(rotaries) if rotary and not isinstance(rule, KernelRule) else None,
        out_norm=draw(st.none() | norms),
        out_gate=draw(st.booleans()),
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
    )


def recurrences(causal: bool = True) -> st.SearchStrategy[RecurrentSpec]:
    cells = st.sampled_from(["lstm", "gru"])
    narrow = st.builds(RecurrentSpec, cells, st.integers(3, 6), st.just(False) if causal else st.booleans())
    fitting = [RecurrentSpec("lstm", 8, project=False), RecurrentSpec("gru", 8, project=False)]
    if not causal:
        fitting.append(RecurrentSpec("gru", 4, both_directions=True, project=False))
    return narrow | st.sampled_from(fitting)


@st.composite
def blocks(draw: st.DrawFn, attention: st.SearchStrategy[AttentionSpec], *others: st.SearchStrategy[Any]) -> BlockSpec:
    mixer = draw(st.one_of(attention, attention, *others))
    placement = draw(st.sampled_from([PRE_NORM, POST_NORM, SANDWICH_NORM, REORDERED_NORM, NO_NORM]))
    ffn = draw(st.one_of(ffns, ffns, experts, st.none()))
    parallel = draw(st.booleans()) and not placement.out and ffn is not None
    return BlockSpec(mixer, ffn, draw(norms), placement, parallel, draw(residuals))


@st.composite
def embeddings(draw: st.DrawFn, positions: str) -> EmbedSpec:
    """What stands before the blocks, with positions if they are added there."""
    layouts: list[Literal["pairs", "halves"]] = ["pairs", "halves"]
    layout = draw(st.sampled_from(layouts))
    added = {"learned": LearnedSpec(draw(st.sampled_from([0, 2]))), "sinusoidal": SinusoidalSpec(layout)}.get(positions)
    scale, n_types = draw(st.sampled_from([1.0, 8**0.5])), draw(st.sampled_from([0, 0, 2]))
    return EmbedSpec(added, scale, draw(st.none() | norms), n_types, draw(st.sampled_from([None, None, 4, 8])))


@st.composite
def specs(
    draw: st.DrawFn,
    mask: st.SearchStrategy[Mask] = causal_masks,
    only_attention: bool = False,
    sharing: bool = False,
) -> DecoderSpec:
    """A legal decoder of one to three layers, equal or each its own: any mixer, any feed-forward layer.

    ``sharing``: some of its layers certainly share weights, which otherwise they may.
    """
    embed, stack = draw(stacks(mask, only_attention=only_attention, sharing=sharing))
    with steady():
        return DecoderSpec(VOCAB, CONTEXT, embed, stack, draw(head_for(embed)))


def head_for(embed: EmbedSpec) -> st.SearchStrategy[LMHeadSpec]:
    """One with a table of its own where the vectors of tokens have another width."""
    return heads if embed.d_embed is None else heads.map(lambda head: replace(head, tied=False))


@st.composite
def encoder_specs(
    draw: st.DrawFn,
    mask: st.SearchStrategy[Mask],
    head: st.SearchStrategy[Any] = masked_heads,
    only_attention: bool = False,
) -> EncoderSpec:
    """A legal encoder, with a head that predicts at every place unless another is wanted."""
    embed, stack = draw(stacks(mask, False, only_attention))
    with steady():
        return EncoderSpec(VOCAB, CONTEXT, embed, stack, draw(head))


@st.composite
def image_specs(draw: st.DrawFn, head: st.SearchStrategy[Any]) -> EncoderSpec:
    """A legal model of images, as many places as it has."""
    embed, stack = draw(stacks(masks, False))
    patches = PatchSpec(*draw(st.sampled_from([(4, 4, 2), (2, 6, 2), (3, 2, 1)])), draw(st.integers(1, 3)))
    with steady():
        return EncoderSpec(0, patches.n_places, replace(embed, patches=patches), stack, draw(head))


SHARINGS = [(0, 0, 0), (0, 1, 0), (0, 0, 2), (0, 1, 1)]


@st.composite
def stacks(
    draw: st.DrawFn,
    mask: st.SearchStrategy[Mask],
    causal: bool = True,
    only_attention: bool = False,
    sharing: bool = False,
) -> tuple[EmbedSpec, StackSpec]:
    """Embedding and layers of a legal model."""
    positions = draw(st.sampled_from(["none", "rotary", "bias", "learned", "sinusoidal", "rotary and bias"]))
    rotary = "rotary" in positions
    others = [] if only_attention else [linear_attentions(rotary, causal), recurrences(causal)]
    one = blocks(attentions(mask, draw(head_counts), rotary), *others)
    equal = one.map(lambda b: [b] * 3)
    layers = draw(equal if sharing else st.one_of(st.lists(one, min_size=1, max_size=3), equal))
    bare = [i for i, block in enumerate(layers) if block.placement == NO_NORM]
    for i in bare[1:]:  # products of what is not normed grow by powers: after three such layers numbers end (1e188)
        layers[i] = replace(layers[i], placement=PRE_NORM)
    fitting = [s for s in SHARINGS if len(s) == len(layers) and all(layers[i] == layers[o] for i, o in enumerate(s))]
    shared = draw(st.sampled_from(fitting if sharing else [(), (), *fitting]))
    scored = "bias" in positions and any(isinstance(block.mixer, AttentionSpec) for block in layers)
    last = draw(norms) if bare else draw(st.one_of(norms, norms, st.none()))
    with steady():
        bias = draw(biases) if scored else None
        return draw(embeddings(positions)), StackSpec(8, tuple(layers), last, bias, shared)


alignments = st.sampled_from([AlignmentSpec("dot"), AlignmentSpec("general"), AlignmentSpec("additive", 5)])


@st.composite
def reading(draw: st.DrawFn, block: BlockSpec) -> BlockSpec:
    """The block, and in it attention to an encoder: before each step of a recurrence, or as a sublayer of its own."""
    if isinstance(block.mixer, RecurrentSpec) and draw(st.booleans()):
        look = draw(alignments)
        wide = 8 if look.score == "dot" else draw(st.integers(3, 6))  # dot scores compare it with the stream
        return replace(block, mixer=AttentiveRecurrentSpec(block.mixer.cell, wide, look))
    everyone = attentions(st.just(Full()), draw(head_counts), rotary=False)
    return replace(block, cross=draw(st.one_of(everyone, everyone, alignments)), parallel=False)


@st.composite
def writers(draw: st.DrawFn) -> tuple[EmbedSpec, StackSpec]:
    """Embedding and layers of which one or more attend to an encoder, in any way."""
    embed, stack = draw(stacks(causal_masks))
    layers = [draw(reading(b)) if i == 0 or draw(st.booleans()) else b for i, b in enumerate(stack.blocks)]
    alike = all(layers[i] == layers[owner] for i, owner in enumerate(stack.shared))
    with steady():
        return embed, replace(stack, blocks=tuple(layers), shared=stack.shared if alike else ())


@st.composite
def encoder_decoder_specs(draw: st.DrawFn) -> EncoderDecoderSpec:
    """A legal encoder–decoder: any encoder; any decoder of which one layer or more attends to it, in any way."""
    shared = draw(st.booleans())
    embed, stack = draw(stacks(masks, causal=False))
    embed_, stack_ = draw(writers())
    shared = shared and (embed.d_embed or 8) == (embed_.d_embed or 8)
    with steady():
        encoder = EncoderSpec(VOCAB if shared else VOCAB + 2, CONTEXT + 3, embed, stack)
        decoder = DecoderSpec(VOCAB, CONTEXT, embed_, stack_, draw(head_for(embed_)))
        return EncoderDecoderSpec(encoder, decoder, draw(st.integers(0, VOCAB - 1)), shared)


def as_encoder(spec: DecoderSpec) -> EncoderSpec:
    """The same stack, free to look ahead, with a head that predicts at every place."""
    return EncoderSpec(spec.vocab_size, spec.context, spec.embed, spec.stack, MaskedLMHeadSpec())


@steady()
def build(spec: Any, seed: int = 0) -> Any:
    """The model with weights wide enough that everything matters: norms off the identity, score buckets off zero."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(spec)
    norm_weights = {id(m.weight) for m in model.modules() if "Norm" in type(m).__name__}
    with torch.no_grad():
        for weight in model.parameters():
            drawn = torch.randn(weight.shape, generator=generator) * 0.5
            weight.copy_(drawn + weight if id(weight) in norm_weights else drawn)
    return model.double().eval()


models = specs().map(build)
encoder_decoders = encoder_decoder_specs().map(build)
# grouped heads, rotary positions, gated layers: what a test takes that needs one model and not all of them
EXAMPLE = DecoderSpec(
    VOCAB,
    CONTEXT,
    EmbedSpec(),
    StackSpec(
        8, (BlockSpec(AttentionSpec(4, 2, 4, rotary=RotarySpec()), GatedFFNSpec(12), RMSNormSpec()),) * 2, RMSNormSpec()
    ),
)


@steady()
def with_mask(spec: S, mask: Mask) -> S:
    """The same model with this mask in every block."""
    changed = tuple(
        replace(b, mixer=replace(b.mixer, mask=mask)) if isinstance(b.mixer, AttentionSpec) else b
        for b in spec.stack.blocks
    )
    return replace(spec, stack=replace(spec.stack, blocks=changed))


def close(got: Tensor, expected: Tensor) -> None:
    """Models run in float64; what is left is float32 angles, rounded at other places."""
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


# --- rows ------------------------------------------------------------------------------------------------------------


few_rows = st.integers(1, 3)


@st.composite
def ids(draw: st.DrawFn, batch: st.SearchStrategy[int] = few_rows, max_time: int = 9, min_time: int = 1) -> Tensor:
    """Token ids (batch, time)."""
    shape = draw(batch), draw(st.integers(min_time, max_time))
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))


@st.composite
def padded(draw: st.DrawFn, max_length: int = 6) -> tuple[list[Tensor], Tensor, Tensor]:
    """Rows of several lengths; the same with padding before, between and behind, (batch, time); where tokens are."""
    rows = [draw(ids(st.just(1), max_length))[0] for _ in range(draw(st.integers(1, 3)))]
    time = max(map(len, rows)) + draw(st.integers(0, 3))
    valid = torch.stack(
        [torch.tensor(draw(st.permutations([True] * len(row) + [False] * (time - len(row))))) for row in rows]
    )
    everything = torch.full((len(rows), time), VOCAB - 1)
    for i, row in enumerate(rows):
        everything[i, valid[i]] = row
    return rows, everything, valid


@st.composite
def chunks(draw: st.DrawFn, time: int) -> list[int]:
    """Lengths >= 1 that sum to ``time``."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, time - 1)), max_size=time))) if time > 1 else []
    return [b - a for a, b in zip([0, *cuts], [*cuts, time], strict=True)]


@st.composite
def places(draw: st.DrawFn) -> tuple[Tokens, Tokens]:
    """Queries and keys of one call: a plain square, a continued row, or anything at all with gaps and documents."""
    kind = draw(st.sampled_from(["square", "continued", "anything"]))
    batch, n_q = draw(st.integers(1, 2)), draw(st.integers(1, 5))

    def anything(n: int, low: int, high: int) -> Tensor:
        row = st.lists(st.integers(low, high), min_size=n, max_size=n)
        return torch.tensor([draw(row) for _ in range(batch)])

    def parted(tokens: Tokens) -> Tokens:
        return replace(tokens, part=anything(tokens.pos.shape[1], 0, 1)) if draw(st.booleans()) else tokens

    if kind == "square":
        tokens = parted(Tokens.plain(batch, n_q, draw(st.sampled_from([0, 3]))))
        return tokens, tokens
    if kind == "continued":
        start = draw(st.integers(0, 5))
        return parted(Tokens.plain(batch, n_q, start)), parted(Tokens.plain(batch, start + n_q))
    n_k = draw(st.integers(1, 7))
    packed = draw(st.booleans())
    q_seg, k_seg = (anything(n_q, 0, 2), anything(n_k, 0, 2)) if packed else (None, None)
    return parted(Tokens(anything(n_q, -1, 7), q_seg)), parted(Tokens(anything(n_k, -1, 7), k_seg))
