"""Every kernel computes the formula: against float64 loops that evaluate the predicate one pair at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build, head_counts, masks, places, with_mask
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pellucid.batch import Tokens
from pellucid.designs import DESIGNS
from pellucid.nn.kernels import Choice, Kernel, attend, blocked, choose, reference, sdpa
from pellucid.nn.kernels import __all__ as exported
from pellucid.nn.layout import make_layout
from pellucid.nn.masks import Visible, dense, lower
from pellucid.predicates import Place
from pellucid.spec import Causal, Full, Mask, Window

KERNELS = {"reference": reference, "sdpa": sdpa, "blocked": blocked, "attend": attend}
few = settings(max_examples=examples(25))
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@dataclass
class Call:
    """The arguments of one call of a kernel."""

    q: Tensor
    k: Tensor
    v: Tensor
    queries: Tokens
    keys: Tokens
    bias: Tensor | None
    soft_cap: float | None
    scale: float = 0.7

    def by(self, kernel: object, mask: Mask) -> Tensor:
        if kernel is blocked:  # in blocks of two, so that these short rows have several
            layout = make_layout(mask, self.queries, self.keys, block=2)
            return self.seeing(kernel, Visible(None, None, layout.without_keys, layout))
        return self.seeing(kernel, lower(mask, self.queries, self.keys))

    def seeing(self, kernel: object, visible: Visible) -> Tensor:
        assert isinstance(kernel, Kernel)
        return kernel(self.q, self.k, self.v, visible, bias=self.bias, scale=self.scale, soft_cap=self.soft_cap)


@st.composite
def calls(draw: st.DrawFn, dtype: torch.dtype = torch.float64, capped: bool = True) -> Call:
    queries, keys = draw(places())
    (batch, n_q), n_k, (heads, kv_heads) = queries.pos.shape, keys.pos.shape[1], draw(head_counts)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    rows = 1 if queries.start is not None and keys.start is not None else batch
    bias = randn(rows, heads, n_q, n_k) if draw(st.booleans()) else None
    cap = draw(st.sampled_from([None, 1.5])) if capped else None
    q, kv = randn(batch, heads, n_q, 4) * 2, (batch, kv_heads, n_k, 4)
    return Call(q, randn(*kv), randn(*kv), queries, keys, bias, cap)


def naive(call: Call, mask: Mask) -> Tensor:
    """Equation 1 of Vaswani et al. 2017 in plain numbers."""
    q, k, v = (x.double().tolist() for x in (call.q, call.k, call.v))
    n_heads, group = len(q[0]), len(q[0]) // len(k[0])
    packed = call.queries.seg is not None

    def sees(b: int, i: int, j: int) -> bool:
        at, other = (Place(*(int(x[b, t]) for x in side.place)) for side, t in ((call.queries, i), (call.keys, j)))
        together = not packed or at.seg == other.seg
        return at.pos >= 0 and other.pos >= 0 and together and bool(mask.allow(at, other))

    def score(b: int, h: int, i: int, j: int) -> float:
        s = sum(x * y for x, y in zip(q[b][h][i], k[b][h // group][j], strict=True)) * call.scale
        if call.soft_cap is not None:
            s = call.soft_cap * math.tanh(s / call.soft_cap)
        return s if call.bias is None else s + float(call.bias[b if len(call.bias) > 1 else 0, h, i, j])

    def row(b: int, h: int, i: int) -> list[float]:
        seen = [j for j in range(len(k[b][0])) if sees(b, i, j)]
        weights = [math.exp(score(b, h, i, j)) for j in seen]
        values = [v[b][h // group][j] for j in seen]
        return [sum(w * x[d] for w, x in zip(weights, values, strict=True)) / (sum(weights) or 1.0) for d in range(4)]

    return torch.tensor([[[row(b, h, i) for i in range(len(q[b][h]))] for h in range(n_heads)] for b in range(len(q))])


def suits(kernel: object, call: Call) -> Call:
    """The call without what ``choose`` never sends to this kernel."""
    if kernel is blocked:
        return replace(call, bias=None)
    return replace(call, soft_cap=None) if kernel is sdpa else call


@kernels
@given(masks, calls())
@few
def test_kernel_is_the_formula(kernel: object, mask: Mask, call: Call) -> None:
    call = suits(kernel, call)
    got = call.by(kernel, mask)
    torch.testing.assert_close(got, naive(call, mask).to(got.dtype), atol=2e-6, rtol=2e-6)


@kernels
@given(masks, calls(torch.float32))
@few
def test_kernel_in_float32(kernel: object, mask: Mask, call: Call) -> None:
    call = suits(kernel, call)
    torch.testing.assert_close(call.by(kernel, mask), naive(call, mask).float(), atol=2e-5, rtol=2e-5)


@kernels
@given(masks, calls(torch.bfloat16))
@settings(max_examples=examples(10))
def test_kernel_in_bfloat16_is_bounded(kernel: object, mask: Mask, call: Call) -> None:
    call = suits(kernel, call)
    got = call.by(kernel, mask)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), naive(call, mask).double(), atol=8e-2, rtol=5e-2)


@kernels
@given(masks, calls())
@few
def test_blind_queries_give_zeros_and_gradients_are_right(kernel: object, mask: Mask, call: Call) -> None:
    """Half of the keys are empty places, some queries see none: finite, zero, and the reference's gradient."""
    call = suits(kernel, call)
    call.keys = Tokens(call.keys.pos.clone(), call.keys.seg, part=call.keys.part)
    call.keys.pos[:, ::2] = -1
    inputs = [call.q, call.k, call.v] + ([] if call.bias is None else [call.bias])
    for x in inputs:
        x.requires_grad_()
    blind = ~dense(mask, call.queries, call.keys).any(-1)
    z = call.by(kernel, mask)
    assert not z[blind.expand(z.shape[:3])].any()
    grads = torch.autograd.grad(z.sin().sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][blind.expand(z.shape[:3])].any()
    expected = torch.autograd.grad(call.by(reference, mask).sin().sum(), inputs)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


