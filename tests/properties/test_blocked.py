"""Sparse attention: layouts hold exactly what the mask allows, nothing is ever n², each paper's pattern is its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from some import some_of
from strategies import EXAMPLE as SMALL
from strategies import build, masks, places, with_mask
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pellucid.batch import Tokens
from pellucid.nn.block_mask import block_mask
from pellucid.nn.flops import visible_pairs
from pellucid.nn.kernels import attend, blocked, choose, kernel_for, reference, sdpa
from pellucid.nn.kernels.blocked import backward, forward
from pellucid.nn.layout import FULL, NOBODY, Layout, classify, make_layout
from pellucid.nn.masks import Visible, dense, lower
from pellucid.predicates import Place, big_bird, longformer, sparse_transformer, sparse_transformer_fixed
from pellucid.spec import AttentionSpec, Causal, Full, Mask, Prefix, Window

few = settings(max_examples=examples(25))
Places = tuple[Tokens, Tokens]

# --- layouts ----------------------------------------------------------------------------------------------------------


def spread_out(layout: Layout, n_q: int, n_k: int) -> Tensor:
    """The layout as a dense mask, pair of blocks by pair of blocks."""
    (down, across), size = layout.n_blocks, layout.block
    rows = layout.total // (down * across)
    allowed = torch.zeros(rows, down * size, across * size, dtype=torch.bool)
    for row, first, count, width, begin in layout.groups.tolist():
        for i, q in enumerate(layout.order[first : first + count].tolist()):
            for k, kind in layout.pairs[:, begin + i * width : begin + (i + 1) * width].T.tolist():
                allowed[max(row, 0), q * size : (q + 1) * size, k * size : (k + 1) * size] |= layout.patterns[kind]
    return allowed[:, None, :n_q, :n_k]


@given(masks, places(), st.integers(1, 4))
@settings(max_examples=examples(100))
def test_a_layout_is_the_mask(mask: Mask, at: Places, block: int) -> None:
    """No visible pair is dropped and no hidden one shown; blocks without any are not listed."""
    allowed, layout = dense(mask, *at), make_layout(mask, *at, block)
    assert torch.equal(spread_out(layout, *allowed.shape[2:]), allowed)
    nobody = torch.zeros(len(allowed), 1, allowed.shape[2], 1).bool()
    found = nobody if layout.without_keys is None else layout.without_keys
    assert torch.equal(found, ~allowed.any(-1, keepdim=True))
    missing = [-n % block for n in allowed.shape[2:]]
    blocks = torch.nn.functional.pad(allowed, (0, missing[1], 0, missing[0])).unflatten(3, (-1, block))
    holding = blocks.unflatten(2, (-1, block)).any(5).any(3)[:, 0]
    assert layout.live == int(holding.sum()) and layout.total == holding.numel()
    assert torch.equal(layout.grid(lambda kinds: kinds != NOBODY), holding)
    some, every = classify(mask, *at, block)
    assert not (holding & ~some).any() and not (every & ~layout.grid(lambda kinds: kinds == FULL)).any()


@given(masks, places())
@few
def test_flex_attention_gets_the_same_mask(mask: Mask, at: Places) -> None:
    given_, allowed = block_mask(mask, *at, make_layout(mask, *at)), dense(mask, *at)
    rows, heads, down, across = (torch.arange(n) for n in (len(allowed), 1, *allowed.shape[2:]))
    asked = given_.mask_mod(rows[:, None, None, None], heads, down[:, None], across)
    assert torch.equal(asked.expand_as(allowed), allowed)
    assert torch.equal(given_.to_dense()[:, 0, 0, 0] > 0, allowed.flatten(1).any(1))  # rows this short are one block


@pytest.mark.parametrize("mask", [Causal() & Window(40), longformer(20, 3), Causal() & big_bird(16), ~Causal()])
def test_flex_attention_gets_every_block(mask: Mask) -> None:
    tokens = Tokens.plain(1, 1000)
    got = block_mask(mask, tokens, tokens, make_layout(mask, tokens, tokens)).to_dense()
    padded = torch.nn.functional.pad(dense(mask, tokens, tokens), (0, 24, 0, 24))
    assert torch.equal(got > 0, padded.unflatten(3, (8, 128)).unflatten(2, (8, 128)).any(5).any(3))


def test_control_the_layout_of_another_mask_is_seen() -> None:
    tokens = Tokens.plain(1, 100)
    right = dense(Causal() & Window(9), tokens, tokens)
    for mask, same in ((Causal() & Window(9), True), (Causal() & Window(8), False), (Causal() & Window(10), False)):
        assert torch.equal(spread_out(make_layout(mask, tokens, tokens, 8), 100, 100), right) == same


def test_equal_blocks_are_kept_once() -> None:
    tokens = Tokens.plain(1, 4096)
    layout = make_layout(Causal() & Window(256), tokens, tokens)
    assert len(layout.patterns) == 4  # all, nobody, the diagonal and the far edge
    assert layout.groups[:, 2].tolist() == [60, 4] and layout.live == 64 * 5 - 10  # the first four see less


# --- long rows: what attend() takes, and that it is exact -------------------------------------------------------------

torch.manual_seed(0)
LONG = 600
RAGGED = torch.arange(2 * LONG).view(2, LONG) % 7 > 0
RAGGED[1, 500:] = False
DOCUMENTS = (torch.arange(LONG) // torch.tensor([[150], [71]])).masked_fill(torch.arange(LONG) > 590, -1)
ROLLED = torch.arange(LONG).roll(33).masked_fill(torch.arange(LONG) < 9, -1)
WHERE: dict[str, Places] = {
    "plain": (Tokens.plain(2, LONG), Tokens.plain(2, LONG)),
    "continued": (Tokens.plain(2, LONG - 70, 70), Tokens.plain(2, LONG)),
    "padded": (Tokens.padded(RAGGED), Tokens.padded(RAGGED)),
    "packed": (Tokens.packed(DOCUMENTS), Tokens.packed(DOCUMENTS)),
    "ring": (Tokens.plain(2, 550, 50), Tokens(ROLLED.expand(2, -1))),
}  # fmt: skip
SPARSE: dict[str, Mask] = {
    "window": Causal() & Window(50),
    "strided": sparse_transformer(24),
    "fixed": sparse_transformer_fixed(64, 64),
    "global": longformer(17, 2),
    "random": Causal() & big_bird(16, near=1, n_global=1, n_random=1),
    "random, both sides": big_bird(32, n_global=1, n_random=1, length=LONG),
    "late": Causal() & Window(50) & ~Prefix(40),  # some see nothing
}


def qkv(at: Places, dtype: torch.dtype = torch.float32, heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, at[0].pos.shape[1], 8), *[(2, kv_heads, at[1].pos.shape[1], 8)] * 2]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("name", some_of(SPARSE, ["window", "random", "late"]))
@pytest.mark.parametrize("where", some_of(WHERE, ["padded", "packed", "ring"]))
def test_blocked_is_the_reference_on_long_rows(name: str, where: str) -> None:
    """Forward and gradients, in float32 to 1e-5 and in float64 to rounding, with grouped heads and a soft cap."""
    mask, at = SPARSE[name], WHERE[where]
    layout = make_layout(mask, *at)
    visible = Visible(None, None, layout.without_keys, layout, (mask, *at))
    for dtype, tolerance, cap in (
        (torch.float32, 1e-5, None),
        (torch.float64, 1e-12, None),
        (torch.float64, 1e-12, 2.0),
    ):
        inputs = qkv(at, dtype)
        q, k, v = inputs
        z, expected = (f(q, k, v, visible, scale=0.5, soft_cap=cap) for f in (blocked, reference))
        torch.testing.assert_close(z, expected, atol=tolerance, rtol=tolerance)
        gradients = [torch.autograd.grad(x.sin().sum(), inputs) for x in (z, expected)]
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("where", WHERE)
def test_attend_takes_blocks_where_they_pay(where: str) -> None:
    at = WHERE[where]
    q, k, v = qkv(at)
    visible = lower(SPARSE["window"], *at)
    assert visible.layout is not None and visible.allowed is None
    z, choice = attend(q, k, v, visible, scale=0.5, explain=True)
    assert choice.kernel is blocked and choice.name == "blocked" and "blocks of 64 × 64 tokens" in str(choice)
    expected, other = attend(q, k, v, visible, scale=0.5, listen=lambda _, x: x, explain=True)
    assert other.kernel is reference
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)
    bias = torch.zeros(1, 4, q.shape[2], k.shape[2])
    biased, other = attend(q, k, v, visible, bias=bias, scale=0.5, explain=True)
    assert other.kernel is sdpa
    torch.testing.assert_close(z, biased, atol=1e-5, rtol=1e-5)
    assert torch.equal(z, attend(q, k, v, visible, scale=0.5))


def test_where_blocks_do_not_pay_there_is_a_tensor() -> None:
    window, short, long = Causal() & Window(20), Tokens.plain(1, 100), Tokens.plain(1, LONG)
    for visible in (lower(window, short, short), lower(~Causal(), long, long), lower(window, long, long, sparse=False)):
        assert visible.layout is None and visible.allowed is not None
    for proved in (Causal(), Full(), Causal() & Window(LONG)):
        assert lower(proved, long, long).proof is not None
    assert (
        lower(window, long, long).layout is lower(window, Tokens.plain(3, LONG), Tokens.plain(3, LONG)).layout
    )  # made once


def test_every_choice_has_its_reason() -> None:
    def kernel(mask: Mask, time: int = 2048, cap: float | None = None, biased: bool = False) -> tuple[str, str]:
        choice = kernel_for(AttentionSpec(4, 2, 16, mask=mask, soft_cap=cap), time, biased=biased)
        assert str(choice) == f"{choice.name}: {choice.why}"
        return choice.name, choice.why

    window = Causal() & Window(64)
    assert kernel(window)[0] == "blocked" and "63 of 1,024 blocks of 64 × 64 tokens" in kernel(window)[1]
    assert kernel(window, cap=2.0)[0] == "blocked"
    reasons = [
        kernel(window),
        kernel(window, 128),
        kernel(Causal()),
        kernel(Full()),
        kernel(Causal(), cap=2.0),
        kernel(window, biased=True),
    ]
    assert [name for name, _ in reasons] == ["blocked", "sdpa", "sdpa", "sdpa", "reference", "sdpa"]
    assert len({why for _, why in reasons}) == len(reasons)
    q, visible = torch.zeros(1, 1, 1, 4), lower(Causal(), *WHERE["plain"])
    assert "listens" in choose(q, visible, listening=True).why
    assert kernel(window, 100_000)[0] == "blocked"


def test_a_model_with_a_long_window_is_the_same_listened_to_cached_and_trained() -> None:
    """Blocks (whole rows, prefill with a ring) and the reference (someone listens) are one model."""
    model = build(with_mask(SMALL, Causal() & Window(40)))
    ids = torch.arange(LONG)[None] % 11
    whole = model(ids)
    with model.taps(read="blocks.*.attn.pattern"):
        torch.testing.assert_close(model(ids), whole, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        cache = model.new_cache(1, LONG)
        parts = torch.cat([model(part, cache=cache) for part in ids.split([520, 1, 79], 1)], 1)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)


# --- nothing is n² ----------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements that any tensor has which an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def largest(mask: Mask, time: int, sparse: bool = True, packed: bool = False) -> int:
    """In seeing, attending and the gradient, with one head of four; the operators' insides included."""
    tokens = Tokens.packed(torch.arange(time)[None] // (time // 3)) if packed else Tokens.plain(1, time)
    q, k, v = (torch.randn(1, 1, time, 4) for _ in range(3))
    with Largest() as found:
        visible = lower(mask, tokens, tokens, sparse=sparse)
        attend(q, k, v, visible, scale=0.5)
        if (layout := visible.layout) is not None:
            plan = (layout.groups, layout.order, layout.pairs, layout.patterns, 0.5, None)
            backward(forward(q, k, v, *plan), q, k, v, *plan)
    return found.elements


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mask", [Causal() & Window(64), Causal() & big_bird(64, n_random=1), longformer(64, 8)])
def test_no_tensor_of_any_kind_grows_with_the_square(mask: Mask, packed: bool) -> None:
    few, many = largest(mask, 4096, packed=packed), largest(mask, 16384, packed=packed)
    assert many <= 4 * few and many < 16384**2 / 50


def test_control_a_mask_as_a_tensor_is_seen() -> None:
    assert largest(Causal() & Window(64), 1024, sparse=False) >= 1024**2


@pytest.mark.parametrize("time", [1, 33, 80])
@pytest.mark.parametrize("name", SPARSE)
def test_pairs_are_counted_one_by_one(name: str, time: int) -> None:
    mask = SPARSE[name]
    assert visible_pairs(mask, time) == sum(
        bool(mask.allow(Place(q), Place(k))) for q in range(time) for k in range(time)
    )


def test_pairs_of_a_long_row_are_counted_without_looking_at_each() -> None:
    n, w = 1_000_000, 256
    assert visible_pairs(Causal(), n) == n * (n + 1) // 2 and visible_pairs(Full(), n) == n * n
    assert visible_pairs(Causal() & Window(w), n) == n * w - w * (w - 1) // 2


# --- the layouts of the papers, written again from the papers ---------------------------------------------------------

N = 70
Sees = Callable[[int, int], bool]


def strided(i: int, j: int, stride: int = 8) -> bool:
    """Child et al. 2019, section 4.3: A(1) holds max(0, i - l) ... i, A(2) the j with (i - j) mod l = 0."""
    return max(0, i - stride) <= j <= i or (j <= i and (i - j) % stride == 0)


def fixed(i: int, j: int, stride: int = 8, summary: int = 2) -> bool:
    """A(1) holds j with floor(j / l) = floor(i / l), A(2) those with j mod l in {l - c, ..., l}; j <= i."""
    return j <= i and (j // stride == i // stride or j % stride in range(stride - summary, stride + 1))


def window_and_global(i: int, j: int, one_side: int = 5, n_global: int = 3) -> bool:
    """Beltagy et al. 2020, section 3.1: w/2 tokens on each side; global tokens attend to all, all attend to them."""
    return abs(i - j) <= one_side or i < n_global or j < n_global


def blocks(i: int, j: int, size: int = 4, n_global: int = 2) -> bool:
    """Zaheer et al. 2020, appendix D, without the random part: three blocks, and global ones both ways."""
    a, b = i // size, j // size
    return abs(a - b) <= 1 or a < n_global or b < n_global


PAPERS: dict[str, tuple[Mask, Sees]] = {
    "strided": (sparse_transformer(8), strided),
    "fixed": (sparse_transformer_fixed(8, 2), fixed),
    "window and global": (longformer(6, 3), window_and_global),
    "blocks": (Window(1) | big_bird(4, n_random=1, length=4), blocks),  # one random block, of the first: a global one
}
WRONG: dict[str, list[Mask]] = {
    "strided": [sparse_transformer(7), sparse_transformer(9), Causal() & Window(8), Causal()],
    "fixed": [sparse_transformer_fixed(8, 1), sparse_transformer_fixed(8, 3), sparse_transformer_fixed(4, 2)],
    "window and global": [longformer(5, 3), longformer(7, 3), longformer(6, 2), longformer(6, 4), Window(6)],
    "blocks": [big_bird(4, near=0, length=4), big_bird(4, n_global=1, n_random=1, length=4), big_bird(8, length=4)],
}


def loops(q: Tensor, k: Tensor, v: Tensor, sees: Sees) -> Tensor:
    """One query, one key at a time, in float64."""
    q_, k_, v_ = (x[0, 0].double().tolist() for x in (q, k, v))
    z: list[list[float]] = []
    for i in range(N):
        seen = [j for j in range(N) if sees(i, j)]
        weights = [math.exp(sum(a * b for a, b in zip(q_[i], k_[j], strict=True)) * 0.5) for j in seen]
        z.append([sum(w * v_[j][c] for w, j in zip(weights, seen, strict=True)) / sum(weights) for c in range(4)])
    return torch.tensor(z, dtype=torch.float64)[None, None]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_patterns(name: str) -> None:
    mask, sees = PAPERS[name]
    generator, tokens = torch.Generator().manual_seed(1), Tokens.plain(1, N)
    q, k, v = (torch.randn(1, 1, N, 4, generator=generator, dtype=torch.float64) * 2 for _ in range(3))
    expected = loops(q, k, v, sees)

    def by_blocks(mask: Mask) -> Tensor:
        layout = make_layout(mask, tokens, tokens, block=8)
        return blocked(q, k, v, Visible(None, None, layout.without_keys, layout), scale=0.5)

    for z in (by_blocks(mask), attend(q, k, v, lower(mask, tokens, tokens), scale=0.5)):
        torch.testing.assert_close(z, expected, atol=1e-12, rtol=1e-12)
    for wrong in WRONG[name]:
        assert (by_blocks(wrong) - expected).abs().max() > 1e-2, wrong


def test_control_another_seed_is_another_mask() -> None:
    tokens = Tokens.plain(1, 256)
    one, same, other = (dense(big_bird(8, seed=seed, length=256), tokens, tokens) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
