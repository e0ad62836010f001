"""The loss in chunks is cross-entropy, and so is its gradient: against torch in float64."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, VOCAB, build, ids, models
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.errors import DataError
from pellucid.nn import loss
from pellucid.nn.loss import Reduction
from pellucid.nn.models import Decoder

few = settings(max_examples=examples(25))
WIDTH = 5


@st.composite
def labelled(draw: st.DrawFn, text: Tensor | None = None) -> Batch:
    text = draw(ids(max_time=7)) if text is None else text
    flat = st.lists(st.sampled_from([*range(VOCAB), IGNORE, IGNORE]), min_size=text.numel(), max_size=text.numel())
    return Batch(text, Tokens.plain(len(text), text.shape[1]), torch.tensor(draw(flat)).view_as(text))


@dataclass
class Case:
    """One call. inputs: states, matrix, and the bias when there is one."""

    inputs: list[Tensor]
    labels: Tensor
    soft_cap: float | None = None
    smoothing: float = 0.0
    weights: Tensor | None = None
    reduction: Reduction = "sum"

    def ours(self, *inputs: Tensor, as_function: bool = False) -> Tensor:
        """``as_function``: what multiplies is no plain matrix, but something that can be called."""
        x, table, bias = (*(inputs or self.inputs), None)[:3]
        assert x is not None and table is not None
        product = (lambda y: F.linear(y, table)) if as_function else table
        return loss.nll(
            x, product, self.labels, bias=bias, soft_cap=self.soft_cap, smoothing=self.smoothing,
            weights=self.weights, reduction=self.reduction,
        )  # fmt: skip

    def torchs(self) -> Tensor:
        """All logits at once, and torch's cross-entropy, in float64."""
        logits = F.linear(*(x.double() for x in self.inputs))
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        each = F.cross_entropy(
            logits.flatten(0, 1), self.labels.flatten(), ignore_index=IGNORE, label_smoothing=self.smoothing,
            reduction="none",
        ).view(self.labels.shape)  # fmt: skip
        each = each if self.weights is None else each * self.weights
        return each.sum() if self.reduction == "sum" else each


def case(labels: Tensor, bias: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*labels.shape, WIDTH), (VOCAB, WIDTH), *([(VOCAB,)] if bias else [])]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) * 2 for s in shapes]
    if options.pop("weighted", False):
        options["weights"] = torch.rand(labels.shape, generator=generator, dtype=torch.float64) * 3
    return Case([x.to(dtype).requires_grad_() for x in inputs], labels, **options)


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Case:
    return case(
        draw(labelled()).labels, draw(st.booleans()), draw(st.integers(0, 99)), dtype,
        soft_cap=draw(st.sampled_from([None, 1.0, 30.0])), smoothing=draw(st.sampled_from([0.0, 0.1, 0.7])),
        weighted=draw(st.booleans()), reduction=draw(st.sampled_from(["sum", "tokens"])),
    )  # fmt: skip


def chunks_of(tokens: int) -> Any:
    """A context in which logits of so many tokens exist at a time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loss, "CHUNK_BYTES", tokens * 4 * VOCAB)
    return closing(cast(Any, SimpleNamespace(close=patch.undo)))


@given(cases(), st.integers(1, 9), st.booleans(), st.integers(0, 99))
@settings(max_examples=examples(150))
def test_value_and_gradient_equal_cross_entropy(one: Case, tokens: int, as_function: bool, seed: int) -> None:
    """At every chunk length, 1 included, summed or not, and for any gradient that comes from above."""
    expected = one.torchs()
    above = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with chunks_of(tokens):
        value = one.ours(as_function=as_function)
        got = torch.autograd.grad((value * above).sum(), one.inputs)
    torch.testing.assert_close(value, expected)
    for mine, reference in zip(got, torch.autograd.grad((expected * above).sum(), one.inputs), strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("reduction", ["sum", "tokens"])
@pytest.mark.parametrize("soft_cap", [None, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias: bool, soft_cap: float | None, reduction: str) -> None:
    labels = torch.tensor([[3, IGNORE, 0], [10, 5, 5]])
    one = case(labels, bias, soft_cap=soft_cap, smoothing=0.2, weighted=True, reduction=reduction)
    with chunks_of(2):
        assert torch.autograd.gradcheck(one.ours, one.inputs)


def test_gradient_of_weights_is_the_loss_of_each_token() -> None:
    one = case(torch.tensor([[3, IGNORE, 0], [10, 5, 5]]), weighted=True)
    assert one.weights is not None
    (grad,) = torch.autograd.grad(replace(one, weights=one.weights.requires_grad_()).ours(), one.weights)
    torch.testing.assert_close(grad, replace(one, weights=None, reduction="tokens").torchs())


class Widest(TorchDispatchMode):
    """The most elements that a tensor made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            self.most = max(self.most, x.numel() if isinstance(x, Tensor) else 0)
        return out


