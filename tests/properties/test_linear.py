"""Linearised attention: both forms of the running sum are equal; the mixer knows padding, documents and its cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import chunks, close, norms, padded, rotaries, steady
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.batch import Tokens
from pellucid.errors import UsageError
from pellucid.nn import linear_attention
from pellucid.nn.documents import OpenDocuments, find_documents
from pellucid.nn.linear_attention import LinearAttention
from pellucid.nn.rope import rotation
from pellucid.nn.running_sum import by_chunks, by_steps
from pellucid.nn.stores import StateCache
from pellucid.spec import (
    DecayRule,
    DeltaRule,
    GatedDecayRule,
    KernelRule,
    LinearAttentionSpec,
    RMSNormSpec,
    UpdateRule,
)
from pellucid.taps import name_points, tapped

D_MODEL, N_HEADS, HEAD_DIM = 6, 2, 4
few = settings(max_examples=examples(20))
gated_rules = st.builds(GatedDecayRule, st.integers(1, 3), st.sampled_from([0.05, 1.0, 16.0]))
causal_rules: st.SearchStrategy[UpdateRule] = st.one_of(
    st.just(KernelRule()), st.just(DecayRule()), gated_rules, st.just(DeltaRule())
)
rules: st.SearchStrategy[UpdateRule] = causal_rules | st.just(KernelRule(causal=False))
EVERY_RULE = [KernelRule(), KernelRule(causal=False), DecayRule(), GatedDecayRule(), DeltaRule()]
CAUSAL = [rule for rule in EVERY_RULE if rule != KernelRule(causal=False)]


def called(rule: UpdateRule) -> str:
    return type(rule).__name__ + (" of both sides" if rule == KernelRule(causal=False) else "")


# --- the running sum --------------------------------------------------------------------------------------------------

Sum = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor]  # what both forms take


@st.composite
def sums(draw: st.DrawFn, max_time: int = 40) -> Sum:
    """q, k, v, decay, beta, state; decays of any shape, and as fast as they come."""
    batch, time = draw(st.integers(1, 2)), draw(st.integers(1, max_time))
    width = draw(st.sampled_from([HEAD_DIM, HEAD_DIM + 1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(batch, N_HEADS, *shape, generator=generator, dtype=torch.double)

    q, k, v = drawn(time, HEAD_DIM), drawn(time, HEAD_DIM), drawn(time, width)
    beta = drawn(time).sigmoid() if draw(st.booleans()) else None
    if beta is not None:
        k = torch.nn.functional.normalize(k, dim=-1)
    decay = None
    if draw(st.booleans()):
        rows, heads, steps = draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, N_HEADS])), draw(st.booleans())
        channels = 1 if beta is not None else draw(st.sampled_from([1, HEAD_DIM]))
        speed = draw(st.sampled_from([0.1, 1.0, 300.0]))  # 300: to underflow and beyond
        decay = (-speed * drawn(time, HEAD_DIM).abs()).exp()[:rows, :heads, : time if steps else 1, :channels]
        if draw(st.booleans()):
            decay = decay * (torch.rand(decay.shape, generator=generator) > 0.2)  # documents begin
    return q, k, v, decay, beta, drawn(HEAD_DIM, width)


@given(sums(), st.sampled_from([1, 2, 4, 16, 64]))
@settings(max_examples=examples(100))
def test_chunks_of_any_size_are_steps(sum_: Sum, chunk: int) -> None:
    with steady():
        for got, expected in zip(by_chunks(*sum_, chunk=chunk), by_steps(*sum_), strict=True):
            close(got, expected)


@given(sums(max_time=20), st.sampled_from([2, 8]))
@settings(max_examples=examples(40))
def test_gradients_of_both_forms_are_equal(sum_: Sum, chunk: int) -> None:
    def gradients(form: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        given = [None if x is None else x.clone().requires_grad_() for x in sum_]
        z, state = form(*given)
        return list(torch.autograd.grad(z.sin().sum() + state.square().sum(), [x for x in given if x is not None]))

    with steady():
        pairs = zip(gradients(lambda *x: by_chunks(*x, chunk=chunk)), gradients(by_steps), strict=True)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, atol=1e-7 * (1 + expected.abs().max().item()), rtol=0)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that anything made."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.n_bytes = max(self.n_bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("rule", EVERY_RULE, ids=called)
@pytest.mark.parametrize("packed", [False, True])
def test_no_tensor_grows_faster_than_the_text(rule: UpdateRule, packed: bool) -> None:
    mixer, largest = mixer_of(LinearAttentionSpec(N_HEADS, HEAD_DIM, rule)), list[int]()
    for time in (512, 1024):
        seg = torch.arange(time)[None] // 100
        x = torch.randn(1, time, D_MODEL, dtype=torch.double, requires_grad=True)
        with Largest() as seen:
            mixer(x, find_documents(Tokens.packed(seg) if packed else Tokens.plain(1, time))).sum().backward()
        largest.append(seen.n_bytes)
    assert largest[1] <= 2 * largest[0]


def test_control_one_chunk_for_everything_is_seen() -> None:
    largest: list[int] = []
    for time in (512, 1024):
        q, k, v = torch.randn(3, 1, N_HEADS, time, HEAD_DIM)
        with Largest() as seen:
            by_chunks(q, k, v, None, None, torch.zeros(1, N_HEADS, HEAD_DIM, HEAD_DIM), chunk=1024)
        largest.append(seen.n_bytes)
    assert largest[1] == 4 * largest[0]


# --- the mixer --------------------------------------------------------------------------------------------------------


@steady()
def mixer_of(spec: LinearAttentionSpec, seed: int = 0) -> LinearAttention:
    """With weights wide enough that everything matters."""
    generator = torch.Generator().manual_seed(seed)
    mixer = LinearAttention(spec, D_MODEL)
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return mixer.double()


@st.composite
def mixer_specs(draw: st.DrawFn, rule: st.SearchStrategy[UpdateRule] = rules) -> LinearAttentionSpec:
    with steady():
        chosen = draw(rule)
        rotary = None if isinstance(chosen, KernelRule) else draw(st.none() | rotaries)
        norm, flags = draw(st.none() | norms), [draw(st.booleans()) for _ in range(3)]
        return LinearAttentionSpec(N_HEADS, HEAD_DIM, chosen, rotary, norm, *flags)


Mixer = tuple[LinearAttentionSpec, LinearAttention]
mixers: st.SearchStrategy[Mixer] = mixer_specs().map(lambda spec: (spec, mixer_of(spec)))
causal_mixers: st.SearchStrategy[Mixer] = mixer_specs(causal_rules).map(lambda spec: (spec, mixer_of(spec)))
seeds = st.integers(0, 99)


def inputs(batch: int, time: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, D_MODEL, generator=generator, dtype=torch.double)


@steady()
def run(mixer: Mixer, x: Tensor, tokens: Tokens | None = None, past: StateCache | None = None) -> Tensor:
    """One call, as a stack makes it."""
    spec, module = mixer
    tokens = Tokens.plain(len(x), x.shape[1]) if tokens is None else tokens
    turns = None if spec.rotary is None else rotation(spec.rotary, spec.head_dim, tokens)
    before = None
    if past is not None:
        past.slots.take(tokens)
        before = past.slots.before
    out = module(x, find_documents(tokens, before, turns), past)
    if past is not None:
        past.slots.commit(tokens)
    return out


def new_cache(mixer: Mixer, x: Tensor) -> StateCache:
    return StateCache(OpenDocuments(len(x)), mixer[1].empty_state(len(x), x))


def in_chunks(mixer: Mixer, x: Tensor, tokens: Tokens, lengths: list[int]) -> Tensor:
    past, outs, start = new_cache(mixer, x), list[Tensor](), 0
    for n in lengths:
        part = slice(start, start + n)
        seg = None if tokens.seg is None else tokens.seg[:, part]
        outs.append(run(mixer, x[:, part], Tokens(tokens.pos[:, part], seg), past))
        start += n
    return torch.cat(outs, 1)


@given(causal_mixers, st.integers(1, 3), st.integers(1, 90), seeds, st.data())
@settings(max_examples=examples(40))
def test_cached_is_uncached(mixer: Mixer, batch: int, time: int, seed: int, data: st.DataObject) -> None:
    x = inputs(batch, time, seed)
    close(in_chunks(mixer, x, Tokens.plain(batch, time), data.draw(chunks(time))), run(mixer, x))


@given(mixers, padded(max_length=80), seeds)
@settings(max_examples=examples(40))
def test_padding_is_passed_by(mixer: Mixer, drawn: tuple[list[Tensor], Tensor, Tensor], seed: int) -> None:
    _, _, valid = drawn
    valid = torch.cat((valid, torch.zeros_like(valid[:1])))  # and a row without any token
    x = inputs(len(valid), valid.shape[1], seed).requires_grad_()
    out = run(mixer, x, Tokens.padded(valid))
    assert (out[~valid] == 0).all()
    for row, where, got in zip(x, valid, out, strict=True):
        if where.any():
            close(got[where], run(mixer, row[where][None])[0])
    (gradient,) = torch.autograd.grad(out.sin().sum(), x)
    assert gradient.isfinite().all() and (gradient[~valid] == 0).all()


@given(mixers, st.integers(1, 2), st.integers(1, 80), seeds, st.data())
@settings(max_examples=examples(40))
def test_packed_documents_are_rows(mixer: Mixer, batch: int, time: int, seed: int, data: st.DataObject) -> None:
    x, lengths = inputs(batch, time, seed), data.draw(chunks(time))
    seg = torch.cat([torch.full((batch, n), i) for i, n in enumerate(lengths)], 1)
    expected = torch.cat([run(mixer, document) for document in x.split(lengths, 1)], 1)
    close(run(mixer, x, Tokens.packed(seg)), expected)


@given(causal_mixers, st.integers(1, 2), st.integers(2, 40), seeds, st.data())
@settings(max_examples=examples(40))
def test_packed_padded_and_cached_at_once(mixer: Mixer, batch: int, time: int, seed: int, data: st.DataObject) -> None:
    x, segs = inputs(batch, time, seed), list[Tensor]()
    for _ in range(batch):
        seg = torch.cat([torch.full((n,), i) for i, n in enumerate(data.draw(chunks(time)))])
        segs.append(seg.masked_fill(torch.tensor(data.draw(st.lists(st.booleans(), min_size=time, max_size=time))), -1))
    seg = torch.stack(segs)
    pos = torch.full_like(seg, -1)
    for b in range(batch):
        for i in seg[b].unique():
            if i >= 0:
                pos[b, seg[b] == i] = torch.arange(int((seg[b] == i).sum()))
    got = in_chunks(mixer, x, Tokens(pos, seg), data.draw(chunks(time)))
    assert (got[seg < 0] == 0).all()
    for b in range(batch):
        for i in seg[b].unique():
            if i >= 0:
                close(got[b, seg[b] == i], run(mixer, x[b, seg[b] == i][None])[0])


@given(mixers, seeds)
@few
def test_a_batch_is_its_rows(mixer: Mixer, seed: int) -> None:
    x = inputs(3, 70, seed)
    close(run(mixer, x), torch.cat([run(mixer, row[None]) for row in x]))


@given(causal_mixers, st.integers(0, 68), seeds)
@few
def test_later_tokens_do_not_change_earlier_outputs(mixer: Mixer, at: int, seed: int) -> None:
    x = inputs(1, 70, seed).requires_grad_()
    run(mixer, x)[:, : at + 1].sin().sum().backward()
    assert x.grad is not None and (x.grad[:, at + 1 :] == 0).all() and x.grad[:, at].abs().max() > 0


@given(seeds)
@few
def test_both_sides_have_no_order(seed: int) -> None:
    spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, KernelRule(causal=False))
    mixer, x = (spec, mixer_of(spec)), inputs(2, 70, seed)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(seed))
    close(run(mixer, x)[:, order], run(mixer, x[:, order]))
    assert (run(mixer, x)[:, 0] - run(mixer, x[:, :69])[:, 0]).abs().max() > 1e-6  # the first sees the last


def test_both_sides_keep_no_state() -> None:
    spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, KernelRule(causal=False))
    mixer, x = (spec, mixer_of(spec)), inputs(1, 3, 0)
    with pytest.raises(UsageError, match=r"no state to go on from\n.*causal=True"):
        run(mixer, x, None, new_cache(mixer, x))


@pytest.mark.parametrize("rule", EVERY_RULE, ids=called)
def test_reduced_precision(rule: UpdateRule) -> None:
    """Under autocast, and with narrow weights: near the exact result, and the state stays wide."""
    spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, rule, out_norm=RMSNormSpec(), out_gate=True)
    mixer, x = mixer_of(spec), inputs(2, 130, 0)
    exact = run((spec, mixer), x)
    x = x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = run((spec, mixer.float()), x)
    out.square().sum().backward()
    assert out.dtype == torch.bfloat16 and (out - exact).norm() < 0.03 * exact.norm()
    assert x.grad is not None and x.grad.isfinite().all()
    narrow = mixer.bfloat16()
    out = run((spec, narrow), x.bfloat16())
    assert out.dtype == torch.bfloat16 and (out - exact).norm() < 0.03 * exact.norm()
    assert narrow.empty_state(1, out)[0].dtype == torch.float32


@pytest.mark.parametrize("bias", [-1e4, -30.0, 30.0, 1e4])
@pytest.mark.parametrize("temperature", [0.01, 16.0])
def test_no_gate_is_too_extreme(bias: float, temperature: float) -> None:
    """From a state that is forgotten at once to one that never is, in float32."""
    spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, GatedDecayRule(2, temperature))
    mixer, x = mixer_of(spec), inputs(1, 200, 0)
    with torch.no_grad():
        mixer.get_parameter("decay.1.bias").fill_(bias)
    exact = run((spec, mixer), x)
    mixer, x = mixer.float(), x.float().requires_grad_()
    got = run((spec, mixer), x)
    torch.testing.assert_close(got, exact.float(), atol=1e-4, rtol=1e-4)
    for gradient in torch.autograd.grad(got.sin().sum(), [x, *mixer.parameters()]):
        assert gradient.isfinite().all()


def test_the_state_does_not_grow() -> None:
    for rule in CAUSAL:
        spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, rule)
        mixer, x = (spec, mixer_of(spec)), inputs(1, 8, 0)
        past, sizes = new_cache(mixer, x), set[torch.Size]()
        for t in range(8):
            run(mixer, x[:, t : t + 1], Tokens.plain(1, 1, t), past)
            sizes.add(past.tensors[0].shape)
        assert sizes == {torch.Size((1, N_HEADS, HEAD_DIM, HEAD_DIM + isinstance(rule, KernelRule)))}


def test_points() -> None:
    """Which there are, their shapes, and that an edit reaches what follows."""
    x = inputs(2, 9, 0)
    for rule in EVERY_RULE:
        spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, rule, out_gate=True)
        mixer = mixer_of(spec)
        name_points(mixer)
        own = "decay" if isinstance(rule, GatedDecayRule) else "beta" if isinstance(rule, DeltaRule) else "q"
        assert set(mixer.points()) == {"q", "k", "v", "z", "gate", own}
        with tapped(mixer, "*") as acts:
            plain = run((spec, mixer), x)
        assert set(acts) == set(mixer.points())
        assert {name: act.shape for name, act in acts.items()} == {
            name: (2, N_HEADS, 9) if name == "beta" else (2, N_HEADS, 9, HEAD_DIM) for name in acts
        }
        for point in mixer.points():
            with tapped(mixer, edit={point: lambda act: act * 0.5 + 0.2}):
                assert (run((spec, mixer), x) - plain).abs().max() > 1e-3, point
    assert tuple(mixer_of(LinearAttentionSpec(N_HEADS, HEAD_DIM)).points()) == ("q", "k", "v", "z")


# --- controls: what these properties must see ------------------------------------------------------------------------


def discrepancy(rule: UpdateRule, seg: Tensor, lengths: list[int]) -> float:
    """Of packed, padded rows in chunks to each document alone."""
    spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, rule)
    mixer, x = (spec, mixer_of(spec)), inputs(1, seg.shape[1], 0)
    got = in_chunks(mixer, x, Tokens.packed(seg), lengths) if lengths else run(mixer, x, Tokens.packed(seg))
    worst = 0.0
    for i in seg.unique():
        if i >= 0:
            here = seg[0] == i
            worst = max(worst, (got[0, here] - run(mixer, x[:, here])[0]).abs().max().item())
    return worst


SEG = torch.tensor([[0] * 5 + [1] * 4 + [-1] + [1] * 3 + [2] * 4])
ONE = torch.tensor([[0] * 5 + [-1] * 4 + [0] * 8])


@pytest.mark.parametrize("rule", EVERY_RULE, ids=called)
def test_control_they_work_unbroken(rule: UpdateRule) -> None:
    assert max(discrepancy(rule, seg, []) for seg in (SEG, ONE)) < 1e-9
    if rule in CAUSAL:
        assert discrepancy(rule, SEG, [7, 1, 9]) < 1e-9


@pytest.mark.parametrize("rule", EVERY_RULE, ids=called)
def test_control_documents_that_run_together_are_seen(rule: UpdateRule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_attention, "_begins", lambda view: None)
    assert discrepancy(rule, SEG, []) > 1e-3


@pytest.mark.parametrize("rule", [DecayRule(), GatedDecayRule(temperature=1.0)], ids=called)
def test_control_padding_that_fades_is_seen(rule: UpdateRule, monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear_attention._at_borders
    monkeypatch.setattr(linear_attention, "_at_borders", lambda decay, valid, *more: right(decay, None, *more))
    assert discrepancy(rule, ONE, []) > 1e-3


@pytest.mark.parametrize("rule", CAUSAL, ids=called)
def test_control_a_state_that_is_not_kept_is_seen(rule: UpdateRule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateCache, "__setattr__", lambda self, name, value: self.__dict__.setdefault(name, value))
    assert discrepancy(rule, SEG, [7, 1, 9]) > 1e-3
