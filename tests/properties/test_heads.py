"""What stands on an encoder: one vector or class a row, one class a token, hidden tokens; against torch, by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

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
    classifiers,
    close,
    encoder_specs,
    masked_heads,
    masks,
    padded,
    poolers,
    taggers,
)
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.errors import DataError
from pellucid.nn import loss as loss_module
from pellucid.nn.heads import PoolerHead
from pellucid.nn.init import initialise
from pellucid.nn.models import Encoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    ClassifierHeadSpec,
    EmbedSpec,
    EncoderSpec,
    Full,
    GatedFFNSpec,
    LearnedSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    RMSNormSpec,
    StackSpec,
    TaggerHeadSpec,
)
from pellucid.train.objectives import nll
from pellucid.train.optim import build_optimizers
from pellucid.train.step import accumulate, step

few = settings(max_examples=examples(20))
WIDTH = 5
SIZES = SimpleNamespace(vocab_size=VOCAB, d_model=WIDTH, d_embed=WIDTH)
PLAIN = as_encoder(EXAMPLE)
Rows = tuple[list[Tensor], Tensor, Tensor]


def encoders(head: st.SearchStrategy[Any]) -> st.SearchStrategy[Encoder]:
    return encoder_specs(masks, head).map(build)


def states(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- one vector a row -------------------------------------------------------------------------------------------------


def pooled(spec: PoolerHeadSpec, head: PoolerHead, row: Tensor) -> Tensor:
    """The vector of one row (time, width) without padding, by the words of its spec."""
    takes = {"first": row[:1], "last": row[-1:], "mean": row.mean(0, keepdim=True), "max": row}
    y = takes[spec.take].amax(0) if len(row) else torch.zeros(row.shape[-1], dtype=row.dtype)
    if head.dense is not None:
        y = {"tanh": torch.tanh, "relu": torch.relu}[spec.activation](head.dense.weight @ y + head.dense.bias)
    return y / y.norm().clamp(min=1e-12) if spec.normalise else y


@given(poolers, padded(), st.booleans(), st.integers(0, 9))
@settings(max_examples=examples(50))
def test_a_pooler_is_what_its_spec_says(spec: PoolerHeadSpec, drawn: Rows, empty: bool, seed: int) -> None:
    """Padding anywhere, and perhaps a row of nothing else; finite, and so is its gradient."""
    _, text, valid = drawn
    if empty:
        valid = torch.cat((valid, torch.zeros_like(valid[:1])))
    x = states(valid.shape, seed).requires_grad_()
    head = PoolerHead(spec, SIZES).double()  # pyright: ignore[reportArgumentType]
    got = head(x, Tokens.padded(valid))
    assert got.shape == (len(valid), WIDTH)
    for i, vector in enumerate(got):
        close(vector, pooled(spec, head, x[i, valid[i]]))
    (grad,) = torch.autograd.grad(got.square().sum() + got.sum(), x)
    assert grad.isfinite().all() and not grad[~valid].any()
    assert text.shape[1] == valid.shape[1]


@given(poolers, padded(), st.integers(0, 9))
@few
def test_contents_of_padding_do_not_matter(spec: PoolerHeadSpec, drawn: Rows, seed: int) -> None:
    """Not even what is not finite, except where it is multiplied by zero (a mean)."""
    _, _, valid = drawn
    head, x = PoolerHead(spec, SIZES).double(), states(valid.shape, seed)  # pyright: ignore[reportArgumentType]
    other = x.masked_fill(~valid[..., None], 1e6 if spec.take == "mean" else torch.inf)
    assert torch.equal(head(x, Tokens.padded(valid)), head(other, Tokens.padded(valid)))


def test_lengths_of_one_make_cosines() -> None:
    head = PoolerHead(PoolerHeadSpec("mean", dense=False, normalise=True), SIZES).double()  # pyright: ignore[reportArgumentType]
    x = states(torch.Size((3, 4)), 0)
    vectors = head(x, Tokens.plain(3, 4))
    close(vectors @ vectors.T, F.cosine_similarity(x.mean(1)[:, None], x.mean(1)[None], dim=-1))


def test_control_a_pooler_that_counts_padding_is_seen() -> None:
    x, valid = states(torch.Size((1, 4)), 0), torch.tensor([[False, True, True, False]])
    for take in ("first", "last", "mean", "max"):
        head = PoolerHead(PoolerHeadSpec(take, dense=False), SIZES).double()  # pyright: ignore[reportArgumentType]
        assert (head(x, Tokens.padded(valid)) - head(x, Tokens.plain(1, 4))).abs().max() > 1e-2, take


@given(encoders(poolers | classifiers), padded())
@few
def test_rows_are_for_themselves(model: Encoder, drawn: Rows) -> None:
    """Batched, with padding anywhere: the vector, or the class, of each text alone."""
    rows, text, valid = drawn
    with torch.no_grad():
        together = model(text, Tokens.padded(valid))
        for i, row in enumerate(rows):
            close(together[i], model(row[None])[0])
    head: Any = model.spec.head
    width = (1, head.n_classes) if isinstance(head, ClassifierHeadSpec) else (8,)
    assert together.shape == (len(rows), *width)


@given(encoders(poolers | classifiers))
@few
def test_packed_rows_are_refused(model: Encoder) -> None:
    text, tokens = torch.tensor([[1, 2, 3]]), Tokens.packed(torch.tensor([[0, 0, 1]]))
    with pytest.raises(DataError, match="a packed row is several texts"):
        model(text, tokens)
    assert model.states(text, tokens).shape == (1, 3, 8)


@given(encoders(poolers | classifiers), padded())
@few
def test_the_pooled_vector_is_a_point(model: Encoder, drawn: Rows) -> None:
    _, text, valid = drawn
    classifies = isinstance(model.spec.head, ClassifierHeadSpec)
    point = "head.pooler.pooled" if classifies else "head.pooled"
    with torch.no_grad(), model.taps(read=point) as acts:
        out = model(text, Tokens.padded(valid))
    if classifies:
        head = cast(Any, model.head)
        close(out[:, 0], acts[point] @ head.out.weight.T + head.out.bias)
    else:
        assert torch.equal(out, acts[point]) and "logits" not in model.point_names()


# --- losses -----------------------------------------------------------------------------------------------------------


@st.composite
def labelled(draw: st.DrawFn, model: Encoder) -> Batch:
    """Rows with padding, and labels of the shape that the head predicts; some not scored."""
    _, text, valid = draw(padded())
    head: Any = model.spec.head
    shape = (len(text), 1) if isinstance(head, ClassifierHeadSpec) else text.shape
    classes = VOCAB if isinstance(head, MaskedLMHeadSpec) else head.n_classes
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    labels = torch.randint(classes, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.3] = IGNORE
    if not isinstance(head, ClassifierHeadSpec):
        labels = labels.masked_fill(~valid, IGNORE)
    return Batch(text, Tokens.padded(valid), labels)


@given(encoders(st.one_of(masked_heads, classifiers, taggers)), st.data())
@settings(max_examples=examples(40))
def test_the_loss_is_cross_entropy_and_so_is_its_gradient(model: Encoder, data: st.DataObject) -> None:
    batch = data.draw(labelled(model))
    with pytest.MonkeyPatch.context() as patch:  # logits of hidden tokens come in chunks: here of few rows
        patch.setattr(loss_module, "CHUNK_BYTES", data.draw(st.integers(1, 9)) * 4 * VOCAB)
        loss = nll(model, batch)
    out = model(batch.ids, batch.tokens)
    expected = F.cross_entropy(out.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(loss, expected, check_dtype=False)
    assert nll.count(batch) == int((batch.labels != IGNORE).sum())
    weights = list(model.parameters())
    got, reference = (torch.autograd.grad(x, weights, materialize_grads=True) for x in (loss, expected))
    for mine, theirs in zip(got, reference, strict=True):
        torch.testing.assert_close(mine, theirs)
    each = F.cross_entropy(out.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="none")
    logprobs, (again, likeliest) = model.logprobs(batch), model.scores(batch)
    torch.testing.assert_close(logprobs, -each.view(batch.labels.shape), check_dtype=False)
    assert torch.equal(logprobs, again)
    assert torch.equal(likeliest, (out.argmax(-1) == batch.labels) | (batch.labels == IGNORE))


@given(masked_heads, st.integers(0, 9))
@few
def test_hidden_tokens_are_predicted_by_the_formula(spec: MaskedLMHeadSpec, seed: int) -> None:
    """norm(act(dense(x))) · tableᵀ + bias, with the embedding's table or the head's own."""
    model: Any = build(replace(PLAIN, head=spec), seed)
    head: Any = model.head
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    activation = {
        "relu": F.relu,
        "relu2": lambda y: F.relu(y) ** 2,
        "gelu": F.gelu,
        "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
        "silu": F.silu,
    }[spec.activation]
    inner = head.norm(activation(x @ head.dense.weight.T + head.dense.bias))
    table = model.embed.tokens.weight if spec.tied else head.weight
    expected = inner @ table.T + (head.bias if spec.bias else 0.0)
    close(head(x, model.embed.tokens.weight), expected)
    assert (head.weight is None) == spec.tied and (head.bias is None) != spec.bias
    close(model.unembed(x), head(model.final_norm(x), model.embed.tokens.weight))


@given(encoders(taggers), padded())
@few
def test_a_tagger_says_one_class_a_token(model: Encoder, drawn: Rows) -> None:
    _, text, valid = drawn
    head = cast(Any, model.head)
    with torch.no_grad():
        out, hidden = (f(text, Tokens.padded(valid)) for f in (model, model.states))
        close(out, hidden @ head.out.weight.T + head.out.bias)
        packed = torch.arange(text.shape[1]).div(2, rounding_mode="floor").expand_as(text)
        assert model(text, Tokens.packed(packed)).shape == out.shape  # of packed rows, too


@pytest.mark.parametrize("head", [None, PoolerHeadSpec()])
def test_model_that_predicts_nothing_has_no_loss(head: PoolerHeadSpec | None) -> None:
    model, text = build(replace(PLAIN, head=head)), torch.tensor([[1, 2, 3]])
    with pytest.raises(DataError, match="this Encoder predicts nothing"):
        model.nll_sum(Batch(text, Tokens.plain(1, 3), text))
    with pytest.raises(DataError, match="no head that predicts tokens"):
        model.unembed(model.states(text))
    assert torch.equal(model(text), model.states(text)) == (head is None)


def test_kinds_of_tokens_are_added_and_refused() -> None:
    """Which sentence of a pair: a vector each, the first where nothing is said; a model without them wants none."""
    model = build(replace(PLAIN, embed=EmbedSpec(n_types=2)))
    text = torch.tensor([[1, 2, 3]])
    first, second = torch.zeros_like(text), torch.tensor([[0, 0, 1]])
    with torch.no_grad():
        assert torch.equal(model(text), model(text, None, first))
        assert (model(text) - model(text, None, second)).abs().max() > 1e-3
        tables: Any = model.embed
        added = tables.tokens(text) + tables.types(second)
        close(tables(text, Tokens.plain(1, 3), second), added)
    batch = Batch(text, Tokens.plain(1, 3), text.roll(-1), types=second)
    assert nll(model, batch) != nll(model, replace(batch, types=None))
    with pytest.raises(DataError, match="this model knows none"):
        build(PLAIN)(text, None, first)


# --- they learn -------------------------------------------------------------------------------------------------------

HIDDEN = VOCAB - 1  # stands where a token is to be guessed


def small(head: Any) -> Encoder:
    """One layer of full attention, 16 wide."""
    block = BlockSpec(AttentionSpec(4, 4, 4, Full()), GatedFFNSpec(32), RMSNormSpec())
    stack = StackSpec(16, (block,), RMSNormSpec())
    return initialise(Encoder(EncoderSpec(VOCAB, 8, EmbedSpec(LearnedSpec()), stack, head)), "fan_in", seed=1)


def task(head: Any, seed: int, n: int = 32, time: int = 6) -> Batch:
    """A class: whether there is a 3. A tag: whether a token's left neighbour is smaller. A hidden token:
    that of the other half, which says the same."""
    text = torch.randint(HIDDEN, (n, time), generator=torch.Generator().manual_seed(seed))
    tokens = Tokens.plain(n, time)
    if isinstance(head, ClassifierHeadSpec):
        return Batch(text, tokens, (text == 3).any(1, keepdim=True).long())
    if isinstance(head, TaggerHeadSpec):
        return Batch(text, tokens, (text < text.roll(1, 1)).long())
    text = torch.cat((text[:, : time // 2],) * 2, 1)
    hide = torch.zeros_like(text, dtype=torch.bool)
    hide[torch.arange(n), torch.arange(n) % time] = True
    return Batch(text.masked_fill(hide, HIDDEN), tokens, text.masked_fill(~hide, IGNORE))


@pytest.mark.parametrize(
    ("head", "below"),
    [(ClassifierHeadSpec(2, PoolerHeadSpec("mean")), 0.5), (TaggerHeadSpec(2), 0.3), (MaskedLMHeadSpec(), 0.5)],
    ids=["classifier", "tagger", "masked"],
)
def test_classifier_learns(head: Any, below: float) -> None:
    """By the step that trains everything else, on rows that it has never seen."""
    model = small(head)
    optimizers = build_optimizers(model, "adamw", learning_rate=0.02, matrix_learning_rate=0.02, weight_decay=0.0)
    losses = [step(model, optimizers, nll, [task(head, seed)]).loss for seed in range(120)]
    after, count = accumulate(model, nll, [task(head, 999, n=128)])
    assert losses[0] > 1.2 * below and float(after.detach()) < below
    assert count == {ClassifierHeadSpec: 128, TaggerHeadSpec: 128 * 6, MaskedLMHeadSpec: 128}[type(head)]
