"""A mixture of experts is a loop over tokens; padding has no part in it.

The loop below goes token by token, choice by choice, in float64, and knows nothing of sorting or groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import CONTEXT, VOCAB, steady
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pellucid.nn.feed_forward import ACTIVATIONS
from pellucid.nn.grouped import grouped_linear, grouped_outer
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.nn.moe import MixtureOfExperts, load_balance, router_z
from pellucid.spec import (
    Activation,
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    GatedFFNSpec,
    LayerNormSpec,
    MoESpec,
    StackSpec,
)
from pellucid.taps import name_points, tapped


def loop(moe: MixtureOfExperts, spec: MoESpec, x: Tensor) -> Tensor:
    """What the layer should say, from its weights alone."""
    w = {name: weight.double() for name, weight in moe.named_parameters()}
    act = ACTIVATIONS[spec.expert.activation]

    def linear(name: str, e: int, h: Tensor) -> Tensor:
        y = w[f"{name}.weight"][e] @ h
        return y + w[f"{name}.bias"][e] if f"{name}.bias" in w else y

    rows = []
    for token in x.double().flatten(0, 1):
        exps = (w["router.weight"] @ token).exp()
        p = exps / exps.sum()
        chosen = sorted(range(spec.n_experts), key=lambda e, p=p: -p[e].item())[: spec.top_k]
        total = sum(p[e] for e in chosen) if spec.renormalise else 1.0
        out = torch.zeros_like(token)
        for e in chosen:
            inner = linear("up", e, token)
            inner = act(linear("gate", e, token)) * inner if "gate.weight" in w else act(inner)
            out = out + p[e] / total * linear("down", e, inner)
        rows.append(out)
    return torch.stack(rows).view_as(x) if rows else x.double() * 0


experts = st.builds(
    lambda kind, d_ff, activation, bias: kind(d_ff, activation, bias),
    st.sampled_from([FFNSpec, GatedFFNSpec]),
    st.sampled_from([5, 8, 16]),  # 5: rows that no grouped kernel takes
    st.sampled_from(get_args(Activation)),
    st.booleans(),
)


@st.composite
def moe_specs(draw: st.DrawFn) -> MoESpec:
    n = draw(st.integers(1, 6))
    with steady():
        return MoESpec(draw(experts), n, draw(st.integers(1, n)), draw(st.booleans()))


@steady()
def build(spec: MoESpec, d_model: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> MixtureOfExperts:
    generator = torch.Generator().manual_seed(seed)
    moe = MixtureOfExperts(spec, d_model)
    with torch.no_grad():
        for weight in moe.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    name_points(moe)
    return moe.to(dtype)


def tokens(batch: int, time: int, d_model: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + time)
    return torch.randn(batch, time, d_model, generator=generator).to(dtype)


def gradients(y: Tensor, moe: MixtureOfExperts, x: Tensor) -> dict[str, Tensor]:
    """Of a sum in which every output has a weight of its own."""
    weights = torch.linspace(-1.0, 1.0, y.numel(), dtype=torch.float64).view_as(y)
    named = {"x": x, **dict(moe.named_parameters())}
    grads = torch.autograd.grad((y * weights).sum(), list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, grads, strict=True))


def worst(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, in units of 1 or of what the expected tensor has at most."""
    return max(
        float((got[n].double() - e.double()).abs().max() / max(1.0, float(e.abs().max())))
        for n, e in expected.items()
        if e.numel()
    )


def compare(spec: MoESpec, d_model: int, shape: tuple[int, int], dtype: torch.dtype) -> float:
    moe, x = build(spec, d_model, dtype), tokens(*shape, d_model, dtype).requires_grad_()
    y, expected = moe(x), loop(moe, spec, x)
    assert y.shape == x.shape and y.dtype == dtype
    got = {"y": y.detach(), **gradients(y, moe, x)}
    return worst(got, {"y": expected.detach(), **gradients(expected, moe, x)})


shapes = st.tuples(st.integers(1, 3), st.integers(0, 6))


