"""The mask algebra is boolean, its lowering is the predicate, what is proved is so; and no token sees the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    EXAMPLE,
    VOCAB,
    as_encoder,
    build,
    ids,
    linear_attentions,
    masks,
    models,
    places,
    recurrences,
    specs,
    with_mask,
)
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import SpecError
from pellucid.nn.masks import dense, lower, prove
from pellucid.nn.models import Decoder, Encoder
from pellucid.predicates import (
    PREFIX,
    Ahead,
    GlobalTokens,
    NearBlocks,
    Place,
    PrefixPart,
    RandomBlocks,
    Span,
    Strided,
    Summary,
    big_bird,
    longformer,
    sparse_transformer,
    sparse_transformer_fixed,
)
from pellucid.spec import (
    Causal,
    DecoderSpec,
    Full,
    LinearAttentionSpec,
    Mask,
    Prefix,
    RecurrentSpec,
    SameSegment,
    Window,
)

few = settings(max_examples=examples(25))
Places = tuple[Tokens, Tokens]
squares = st.builds(Tokens.plain, st.just(1), st.integers(2, 6), st.integers(0, 3))
small = st.integers(0, 7)


def by_hand(mask: Mask, queries: Tokens, keys: Tokens) -> Tensor:
    """The predicate on plain numbers, one pair at a time."""
    packed = queries.seg is not None or keys.seg is not None
    (batch, n_q), n_k = queries.pos.shape, keys.pos.shape[1]

    def sees(b: int, i: int, j: int) -> bool:
        q, k = (Place(*(int(x[b, at]) for x in side.place)) for side, at in ((queries, i), (keys, j)))
        if q.pos < 0 or k.pos < 0 or (packed and q.seg != k.seg):
            return False
        return bool(mask.allow(q, k))

    return torch.tensor([[[[sees(b, i, j) for j in range(n_k)] for i in range(n_q)]] for b in range(batch)])


@given(masks, places())
@few
def test_dense_is_the_predicate(mask: Mask, at: Places) -> None:
    assert torch.equal(dense(mask, *at), by_hand(mask, *at))


@given(masks, masks, masks, places())
@few
def test_algebra(a: Mask, b: Mask, c: Mask, at: Places) -> None:
    def same(x: Mask, y: Mask) -> bool:
        return torch.equal(dense(x, *at), dense(y, *at))

    assert same(~~a, a)
    assert same(a & b, b & a) and same(a | b, b | a)
    assert same((a & b) & c, a & (b & c)) and same((a | b) | c, a | (b | c))
    assert same(~(a & b), ~a | ~b) and same(~(a | b), ~a & ~b)
    assert same(a & (b | c), (a & b) | (a & c)) and same(a | (a & b), a)
    assert same(a & Full(), a) and same(a | Full(), Full()) and same(a | ~a, Full())
    assert not dense(a & ~a, *at).any()


anywhere = st.builds(Place, small, st.integers(0, 1), st.integers(0, 1))


@given(masks, anywhere, anywhere)
@few
def test_reach_bounds_how_far_back_a_query_sees(mask: Mask, q: Place, k: Place) -> None:
    reach = mask.reach()
    if reach is not None and mask.allow(q, k):
        assert q.pos - k.pos < reach


@given(masks, anywhere, anywhere)
@settings(max_examples=examples(300))
def test_ahead_names_every_later_key_that_a_query_may_see(mask: Mask, q: Place, k: Place) -> None:
    ahead = mask.ahead()
    if ahead is not None and mask.allow(q, k) and k.pos > q.pos:
        assert k.pos < ahead.first or (ahead.marked and k.part == PREFIX)


def test_ahead_of_prefix_language_models_is_their_prefix() -> None:
    assert (Causal() | Prefix(3)).ahead() == Ahead(3, False)
    assert (Causal() | PrefixPart()).ahead() == Ahead(0, True)
    assert (Causal() | PrefixPart() | Prefix(2)).ahead() == Ahead(2, True)
    assert ((Causal() | PrefixPart()) & (Causal() | Prefix(2))).ahead() == Ahead(2, False)
    assert (Full() & Causal()).ahead() == Ahead() and (~Causal()).ahead() is None and Full().ahead() is None


@given(masks, places(), st.booleans())
@settings(max_examples=examples(100))
def test_bounds_prove_what_is_so(mask: Mask, at: Places, by_tensor: bool) -> None:
    """Of the tokens of one row as one block: on numbers, and on tensors."""
    for row_q, row_k in zip(*map(lines, at), strict=True):
        if row_q and row_k:
            pairs = [mask.allow(q, k) for q in row_q for k in row_k]
            some, every = mask.bounds(span(row_q, by_tensor), span(row_k, by_tensor))
            assert some or not any(pairs)
            assert not every or all(pairs)


def test_bounds_prove_enough() -> None:
    """Soundness alone would be satisfied by proving nothing: of blocks of 8 tokens, most are decided."""
    for mask in (Causal() & Window(16), big_bird(8), longformer(9, 8), sparse_transformer_fixed(16, 8), Strided(64)):
        decided = 0
        for q in range(0, 128, 8):
            for k in range(0, 128, 8):
                some, every = mask.bounds(Span(q, q + 7), Span(k, k + 7))
                decided += every or not some
        assert decided / 256 > 0.7, mask


@given(masks, places())
@few
def test_masks_proved_causal_are_causal(mask: Mask, at: Places) -> None:
    queries, keys = at
    ahead = keys.pos[:, None, None, :] > queries.pos[:, None, :, None]
    assert not mask.causal() or not (dense(mask, *at) & ahead).any()


def test_causal_is_found() -> None:
    causal = [Causal(), Causal() & Full(), Window(3) & Causal(), Causal() & Window(2) | Strided(2) & Causal()]
    assert all(mask.causal() for mask in [*causal, sparse_transformer(4), sparse_transformer_fixed(4, 1)])
    assert not any(mask.causal() for mask in (Full(), ~Causal(), Causal() | Prefix(2), Window(3), RandomBlocks(2, 1)))


def lines(tokens: Tokens) -> list[list[Place]]:
    """The places of each row's tokens."""
    rows = zip(*(x.tolist() for x in tokens.place), strict=True)
    return [[Place(*place) for place in zip(*row, strict=True) if place[0] >= 0] for row in rows]


