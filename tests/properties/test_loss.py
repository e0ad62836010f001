"""The loss in chunks is cross-entropy, and so is its gradient: against torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, VOCAB, build, ids, models
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.errors import DataError
from pellucid.nn import heads
from pellucid.nn.heads import LMHead
from pellucid.nn.models import Decoder
from pellucid.spec import LMHeadSpec

few = settings(max_examples=25)
WIDTH = 5


@st.composite
def labelled(draw: st.DrawFn, text: Tensor | None = None) -> Batch:
    text = draw(ids(max_time=7)) if text is None else text
    flat = st.lists(st.sampled_from([*range(VOCAB), IGNORE, IGNORE]), min_size=text.numel(), max_size=text.numel())
    return Batch(text, Tokens.plain(len(text), text.shape[1]), torch.tensor(draw(flat)).view_as(text))


def parts(spec: LMHeadSpec, seed: int, shape: torch.Size, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, the matrix, and the bias when there is one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*shape, WIDTH), (VOCAB, WIDTH)] + ([(VOCAB,)] if spec.bias else [])
    return [(torch.randn(s, generator=generator, dtype=torch.float64) * 2).to(dtype).requires_grad_() for s in shapes]


def ours(spec: LMHeadSpec, inputs: list[Tensor], labels: Tensor) -> Tensor:
    head = LMHead(LMHeadSpec(True, False, spec.soft_cap), VOCAB, WIDTH)
    if spec.bias:
        del head.bias
        head.bias = inputs[2]  # pyright: ignore[reportAttributeAccessIssue]
    return head.nll_sum(inputs[0], labels, inputs[1])


def theirs(spec: LMHeadSpec, inputs: list[Tensor], labels: Tensor) -> Tensor:
    logits = F.linear(*(x.double() for x in inputs))
    if spec.soft_cap is not None:
        logits = spec.soft_cap * torch.tanh(logits / spec.soft_cap)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")


head_specs = st.builds(LMHeadSpec, st.just(True), st.booleans(), st.sampled_from([None, 1.0, 30.0]))


@given(head_specs, labelled(), st.integers(0, 99), st.integers(1, 9), st.floats(-3, 3))
@settings(max_examples=40)
def test_value_and_gradient(spec: LMHeadSpec, batch: Batch, seed: int, rows: int, factor: float) -> None:
    """At every chunk length, 1 included, and for any gradient that comes from above."""
    inputs = parts(spec, seed, batch.ids.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "CHUNK_BYTES", rows * 4 * VOCAB)
        loss = ours(spec, inputs, batch.labels)
        got = torch.autograd.grad(loss * factor, inputs)
    expected = theirs(spec, inputs, batch.labels)
    torch.testing.assert_close(loss, expected)
    for mine, reference in zip(got, torch.autograd.grad(expected * factor, inputs), strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("soft_cap", [None, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias: bool, soft_cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK_BYTES", 2 * 4 * VOCAB)
    spec, labels = LMHeadSpec(True, bias, soft_cap), torch.tensor([[3, IGNORE, 0], [10, 5, 5]])
    inputs = parts(spec, 0, labels.shape)
    assert torch.autograd.gradcheck(lambda *xs: ours(spec, list(xs), labels), inputs)


@given(models, st.data())
@few
def test_nll_sum_is_the_sum_of_nll_is_cross_entropy(model: Decoder, data: st.DataObject) -> None:
    batch = data.draw(labelled())
    each, total = model.nll(batch), model.nll_sum(batch)
    logits = model(batch.ids, batch.tokens)
    expected = F.cross_entropy(logits.mT, batch.labels, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(each, expected, check_dtype=False, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total, expected.sum(), check_dtype=False, atol=1e-5, rtol=1e-5)
    assert not each[batch.labels == IGNORE].any()
    with model.taps(read="logits") as acts:  # the other way, which holds all logits
        torch.testing.assert_close(model.nll_sum(batch), total, check_dtype=False, atol=1e-5, rtol=1e-5)
    assert torch.equal(acts["logits"], logits)


@given(models, st.data())
@few
def test_the_model_s_gradient(model: Decoder, data: st.DataObject) -> None:
    """Tied or not: through the head and through everything below it."""
    batch = data.draw(labelled())
    weights = list(model.parameters())
    got = torch.autograd.grad(model.nll_sum(batch), weights)
    logits = model(batch.ids, batch.tokens).flatten(0, 1)
    expected = F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")
    for mine, reference in zip(got, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(mine, reference)


@given(st.data(), ids(st.just(4), max_time=6))
@few
def test_split_any_way_the_gradient_is_the_same(data: st.DataObject, text: Tensor) -> None:
    """Sums over micro-batches add up to the sum over the batch: the count is divided out once, at the end."""
    model, batch = build(EXAMPLE), data.draw(labelled(text))
    weights = list(model.parameters())
    whole = torch.autograd.grad(model.nll_sum(batch), weights)
    sizes = data.draw(st.sampled_from([[1, 3], [3, 1], [2, 2], [1, 1, 2], [1, 1, 1, 1]]))
    losses = [
        model.nll_sum(Batch(rows, Tokens.plain(len(rows), rows.shape[1]), labels))
        for rows, labels in zip(batch.ids.split(sizes), batch.labels.split(sizes), strict=True)
    ]
    for loss in losses:
        loss.backward()
    for weight, expected in zip(weights, whole, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, expected)


@given(head_specs, labelled(), st.integers(0, 9))
@few
def test_bfloat16_autocast_is_bounded(spec: LMHeadSpec, batch: Batch, seed: int) -> None:
    """Products in bfloat16, sums in float32, gradients in the dtype of the weights."""
    inputs = parts(spec, seed, batch.ids.shape, torch.float32)
    expected = theirs(spec, inputs, batch.labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(spec, inputs, batch.labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, atol=0.3, rtol=0.02)
    got, reference = torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)
    for mine, exact in zip(got, reference, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, atol=0.3, rtol=0.1)


def test_nothing_scored_costs_nothing() -> None:
    model, text = build(EXAMPLE), torch.tensor([[1, 2, 3]])
    loss = model.nll_sum(Batch(text, Tokens.plain(1, 3), torch.full((1, 3), IGNORE)))
    loss.backward()
    assert loss.item() == 0.0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_without_gradients_none_are_made() -> None:
    model, text = build(EXAMPLE).requires_grad_(False), torch.tensor([[1, 2, 3]])
    loss = model.nll_sum(Batch(text, Tokens.plain(1, 3), text.roll(-1)))
    assert not loss.requires_grad
    head_only = build(EXAMPLE).requires_grad_(False)
    head_only.final_norm.requires_grad_(True)
    head_only.nll_sum(Batch(text, Tokens.plain(1, 3), text.roll(-1))).backward()
    assert head_only.embed.tokens.weight.grad is None


def test_a_second_derivative_is_refused_not_wrong() -> None:
    spec, labels = LMHeadSpec(True), torch.tensor([[3, 0]])
    inputs = parts(spec, 0, labels.shape)
    (grad,) = torch.autograd.grad(ours(spec, inputs, labels).square(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_labels_that_are_the_inputs_are_refused() -> None:
    text = torch.arange(10)[None]
    with pytest.raises(DataError, match="were not shifted"):
        Batch(text, Tokens.plain(1, 10), text).refuse_unshifted()
    Batch(text, Tokens.plain(1, 10), text.roll(-1)).refuse_unshifted()


# --- controls --------------------------------------------------------------------------------------------------------


def test_control_a_mean_of_means_is_seen() -> None:
    """Uneven micro-batches: averaging their mean losses is another gradient."""
    model, text = build(EXAMPLE), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    labels = torch.tensor([[2, 3, 4, 5], [6, IGNORE, IGNORE, IGNORE]])
    each = model.nll(Batch(text, Tokens.plain(2, 4), labels))
    right, wrong = each.sum() / 5, (each[0].sum() / 4 + each[1].sum()) / 2
    weight = model.embed.tokens.weight
    a, b = (torch.autograd.grad(x, weight, retain_graph=True)[0].flatten() for x in (right, wrong))
    assert F.cosine_similarity(a, b, dim=0) < 0.99


def test_control_a_cap_left_out_of_the_gradient_is_seen() -> None:
    spec, labels = LMHeadSpec(True, False, 1.0), torch.tensor([[3, 0]])
    inputs = parts(spec, 0, labels.shape)
    got = torch.autograd.grad(ours(spec, inputs, labels), inputs)
    uncapped = torch.autograd.grad(ours(LMHeadSpec(True), inputs, labels), inputs)
    assert (got[0] - uncapped[0]).abs().max() > 0.1
