"""What stands beside a document changes nothing: padding on any side, other rows, other documents of a packed row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CONTEXT, EXAMPLE, build, chunks, close, encoder_specs, ids, masks, padded
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.models import Decoder
from pellucid.spec import EmbedSpec, LearnedSpec

few = settings(max_examples=examples(25))
any_mask = encoder_specs(masks).map(build)  # none of this needs a causal model
Rows = tuple[list[Tensor], Tensor, Tensor]


def logits(model: Decoder, text: Tensor, tokens: Tokens | None = None) -> Tensor:
    with torch.no_grad():
        return model(text, tokens)


def packed(rows: list[Tensor], room: int) -> tuple[Tensor, Tokens]:
    """The documents one after the other in one row, padding behind."""
    seg = torch.cat([torch.full((len(row),), i) for i, row in enumerate(rows)] + [torch.full((room,), -1)])
    text = torch.cat([*rows, torch.zeros(room, dtype=torch.long)])
    return text[None], Tokens.packed(seg[None])


@given(any_mask, padded())
@few
def test_padding_anywhere_changes_nothing(model: Decoder, drawn: Rows) -> None:
    rows, text, valid = drawn
    together = logits(model, text, Tokens.padded(valid))
    assert together.isfinite().all()
    for i, row in enumerate(rows):
        close(together[i, valid[i]], logits(model, row[None])[0])


@given(any_mask, ids(st.just(4)))
@few
def test_batched_is_single(model: Decoder, text: Tensor) -> None:
    together = logits(model, text)
    for i in range(4):
        close(together[i], logits(model, text[i : i + 1])[0])


@given(any_mask, padded(), st.integers(0, 3))
@few
def test_packed_is_separate(model: Decoder, drawn: Rows, room: int) -> None:
    rows, _, _ = drawn
    got = logits(model, *packed(rows, room))[0]
    apart = torch.cat([logits(model, row[None])[0] for row in rows])
    close(got[: len(apart)], apart)
    assert got.isfinite().all()


@given(any_mask, padded(), st.integers(0, 3))
@few
def test_no_gradient_crosses_documents_or_touches_padding(model: Decoder, drawn: Rows, room: int) -> None:
    rows, _, _ = drawn
    n = len(rows[0])
    with model.taps(read="embed") as acts:
        out = model(*packed(rows, room))[:, :n].square().sum()
    (grad,) = torch.autograd.grad(out, acts["embed"])
    assert grad.isfinite().all() and not grad[:, n:].any()


@given(ids(st.just(2), min_time=2), st.data())
@few
def test_tokens_count_positions(text: Tensor, data: st.DataObject) -> None:
    time = text.shape[1]
    lengths = data.draw(chunks(time))
    seg = torch.cat([torch.full((2, n), i) for i, n in enumerate(lengths)], 1)
    expected = [p for n in lengths for p in range(n)]
    assert Tokens.packed(seg).pos.tolist() == [expected] * 2
    assert Tokens.plain(2, time, 3).pos.tolist() == [list(range(3, 3 + time))] * 2
    valid = torch.arange(time) % 2 == 1
    assert Tokens.padded(valid.expand(2, -1)).pos.tolist() == [[i // 2 if i % 2 else -1 for i in range(time)]] * 2


@given(any_mask, ids())
@few
def test_tokens_that_say_what_is_plain_change_nothing(model: Decoder, text: Tensor) -> None:
    """The fast paths (one table of positions, a proved mask) against the general one."""
    plain = Tokens.plain(len(text), text.shape[1])
    for tokens in (Tokens(plain.pos), Tokens(plain.pos, torch.zeros_like(plain.pos))):
        close(logits(model, text, tokens), logits(model, text, plain))


@pytest.mark.parametrize("start", [0, None])
def test_positions_beyond_the_learned_ones_are_refused(start: int | None) -> None:
    model = build(replace(EXAMPLE, embed=EmbedSpec(LearnedSpec())))
    text = torch.zeros(1, CONTEXT + 1, dtype=torch.long)
    tokens = Tokens(torch.arange(CONTEXT + 1)[None], None, start)
    assert logits(model, text[:, 1:]).isfinite().all()
    with pytest.raises(DataError, match=rf"{CONTEXT + 1} positions, but the model has learned {CONTEXT}"):
        logits(model, text, tokens)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for wrong in (-1, 11):
        with pytest.raises(DataError, match=rf"token id {wrong} is outside the vocabulary 0..10"):
            logits(build(EXAMPLE), torch.tensor([[1, wrong]]))


# --- controls --------------------------------------------------------------------------------------------------------

ROW, VALID = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([[False, True, True, False, True, True, True]])


def padded_row() -> Tensor:
    text = torch.full((1, 7), 9)
    text[VALID] = ROW
    return text


def test_control_padding_without_a_word_about_it_is_seen() -> None:
    model = build(EXAMPLE)
    wrong = logits(model, padded_row())[VALID]
    right = logits(model, padded_row(), Tokens.padded(VALID))[VALID]
    alone = logits(model, ROW[None])[0]
    close(right, alone)
    assert (wrong - alone).abs().max() > 1e-3


def test_control_padding_that_is_hidden_but_counted_is_seen() -> None:
    """Positions must count the valid tokens: a gap in the middle is not a distance."""
    counted = Tokens(torch.arange(7)[None].masked_fill(~VALID, -1))
    wrong = logits(build(EXAMPLE), padded_row(), counted)[VALID]
    assert (wrong - logits(build(EXAMPLE), ROW[None])[0]).abs().max() > 1e-3


def test_control_packing_without_segments_is_seen() -> None:
    model, documents = build(EXAMPLE), [ROW[:3], ROW]
    text, tokens = packed(documents, 0)
    apart = torch.cat([logits(model, d[None])[0] for d in documents])
    close(logits(model, text, tokens)[0], apart)
    assert (logits(model, text, Tokens(tokens.pos))[0] - apart).abs().max() > 1e-3
