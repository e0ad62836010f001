"""Prefix language models: packed documents have prefixes of their own and are what they are alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, VOCAB, build, with_mask
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.data.packing import Packed, evaluation
from pellucid.data.store import TokenStore
from pellucid.engine.session import Session
from pellucid.predicates import PREFIX, Ahead, PrefixPart
from pellucid.spec import Causal, Mask, Prefix, Window

few = settings(max_examples=examples(20))
OWN, EOT, CONTEXT = Ahead(marked=True), 0, 20
documents = st.lists(st.integers(1, 9), min_size=2, max_size=12)


class Store(TokenStore):
    """Documents that each begin with EOT; a token is as many bytes as its id."""

    @property
    def eot(self) -> int:
        return EOT

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def __init__(self, lengths: list[int]):
        rng = np.random.default_rng(sum(lengths))
        lines = [np.concatenate(([EOT], rng.integers(1, VOCAB, n))) for n in lengths]
        tokens = np.concatenate([*lines, [EOT]]).astype(np.uint16)
        self.__dict__.update(tokens=tokens, token_bytes=np.arange(VOCAB).astype(np.uint16))


def packed(lengths: list[int], ahead: Ahead, seed: int = 0) -> Packed:
    return Packed(Store([*lengths, CONTEXT]), CONTEXT, seed, ahead)


def alone(batch: Batch) -> list[tuple[int, slice]]:
    """(row, places) of each document of a batch."""
    found: list[tuple[int, slice]] = []
    for row, seg in enumerate(batch.tokens.segments):
        for document in seg.unique():
            (places,) = torch.nonzero(seg == document, as_tuple=True)
            found.append((row, slice(int(places[0]), int(places[-1]) + 1)))
    return found


@given(documents, st.integers(0, 9))
@few
def test_packed_documents_with_prefixes_equal_separate_ones(lengths: list[int], seed: int) -> None:
    """Loss and gradient of packed rows are the sums over documents that each stand in a row of their own."""
    model = build(with_mask(EXAMPLE, Causal() | PrefixPart()))
    batch = packed(lengths, OWN, seed).samples(0, 2)
    part = batch.tokens.part
    assert part is not None
    total, weights = model.nll_sum(batch), list(model.parameters())
    apart = torch.zeros((), dtype=torch.float64)
    for row, places in alone(batch):
        ids = batch.ids[row, places][None]
        tokens = replace(Tokens.plain(ids.shape[0], ids.shape[1]), part=part[row, places][None])
        apart = apart + model.nll_sum(Batch(ids, tokens, batch.labels[row, places][None]))
    torch.testing.assert_close(total.double(), apart.double(), atol=1e-9, rtol=1e-9)
    grads = (torch.autograd.grad(x, weights, materialize_grads=True, allow_unused=True) for x in (total, apart))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)


@given(documents, st.integers(0, 9), st.sampled_from([OWN, Ahead(4), Ahead(3, True)]))
@few
def test_no_scored_label_is_seen_by_the_token_that_predicts_it(lengths: list[int], seed: int, ahead: Ahead) -> None:
    """The model's output at each scored place does not change with the token that is its label."""
    mask: Mask = Causal() | Prefix(ahead.first) | PrefixPart() if ahead.marked else Causal() | Prefix(ahead.first)
    model = build(with_mask(EXAMPLE, mask))
    batch = packed(lengths, ahead, seed).samples(0, 1)
    with torch.no_grad():
        before = model(batch.ids, batch.tokens)
        for t in torch.nonzero(batch.labels[0, :-1] != IGNORE)[:, 0].tolist():
            other = batch.ids.clone()
            other[0, t + 1] = (other[0, t + 1] + 1) % VOCAB
            assert torch.equal(model(other, batch.tokens)[0, t], before[0, t])


def test_control_a_label_within_the_prefix_is_seen() -> None:
    model = build(with_mask(EXAMPLE, Causal() | PrefixPart()))
    tokens = replace(Tokens.plain(1, 3), part=torch.tensor([[1, 1, 0]]))
    with torch.no_grad():
        one, other = (model(torch.tensor([[1, second, 3]]), tokens)[0, 0] for second in (2, 4))
    assert (one - other).abs().max() > 1e-3