@given(moe_specs(), st.sampled_from([3, 8]), shapes)
def test_mixture_equals_a_loop_over_tokens(spec: MoESpec, d_model: int, shape: tuple[int, int]) -> None:
    """Outputs and the gradient of every weight, to float64's last digits."""
    assert compare(spec, d_model, shape, torch.float64) <= 1e-12


@given(moe_specs(), st.sampled_from([3, 8]), shapes)
def test_in_float32_too(spec: MoESpec, d_model: int, shape: tuple[int, int]) -> None:
    """Through torch's grouped kernel where widths allow it."""
    assert compare(spec, d_model, shape, torch.float32) <= 1e-5


EXAMPLE = MoESpec(GatedFFNSpec(16), 4, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("favourites", [[2], [0, 3], [3]])
def test_an_expert_may_get_everything_or_nothing(favourites: list[int], dtype: torch.dtype) -> None:
    """The router sends every token to the same experts: none is dropped, and those left out have a gradient of zero."""
    spec = replace(EXAMPLE, top_k=len(favourites))
    moe = build(spec, 8, dtype)
    x = tokens(2, 20, 8, dtype).abs().requires_grad_()
    with torch.no_grad():
        moe.router.weight[favourites] = moe.router.weight[favourites].abs() + 5.0
    with tapped(moe, read="expert_ids") as acts:
        y = moe(x)
    assert set(acts["expert_ids"].unique().tolist()) == set(favourites)
    got, expected = gradients(y, moe, x), gradients(loop(moe, spec, x), moe, x)
    assert worst(got, expected) <= 1e-5
    idle = [e for e in range(4) if e not in favourites]
    for name in ("up.weight", "gate.weight", "down.weight"):
        assert not got[name][idle].any() and got[name][favourites].any()


def test_one_renormalised_choice_teaches_the_router_nothing() -> None:
    """Its weight is p / p = 1, whatever p: why a single choice keeps its p (Fedus et al. 2021, equation 2)."""
    sizes = []
    for renormalise in (True, False):
        moe, x = build(MoESpec(FFNSpec(16), 4, 1, renormalise), 8), tokens(2, 5, 8)
        sizes.append(gradients(moe(x), moe, x.requires_grad_())["router.weight"].abs().max())
    assert sizes[0] <= 1e-12 and sizes[1] > 1e-2


# --- the grouped product ---------------------------------------------------------------------------------------------

group_sizes = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def grouped_case(sizes: list[int], d_in: int, d_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    ends = torch.tensor(sizes).cumsum(0).int()
    return draw(sum(sizes), d_in), draw(len(sizes), d_out, d_in), draw(sum(sizes), d_out), ends


@given(group_sizes, st.sampled_from([1, 3, 4, 8]), st.sampled_from([2, 4, 16]))
def test_products_of_groups_are_products_of_slices(sizes: list[int], d_in: int, d_out: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        x, weight, grad, ends = grouped_case(sizes, d_in, d_out, dtype)
        wide = x.double().split(sizes), weight.double(), grad.double().split(sizes)
        product = torch.cat([rows @ w.T for rows, w in zip(wide[0], wide[1], strict=True)])
        outer = torch.stack([g.T @ rows for g, rows in zip(wide[2], wide[0], strict=True)])
        for got, expected in ((grouped_linear(x, weight, ends), product), (grouped_outer(grad, x, ends), outer)):
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@given(group_sizes.filter(any))
def test_products_of_groups_have_two_derivatives(sizes: list[int]) -> None:
    x, weight, grad, ends = grouped_case(sizes, 3, 2, torch.float64)
    for f, a, b in ((grouped_linear, x, weight), (grouped_outer, grad, x)):
        inputs = (a.requires_grad_(), b.requires_grad_(), ends)
        assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


def test_weights_may_lie_in_memory_as_they_like() -> None:
    x, weight, _, ends = grouped_case([3, 0, 5], 8, 16, torch.float32)
    strided = torch.stack((weight, weight + 1), -1)[..., 0]
    assert not strided.is_contiguous() and not strided.mT.is_contiguous()
    columns = x.T.contiguous().T
    torch.testing.assert_close(grouped_linear(columns, strided, ends), grouped_linear(x, weight, ends))


def test_torch_counts_its_flops() -> None:
    """The router, then top_k experts a token: three products forward, each with two of its size backward."""
    moe, x = build(EXAMPLE, 8, torch.float32), tokens(2, 10, 8, torch.float32).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = moe(x)
    forward = 2 * 20 * (8 * 4 + 2 * 3 * 8 * 16)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * forward


# --- padding ---------------------------------------------------------------------------------------------------------


def test_padding_changes_nothing_for_others() -> None:
    """Whatever stands at a place without a token, the other outputs stay, and so do the losses."""
    moe, x, valid = build(EXAMPLE, 8), tokens(2, 6, 8), torch.tensor([[True] * 6, [False] * 3 + [True] * 3])
    results = []
    for filler in (0.0, 3.0, -50.0):
        with tapped(moe, read="router_logits") as acts:
            y = moe(x.masked_fill(~valid[..., None], filler))
        logits = acts["router_logits"]
        results.append((y[valid], load_balance(logits, 2, valid), router_z(logits, valid)))
        assert not torch.equal(load_balance(logits, 2), results[-1][1])  # a control: unmasked they do count
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


# --- points, types, initialisation -----------------------------------------------------------------------------------


def test_every_point_is_read_and_every_edit_counts() -> None:
    moe, x = build(EXAMPLE, 8), tokens(2, 5, 8)
    with tapped(moe, read="*") as acts:
        y = moe(x)
    assert torch.equal(y, moe(x))
    assert acts["router_logits"].shape == (2, 5, 4) and acts["expert_out"].shape == (2, 5, 2, 8)
    torch.testing.assert_close(y, (acts["expert_out"] * acts["expert_weights"][..., None]).sum(2))
    torch.testing.assert_close(acts["expert_weights"].sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert torch.equal(acts["expert_ids"], acts["router_logits"].topk(2).indices)
    edits: dict[str, Callable[[Tensor], Tensor]] = {
        "router_logits": lambda z: -z,
        "expert_ids": lambda ids: (ids + 1) % 4,
        "expert_weights": lambda w: w.flip(-1),
        "expert_out": lambda out: out + 1.0,
    }
    for name, edit in edits.items():
        with tapped(moe, edit={name: lambda a: a}):
            assert torch.equal(moe(x), y)
        with tapped(moe, edit={name: edit}):
            assert not torch.allclose(moe(x), y, atol=1e-3), name


def test_without_its_weight_an_expert_is_silent() -> None:
    """Ablation by an edit: what expert 1 would say no longer matters."""
    moe, x = build(EXAMPLE, 8), tokens(2, 5, 8)
    results = []
    for scale in (1.0, 7.0):
        with torch.no_grad():
            moe.down.weight[1] *= scale
        with tapped(moe, read="expert_ids") as acts:
            plain = moe(x)
        with tapped(moe, edit={"expert_weights": lambda w: w.masked_fill(acts["expert_ids"] == 1, 0.0)}):
            results.append((plain, moe(x)))
    assert torch.equal(results[0][1], results[1][1]) and not torch.allclose(results[0][0], results[1][0])


def test_under_autocast_experts_run_in_bfloat16() -> None:
    moe, x = build(EXAMPLE, 8, torch.float32), tokens(2, 9, 8, torch.float32).requires_grad_()
    with torch.no_grad():
        moe.router.weight.mul_(8.0)  # clear choices: rounding decides none
    with torch.autocast("cpu", torch.bfloat16), tapped(moe, read="*") as acts:
        y = moe(x)
    assert acts["expert_out"].dtype == y.dtype == torch.bfloat16 and acts["expert_weights"].dtype == torch.float32
    exact = loop(moe, EXAMPLE, x)
    error = (y - exact).detach().abs().max() / exact.detach().abs().max()
    assert 1e-4 < error < 0.05
    grads = gradients(y, moe, x)
    assert all(grads[name].dtype == torch.float32 for name in grads)
    expected = gradients(exact, moe, x)
    for name in ("up.weight", "gate.weight", "down.weight"):
        cosine = torch.cosine_similarity(grads[name].flatten().double(), expected[name].flatten().double(), 0)
        assert cosine > 0.999, name


def test_in_bfloat16_altogether() -> None:
    moe, x = build(EXAMPLE, 8, torch.bfloat16), tokens(2, 9, 8, torch.bfloat16)
    y = moe(x)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


@pytest.mark.parametrize("rule", ["normal", "fan_in", "xavier"])
def test_each_expert_starts_as_a_layer_of_its_own(rule: Any) -> None:
    """The table of nn.init, row by row, for weights that are stacked; biases at zero though they are a table too."""
    ffn = MoESpec(FFNSpec(64, bias=True), 6, 2)
    block = BlockSpec(AttentionSpec(2, 2, 16), ffn, LayerNormSpec())
    spec = DecoderSpec(VOCAB, CONTEXT, EmbedSpec(), StackSpec(32, (block,) * 2, LayerNormSpec()))
    moe: Any = initialise(Decoder(spec), rule).blocks[1].ffn
    assert not moe.up.bias.any() and not moe.down.bias.any()
    into = {"normal": 0.02, "fan_in": 32**-0.5, "xavier": (2 / (32 + 64)) ** 0.5}[rule]
    out = {"normal": 0.02 / 2, "fan_in": 0.0, "xavier": (2 / (32 + 64)) ** 0.5}[rule]
    for e in range(6):
        assert moe.up.weight[e].std().item() == pytest.approx(into, rel=0.1)
        assert moe.down.weight[e].std().item() == pytest.approx(out, rel=0.1)
    router = {"normal": 0.02, "fan_in": 32**-0.5, "xavier": (2 / (32 + 6)) ** 0.5}[rule]
    assert moe.router.weight.std().item() == pytest.approx(router, rel=0.25)  # of 192 draws


# --- controls: mistakes that the loop must see -----------------------------------------------------------------------


def wrong(change: Callable[[Any], None], spec: MoESpec = EXAMPLE) -> float:
    moe, x = build(spec, 8), tokens(2, 6, 8)
    right = loop(moe, spec, x).detach()
    change(moe)
    with torch.no_grad():
        return float((moe(x) - right).abs().max())


def set_field(name: str, value: Any) -> Callable[[Any], None]:
    return lambda moe: setattr(moe, name, value)


def roll(moe: Any) -> None:
    with torch.no_grad():
        moe.down.weight.copy_(moe.down.weight.roll(1, 0))


CONTROLS = {
    "not renormalised": set_field("renormalise", False),
    "one expert too many": set_field("top_k", 3),
    "one expert too few": set_field("top_k", 1),
    "experts in another order": roll,
}


def test_control_the_right_one_is_right() -> None:
    assert wrong(lambda moe: None) <= 1e-12


@pytest.mark.parametrize("change", CONTROLS.values(), ids=CONTROLS.keys())
def test_control_a_wrong_layer_is_seen(change: Callable[[Any], None]) -> None:
    assert wrong(change) > 1e-2


def test_control_pairs_that_are_not_put_back_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    argsort = Tensor.argsort
    monkeypatch.setattr(Tensor, "argsort", lambda self: argsort(self).roll(1))
    assert wrong(lambda moe: None) > 1e-2


def test_control_groups_that_end_early_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    search = torch.searchsorted

    def early(*args: Any, right: bool, **kwargs: Any) -> Tensor:
        ends = search(*args, right=right, **kwargs)
        return torch.cat(((ends[:-1] - 1).clamp(min=0), ends[-1:]))

    monkeypatch.setattr(torch, "searchsorted", early)
    assert wrong(lambda moe: None) > 1e-2