def span(row: list[Place], by_tensor: bool) -> Span:
    ends = [f(x) for x in zip(*row, strict=True) for f in (min, max)]
    return Span(*(torch.tensor([x]) for x in ends)) if by_tensor else Span(*ends)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99), st.integers(0, 40))
@few
def test_random_blocks_are_as_many_as_asked_for_and_of_the_past(block: int, count: int, seed: int, query: int) -> None:
    """Of the first ``query`` + 1 blocks, or of ``among``: whole blocks, different ones, the same each time."""
    for among in (None, 8):
        mask, pool = RandomBlocks(block, count, seed, among), among or query + 1
        seen = [k for k in range(50 * block) if mask.allow(Place(query * block), Place(k))]
        assert seen == [k for k in range(50 * block) if mask.allow(Place(query * block + block - 1), Place(k))]
        assert len(seen) == min(count, pool) * block
        assert {k // block for k in seen} <= set(range(pool))


def test_random_blocks_are_spread_and_differ() -> None:
    def seen(mask: Mask) -> Tensor:
        return mask.allow(Place(torch.arange(512)[:, None]), Place(torch.arange(64)[None]))

    drawn = seen(RandomBlocks(1, 2, 0, 64))
    assert drawn.sum(1).eq(2).all() and drawn.sum(0).min() >= 5 and drawn.sum(0).max() <= 40  # 16 on average
    assert (drawn & seen(RandomBlocks(1, 2, 1, 64))).sum() < 100  # 32 by chance
    assert (drawn[1:] & drawn[:-1]).sum() < 100  # neighbours draw for themselves


def test_masks_mean_their_formula() -> None:
    four = Tokens.plain(1, 4)
    expected = {
        Causal(): [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
        Causal() & Window(2): [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]],
        Window(2): [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]],
        Causal() | Prefix(3): [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
        ~Causal(): [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]],
        SameSegment(): [[1, 1, 1, 1]] * 4,
        Strided(2): [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]],
        Summary(3, 1): [[0, 0, 1, 0]] * 4,
        GlobalTokens(1): [[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
        NearBlocks(2): [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
        NearBlocks(1, 1): [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]],
    }
    for mask, rows in expected.items():
        assert dense(mask, four, four)[0, 0].int().tolist() == rows, mask
    assert (Causal() & Window(5)).reach() == 5 and (Window(2) | Window(7)).reach() == 7 and (~Window(3)).reach() is None
    assert NearBlocks(4, 1).reach() == 8


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Window(0), "Window: size is 0"),
        (lambda: Prefix(-1), "Prefix: length is -1"),
        (lambda: Strided(0), "Strided: stride is 0"),
        (lambda: Summary(4, 5), "Summary: count is 5, stride 4"),
        (lambda: GlobalTokens(-1), "GlobalTokens: count is -1"),
        (lambda: NearBlocks(0), "NearBlocks: block is 0"),
        (lambda: NearBlocks(2, -1), "NearBlocks: distance is -1"),
        (lambda: RandomBlocks(0, 1), "RandomBlocks: block is 0"),
        (lambda: RandomBlocks(2, 0), "RandomBlocks: count is 0"),
        (lambda: RandomBlocks(2, 1, among=0), "RandomBlocks: among is 0"),
        (lambda: RandomBlocks(2, 1, seed=-1), "RandomBlocks: seed is -1"),
    ],
)
def test_impossible_masks_are_refused(make: Callable[[], Mask], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        make()


@given(masks, places() | squares.map(lambda t: (t, t)))
@settings(max_examples=examples(60))
def test_proofs_of_bounds_hold(mask: Mask, at: Places) -> None:
    queries, keys = at
    proof, allowed = prove(mask, queries, keys), dense(mask, queries, keys)
    if proof == "full":
        assert allowed.all()
    if proof == "causal":
        assert allowed.shape[-1] == allowed.shape[-2] and torch.equal(allowed, torch.ones_like(allowed).tril())
    visible = lower(mask, queries, keys)
    assert visible.proof == proof
    if proof is None:
        assert visible.allowed is not None and visible.without_keys is not None
        seen, blind = visible.allowed.expand_as(allowed), visible.without_keys[..., 0].expand(allowed.shape[:3])
        assert torch.equal(seen, allowed) and torch.equal(blind, ~allowed.any(-1))


def test_the_fast_paths_are_found() -> None:
    """Soundness alone would be satisfied by proving nothing."""
    square, step = Tokens.plain(2, 5), (Tokens.plain(2, 1, 8), Tokens.plain(2, 9))
    assert prove(Causal(), square, square) == "causal"
    assert prove(Causal() & Window(5), square, square) == "causal"
    assert prove(Causal() & Window(4), square, square) is None
    assert prove(Full() & SameSegment(), square, square) == "full"
    assert prove(Causal(), *step) == "full" and prove(Causal() & Window(9), *step) == "full"
    assert prove(Causal() & Window(8), *step) is None
    assert (
        prove(Causal(), Tokens.plain(2, 2, 7), Tokens.plain(2, 9)) is None
    )  # a rectangle: kernels align it to a corner


# --- no token sees the future ----------------------------------------------------------------------------------------


def leak(model: Decoder | Encoder, text: Tensor, t: int) -> float:
    """By how much logits up to and including t change when every later token does."""
    other = text.clone()
    other[:, t + 1 :] = (other[:, t + 1 :] + 1) % VOCAB
    with torch.no_grad():
        return (model(text)[:, : t + 1] - model(other)[:, : t + 1]).abs().max().item()


@given(models, ids(min_time=2), st.data())
@few
def test_later_tokens_change_no_earlier_logits(model: Decoder, text: Tensor, data: st.DataObject) -> None:
    assert leak(model, text, data.draw(st.integers(0, text.shape[1] - 2))) <= 1e-9


def gradient(model: Decoder, text: Tensor, t: int) -> Tensor:
    """What moves the logits at and before ``t``: (batch, time, d_model), of the vectors of all tokens."""
    with model.taps(read="embed") as acts:
        (grad,) = torch.autograd.grad(model(text)[:, : t + 1].square().sum(), acts["embed"])
    return grad


@given(models, ids(min_time=2), st.data())
@few
def test_no_gradient_flows_to_later_tokens(model: Decoder, text: Tensor, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, text.shape[1] - 2))
    grad = gradient(model, text, t)
    assert grad.isfinite().all()
    assert not grad[:, t + 1 :].any()