@kernels
@pytest.mark.parametrize("biased", [False, True])
def test_nobody_sees_anything(kernel: object, biased: bool) -> None:
    tokens, x = Tokens.plain(2, 3), torch.randn(2, 2, 3, 4, requires_grad=True)
    bias = torch.randn(1, 2, 3, 3, requires_grad=True) if biased else None
    call = suits(kernel, Call(x, x, x, tokens, tokens, bias, None))
    z = call.by(kernel, ~Full())
    z.sum().backward()
    assert z.shape == x.shape and not z.any()
    assert x.grad is not None and not x.grad.any()
    assert bias is None or bias.grad is None or not bias.grad.any()


@given(calls(capped=False), st.sampled_from([1.5, None]))
@few
def test_attend_takes_the_kernel_that_can(call: Call, cap: float | None) -> None:
    call.soft_cap = cap
    visible = lower(Causal(), call.queries, call.keys)
    chosen = choose(call.q, visible, biased=call.bias is not None, soft_cap=cap)
    assert chosen.kernel is (sdpa if cap is None else reference) and chosen.why
    assert choose(call.q, visible, listening=True).kernel is reference
    assert torch.equal(call.by(attend, Causal()), call.by(chosen.kernel, Causal()))


@given(calls(), masks)
@few
def test_listening_changes_nothing_and_hears_scores_and_pattern(call: Call, mask: Mask) -> None:
    heard: dict[str, Tensor] = {}
    visible = lower(mask, call.queries, call.keys)
    z = attend(
        call.q, call.k, call.v, visible, bias=call.bias, scale=call.scale, soft_cap=call.soft_cap,
        listen=lambda name, x: heard.setdefault(name, x),
    )  # fmt: skip
    torch.testing.assert_close(z, call.by(attend, mask), atol=1e-6, rtol=1e-6)
    allowed = dense(mask, call.queries, call.keys).expand_as(heard["pattern"])
    assert set(heard) == {"scores", "pattern"} and not heard["pattern"][~allowed].any()
    torch.testing.assert_close(heard["pattern"].sum(-1), allowed.any(-1).double())


def test_every_exported_kernel_is_tested() -> None:
    """FlexAttention compiles what it runs: its tests are in tests/compile."""
    assert set(exported) - {"Choice", "choose", "kernel_for", "flex"} == set(KERNELS)


# --- nothing is made twice --------------------------------------------------------------------------------------------