@given(documents, st.integers(0, 9))
@few
def test_labels_and_bytes_left_out_are_those_of_the_prefix(lengths: list[int], seed: int) -> None:
    whole, prefixed = (packed(lengths, ahead, seed).samples(0, 3) for ahead in (Ahead(), OWN))
    part = prefixed.tokens.part
    assert part is not None and torch.equal(whole.ids, prefixed.ids) and whole.tokens.part is None
    for row, places in alone(prefixed):
        marks, labels = part[row, places].tolist(), prefixed.labels[row, places]
        n = sum(marks)
        assert marks == [PREFIX] * n + [0] * (len(marks) - n) and n >= 1
        assert (labels[: n - 1] == IGNORE).all()
        assert torch.equal(labels[n - 1 :], whole.labels[row, places][n - 1 :])
    assert prefixed.n_bytes == int(prefixed.labels[prefixed.labels != IGNORE].sum())


def test_prefixes_are_a_pure_function_of_the_sample_and_as_likely_each() -> None:
    rows, again = packed([5] * 400, OWN), packed([5] * 400, OWN)
    some = rows.samples(0, 1000)
    pairs = zip(again.samples(50, 1).tokens.place, some.tokens.place, strict=True)
    assert all(torch.equal(one[0], other[50]) for one, other in pairs)
    part, whole = some.tokens.place.part, [(row, at) for row, at in alone(some) if at.stop - at.start == 6]
    lengths = [int(part[row, places].sum()) for row, places in whole]
    counts = np.bincount(lengths, minlength=7)[1:]
    assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()
    assert not torch.equal(packed([5] * 400, OWN, seed=1).samples(0, 9).tokens.place.part, some.tokens.place.part[:9])


def test_evaluation_leaves_out_what_a_fixed_prefix_shows() -> None:
    store = Store([30])
    (batch,) = evaluation(store, 40, 1, None, Ahead(5))
    (whole,) = evaluation(store, 40, 1)
    assert (batch.labels[0, :4] == IGNORE).all() and torch.equal(batch.labels[0, 4:], whole.labels[0, 4:])
    assert batch.n_bytes == whole.n_bytes - int(whole.labels[0, :4].sum())


def read_anew(model: Any, ids: list[int], prompt: int) -> Tensor:
    """Logits after the last token, by one forward over all of them."""
    part = (torch.arange(len(ids)) < prompt).long()[None]
    with torch.no_grad():
        return model(torch.tensor([ids]), replace(Tokens.plain(1, len(ids)), part=part))[0, -1]


@pytest.mark.parametrize(
    "mask",
    [
        Causal() | Prefix(8),
        Causal() | PrefixPart(),
        Causal() & Window(3) | Prefix(6),
        Causal() | Prefix(3) | PrefixPart(),
    ],
)
@pytest.mark.parametrize("prompt", [1, 3, 7, 8, 11])
def test_generation_is_the_model_however_long_prompt_and_prefix_are(mask: Mask, prompt: int) -> None:
    """Before, a prompt no longer than the prefix was cached without its last token, which others should have seen."""
    model = build(with_mask(EXAMPLE, mask))
    session, ids = Session(model, capacity=CONTEXT), [(3 * n + 1) % VOCAB for n in range(prompt)]
    session.add(ids)
    logits = session.read()[0, -1]
    for _ in range(6):
        torch.testing.assert_close(logits, read_anew(model, ids, prompt), atol=1e-9, rtol=1e-9)
        ids.append(int(logits.argmax()))
        logits = session.read([ids[-1:]])[0, -1]


def test_an_edit_of_logits_reaches_rows_that_are_within_their_prefix() -> None:
    """Such a row is read as a whole each time, its states first."""
    model = build(with_mask(EXAMPLE, Causal() | Prefix(6)))
    session = Session(model)
    session.add([1, 2, 3])
    with torch.no_grad(), model.taps(edit={"logits": lambda x: 0 * x}):
        assert not session.read().any()