def widest(one: Case, **how: Any) -> int:
    with chunks_of(4), Widest() as seen:
        one.ours(**how).sum().backward()
    return seen.most


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "tokens"])
def test_no_tensor_of_all_logits_is_ever_made(reduction: str, as_function: bool) -> None:
    """Neither forward nor backward: the largest is the states, or one chunk's logits."""
    one = case(torch.arange(80).view(2, 40) % VOCAB, True, smoothing=0.1, soft_cap=3.0, reduction=reduction)
    assert widest(one, as_function=as_function) == max(80 * WIDTH, 4 * VOCAB) < 80 * VOCAB


def test_control_all_logits_are_seen() -> None:
    one = case(torch.arange(80).view(2, 40) % VOCAB)
    with Widest() as seen:
        one.torchs()
    assert seen.most == 80 * VOCAB


@given(models, st.data())
@few
def test_nll_sum_is_the_sum_of_logprobs_is_cross_entropy(model: Decoder, data: st.DataObject) -> None:
    batch = data.draw(labelled())
    each, total = model.logprobs(batch), model.nll_sum(batch)
    logits = model(batch.ids, batch.tokens)
    expected = F.cross_entropy(logits.mT, batch.labels, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(-each, expected, check_dtype=False, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total, expected.sum(), check_dtype=False, atol=1e-5, rtol=1e-5)
    assert not each[batch.labels == IGNORE].any()
    again, likeliest = model.scores(batch)
    assert torch.equal(again, each)
    assert torch.equal(likeliest, (logits.argmax(-1) == batch.labels) | (batch.labels == IGNORE))


@given(models, st.data())
@few
def test_weights_of_a_batch_weigh_its_labels(model: Decoder, data: st.DataObject) -> None:
    batch = data.draw(labelled())
    weights = torch.arange(batch.labels.numel(), dtype=torch.float64).view(batch.labels.shape)
    got = model.nll_sum(replace(batch, weights=weights))
    torch.testing.assert_close(got, -(model.logprobs(batch) * weights).sum(), check_dtype=False)


def test_loss_is_the_same_number_whoever_listens() -> None:
    """Before, a tap on ``logits`` switched the loss to another computation, which held all logits."""
    model, text = build(EXAMPLE), torch.tensor([[1, 2, 3]])
    batch = Batch(text, Tokens.plain(1, 3), text.roll(-1))
    alone = model.nll_sum(batch)
    with model.taps(read=["final_norm", "logits"]) as acts:
        assert torch.equal(model.nll_sum(batch), alone)
    assert "final_norm" in acts and "logits" not in acts


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
    for each in losses:
        each.backward()
    for weight, expected in zip(weights, whole, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, expected)


@given(cases(torch.float32))
@few
def test_bfloat16_autocast_is_bounded(one: Case) -> None:
    """Products in bfloat16, sums in float32, gradients in the dtype of the weights."""
    one, expected = replace(one, weights=None), replace(one, weights=None).torchs()
    with torch.autocast("cpu", torch.bfloat16):
        value = one.ours()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, atol=0.3, rtol=0.02)
    got, reference = torch.autograd.grad(value.sum(), one.inputs), torch.autograd.grad(expected.sum(), one.inputs)
    for mine, exact in zip(got, reference, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, atol=0.3, rtol=0.1)


def test_nothing_scored_costs_nothing() -> None:
    model, text = build(EXAMPLE), torch.tensor([[1, 2, 3]])
    total = model.nll_sum(Batch(text, Tokens.plain(1, 3), torch.full((1, 3), IGNORE)))
    total.backward()
    assert total.item() == 0.0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_without_gradients_none_are_made() -> None:
    model, text = build(EXAMPLE).requires_grad_(False), torch.tensor([[1, 2, 3]])
    total = model.nll_sum(Batch(text, Tokens.plain(1, 3), text.roll(-1)))
    assert not total.requires_grad
    head_only = build(EXAMPLE).requires_grad_(False)
    head_only.final_norm.requires_grad_(True)
    head_only.nll_sum(Batch(text, Tokens.plain(1, 3), text.roll(-1))).backward()
    assert head_only.embed.tokens.weight.grad is None


@pytest.mark.parametrize("reduction", ["sum", "tokens"])
def test_a_second_derivative_is_refused_not_wrong(reduction: str) -> None:
    one = case(torch.tensor([[3, 0]]), reduction=reduction)
    (grad,) = torch.autograd.grad(one.ours().square().sum(), one.inputs[0], create_graph=True)
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
    each = -model.logprobs(Batch(text, Tokens.plain(2, 4), labels))
    right, wrong = each.sum() / 5, (each[0].sum() / 4 + each[1].sum()) / 2
    weight = model.embed.tokens.weight
    a, b = (torch.autograd.grad(x, weight, retain_graph=True)[0].flatten() for x in (right, wrong))
    assert F.cosine_similarity(a, b, dim=0) < 0.99


@pytest.mark.parametrize("left_out", [{"soft_cap": None}, {"smoothing": 0.0}, {"weights": None}])
def test_control_a_part_left_out_of_the_gradient_is_seen(left_out: dict[str, Any]) -> None:
    one = case(torch.tensor([[3, 0], [1, 9]]), soft_cap=1.0, smoothing=0.3, weighted=True)
    got, without = (torch.autograd.grad(x.ours(), one.inputs) for x in (one, replace(one, **left_out)))
    assert (got[0] - without[0]).abs().max() > 0.05