class Made(TorchDispatchMode):
    """The numbers of elements of all tensors that operations give, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.elements += [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        return out


def test_grouped_heads_share_keys_and_values_without_a_copy() -> None:
    """A token that is written reads all keys once, and not as often as there are heads in a group."""
    q, k, v = torch.randn(1, 8, 1, 16), torch.randn(1, 2, 300, 16), torch.randn(1, 2, 300, 16)
    visible = lower(Causal(), Tokens.plain(1, 1, 299), Tokens.plain(1, 300))
    with torch.no_grad(), Made() as made:
        z = sdpa(q, k, v, visible, scale=0.5)
    assert max(made.elements) < k.numel()
    torch.testing.assert_close(z, reference(q, k, v, visible, scale=0.5))


def test_rows_that_are_alike_have_one_mask() -> None:
    tokens = Tokens.plain(5, 8)
    assert lower(Causal() & Window(3), tokens, tokens).allowed.shape == (1, 1, 8, 8)  # type: ignore[union-attr]
    told = Tokens(tokens.pos)  # nobody knows before looking
    assert lower(Causal() & Window(3), told, told).allowed.shape == (5, 1, 8, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize("mask", [Causal(), Causal() & Window(20)])
def test_a_bias_takes_in_the_mask_once_for_all_layers(mask: Mask) -> None:
    """What a backward keeps of the square, scores apart, does not grow with depth."""

    def squares(n_layers: int) -> int:
        spec = DESIGNS["alibi"](11, 64, n_layers, 16, 8)
        model, tokens = build(with_mask(spec, mask)), Tokens.plain(1, 40)
        with torch.no_grad(), Made() as made:
            model(torch.zeros(1, 40, dtype=torch.long), tokens)
        return sum(n >= 2 * 40 * 40 for n in made.elements)

    assert squares(6) == squares(2)


# --- controls: the traps, and that the tests above would see them ----------------------------------------------------


def wide(n_q: int, n_k: int) -> Call:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 4, generator=generator) * 2 for n in (n_q, n_k, n_k))
    return Call(q, k, v, Tokens.plain(1, n_q, n_k - n_q), Tokens.plain(1, n_k), None, None)


@pytest.mark.parametrize("kernel", [reference, sdpa])
def test_control_a_causal_rectangle_taken_for_proved_is_seen(kernel: object) -> None:
    """torch aligns ``is_causal`` to the top left corner; a continued row is aligned to the bottom right."""
    call = wide(2, 5)
    wrong = call.seeing(kernel, Visible("causal"))
    assert (wrong - naive(call, Causal())).abs().max() > 0.1


def test_control_a_mask_taken_for_a_bias_is_seen() -> None:
    call = wide(5, 5)
    call.bias = dense(Causal(), call.queries, call.keys).float().expand(1, 2, 5, 5)
    wrong = call.by(sdpa, Full())
    assert (wrong - naive(replace(call, bias=None), Causal())).abs().max() > 0.1


def test_control_a_window_off_by_one_is_seen() -> None:
    call = wide(6, 6)
    for size in (2, 4):
        assert (call.by(sdpa, Causal() & Window(size)) - naive(call, Causal() & Window(3))).abs().max() > 0.1


def test_control_key_heads_in_another_order_are_seen() -> None:
    call = wide(4, 4)
    call = replace(call, q=call.q.repeat(1, 2, 1, 1))  # four query heads over two key heads: 0 0 1 1, not 0 1 0 1
    wrong = replace(call, k=call.k.repeat(1, 2, 1, 1), v=call.v.repeat(1, 2, 1, 1)).by(sdpa, Causal())
    assert (wrong - naive(call, Causal())).abs().max() > 0.1
    torch.testing.assert_close(call.by(sdpa, Causal()), naive(call, Causal()).float(), atol=1e-5, rtol=1e-5)


def test_attend_runs_the_kernel_that_was_chosen_for_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ``choose`` answers is what runs: ``attend`` does not decide a second time."""
    ran: list[str] = []

    def chosen(*args: Any, **kwargs: Any) -> torch.Tensor:
        ran.append("chosen")
        return reference(*args, **kwargs)

    monkeypatch.setattr("pellucid.nn.kernels.choose", lambda *_, **__: Choice(chosen, "planted"))
    q, k, v = (torch.randn(1, 2, 3, 4) for _ in range(3))
    z = attend(q, k, v, Visible("causal"), scale=0.5, listen=lambda _, x: x)
    assert ran == ["chosen"]
    torch.testing.assert_close(z, reference(q, k, v, Visible("causal"), scale=0.5))