def test_control_gradient_flows_to_every_token_that_is_seen() -> None:
    """Not so of every model above: one that sees nobody, and adds nothing to the stream, writes a constant."""
    grad = gradient(build(EXAMPLE), torch.arange(8)[None], 3)
    assert grad[0].any(-1).tolist() == [True] * 4 + [False] * 4


@given(specs(only_attention=True), st.sampled_from([Full(), Causal() | Prefix(9), Window(3)]))
@few
def test_control_a_mask_that_looks_ahead_leaks(spec: DecoderSpec, mask: Mask) -> None:
    text = torch.arange(8)[None]
    assert leak(build(with_mask(as_encoder(spec), mask)), text, 3) > 1e-6


@given(linear_attentions(rotary=False, causal=False) | recurrences(causal=False))
@few
def test_control_a_mixer_that_looks_ahead_leaks(mixer: LinearAttentionSpec | RecurrentSpec) -> None:
    """And exactly those that say so: the others are causal in an encoder, too."""
    blocks = tuple(replace(block, mixer=mixer) for block in EXAMPLE.stack.blocks)
    model = build(replace(as_encoder(EXAMPLE), stack=replace(EXAMPLE.stack, blocks=blocks)))
    assert (leak(model, torch.arange(8)[None], 3) > 1e-6) == blocks[0].sees_future


def test_control_a_window_off_by_one_is_seen() -> None:
    """The window counts the token itself: one that does not, or counts one more, is another mask."""
    right = dense(Causal() & Window(3), Tokens.plain(1, 6), Tokens.plain(1, 6))
    assert right.sum(-1).max() == 3
    for size in (2, 4):
        assert not torch.equal(right, dense(Causal() & Window(size), Tokens.plain(1, 6), Tokens.plain(1, 6)))
