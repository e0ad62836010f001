"""A session says of each row what the model says of it alone, whatever the other rows do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CONTEXT, EXAMPLE, VOCAB, build, close, encoder_decoders, models, specs, with_mask
from torch import Tensor

from pellucid import build as build_with_weights
from pellucid.batch import Tokens
from pellucid.designs import DESIGNS
from pellucid.engine.reader import Reader, Row
from pellucid.engine.session import Session, greedy
from pellucid.errors import DataError, UsageError
from pellucid.nn.cache import Cache
from pellucid.nn.models import EncoderDecoder
from pellucid.nn.slots import Ring
from pellucid.predicates import PrefixPart
from pellucid.spec import Causal, EmbedSpec, EncoderSpec, Prefix, Strided, Window

PLAIN, WINDOWED = (build(with_mask(EXAMPLE, mask)) for mask in (Causal(), Causal() & Window(3)))
few = settings(max_examples=examples(25))
masked = st.one_of(
    st.integers(1, 5).map(lambda n: Causal() & Window(n)),
    st.integers(1, 8).map(lambda n: Causal() | Prefix(n)),
    st.just(Causal() | PrefixPart()),
)
any_model = st.one_of(models, st.builds(with_mask, specs(), masked).map(build), encoder_decoders)
some_ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7)
verbs = st.sampled_from(
    ["add", "add", "read", "read", "ragged", "ragged", "again", "rewind", "replace", "fork", "drop"]
)


def alone(model: Any, row: Row, end: int) -> Tensor:
    """Logits after the first ``end`` tokens of a row, read at once and without a cache."""
    ids = torch.tensor([row.ids[:end]])
    part = (torch.arange(end) < row.n_prompt).long()[None]
    tokens = Tokens(torch.arange(end)[None], part=part)
    with torch.no_grad():
        if isinstance(model, EncoderDecoder):
            assert row.source is not None
            return model(torch.tensor([list(row.source)]), ids, None, tokens)[0, -1]
        return model(ids, tokens)[0, -1]


class Talk:
    """A session, and the verbs of a drawn play; each read is compared with reading every row alone."""

    def __init__(self, model: Any, data: st.DataObject, **options: Any):
        self.model, self.data = model, data
        self.session = Session(model, capacity=CONTEXT, **options)
        self.n_read = 0

    def any_row(self) -> Row:
        return self.data.draw(st.sampled_from(self.session.rows))

    def play(self, verb: str) -> None:
        rows = self.session.rows
        if verb == "add" and len(rows) < 5:
            source = self.data.draw(some_ids) if isinstance(self.model, EncoderDecoder) else None
            self.session.add(self.data.draw(some_ids), source)
        elif not rows:
            return
        elif verb == "again":
            self.read(None)
        elif verb in ("read", "ragged"):
            counts = [self.data.draw(st.integers(0, 3)) if verb == "ragged" else 1 for _ in rows]
            counts = [min(n, CONTEXT - len(row.ids)) for n, row in zip(counts, rows, strict=True)]
            self.read([self.data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=n, max_size=n)) for n in counts])
        elif verb == "rewind":
            row = self.any_row()
            self.session.rewind(row, self.data.draw(st.integers(0, min(4, len(row.ids) - 1))))
        elif verb == "replace":
            row = self.any_row()
            ids = row.ids[: self.data.draw(st.integers(0, len(row.ids)))] + self.data.draw(some_ids)
            self.session.rewind_to(row, ids[:CONTEXT])
            assert row.ids == ids[:CONTEXT]
        elif verb == "fork":
            self.session.fork(self.any_row())
        elif verb == "drop":
            self.session.drop(self.any_row())

    def read(self, new: list[list[int]] | None) -> None:
        rows = self.session.rows
        logits = self.session.read(new)
        for row, line in enumerate([[0]] * len(rows) if new is None else new):
            for i in range(len(line)):
                end = len(rows[row].ids) - len(line) + i + 1
                close(logits[row, i], alone(self.model, rows[row], end))
                self.n_read += 1


@given(any_model, st.lists(verbs, min_size=4, max_size=14), st.integers(0, 3), st.booleans(), st.data())
@settings(max_examples=examples(20))
def test_rows_of_any_play_read_as_each_row_alone(
    model: Any, play: list[str], slack: int, fixed: bool, data: st.DataObject
) -> None:
    talk = Talk(model, data, slack=slack, fixed=fixed)
    for verb in ["add", *play, "read"]:
        talk.play(verb)


def test_mask_that_hides_a_prefix_from_itself_is_told_the_prefix() -> None:
    """It is causal, so nothing must be read at once; yet what it hides depends on the part of each token."""
    model = build(with_mask(EXAMPLE, Causal() & ~(Strided(5) | PrefixPart())))
    session = Session(model, capacity=12)
    row = session.add([3, 1, 4, 1, 5])
    close(session.read()[0, 0], alone(model, row, 5))
    close(session.read([[2]])[0, 0], alone(model, row, 6))
    with pytest.raises(AssertionError):
        close(session.read()[0, 0], model(torch.tensor([row.ids]))[0, -1])


@pytest.mark.parametrize("model", [PLAIN, WINDOWED])
def test_rows_of_a_session_read_as_each_row_alone(model: Any) -> None:
    session = Session(model, capacity=12)
    a, b = session.add([1, 2, 3]), session.add([4])
    logits = session.read()
    close(logits[:, 0], torch.stack([alone(model, row, len(row.ids)) for row in (a, b)]))
    logits = session.read([[5], [6, 7]])
    close(logits[0, 0], alone(model, a, 4))
    close(logits[1], torch.stack([alone(model, b, 2), alone(model, b, 3)]))
    session.rewind(b, 1)
    c = session.fork(a)
    session.drop(a)
    assert session.rows == [b, c]
    logits = session.read(torch.tensor([[8], [9]]))
    assert (b.ids, c.ids) == ([4, 6, 8], [1, 2, 3, 5, 9])
    close(logits[:, 0], torch.stack([alone(model, row, len(row.ids)) for row in (b, c)]))


def test_prefix_model_generates_as_it_reads_with_a_prompt_shorter_than_its_prefix() -> None:
    model = build(with_mask(EXAMPLE, Causal() | Prefix(8)))
    expected = [1, 2, 3]
    with torch.no_grad():
        for _ in range(9):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert greedy(model, [1, 2, 3], max_new_tokens=9) == expected[3:]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens, padding included, each forward over a cache takes from now on."""
    read: list[int] = []
    take = Cache.take
    monkeypatch.setattr(Cache, "take", lambda self, tokens: read.append(tokens.pos.numel()) or take(self, tokens))
    return read


def test_equal_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read, session = counted(monkeypatch), Session(PLAIN)
    for _ in range(4):
        session.add([1, 2, 3, 4, 5])
    session.read()
    assert read == [4, 4]  # all but the last token of one row, then the last one of four


def test_rows_that_left_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read, session = counted(monkeypatch), Session(PLAIN)
    rows = [session.add([1, 2]), session.add([3, 4]), session.add([5, 6])]
    session.read()
    session.drop(rows[1])
    read.clear()
    session.read([[1], [2]])
    assert read == [2]


def test_rewinding_within_the_slack_reads_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for slack, n_read in ((2, 1), (0, 8)):
        session = Session(WINDOWED, slack=slack)
        row = session.add([1, 2, 3, 4, 5, 6, 7])
        session.read([[8, 9, 10]])
        session.rewind(row, 3)
        read = counted(monkeypatch)
        session.read([[0]])
        assert sum(read) == n_read, "a ring of just the window must be filled anew"
        monkeypatch.undo()


def test_states_go_back_to_before_the_last_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_with_weights(DESIGNS["lstm"](VOCAB, CONTEXT, 2, 16, 8), init="xavier").eval()
    session = Session(model)
    row = session.add([1, 2, 3, 4, 5])
    session.read()
    session.read([[6, 7, 8]])
    session.rewind(row, 2)
    read = counted(monkeypatch)
    logits = session.read([[9]])
    assert read == [2]  # 6 again, and 9
    torch.testing.assert_close(logits[0, 0], alone(model, row, 7), atol=1e-5, rtol=1e-5)


def test_a_forward_that_fails_leaves_the_rows_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(PLAIN)
    row, other = session.add([1, 2, 3]), session.add([4])
    session.read()
    with monkeypatch.context() as patch:
        patch.setattr(PLAIN.blocks[1], "forward", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            session.read([[5], [6]])
    assert (row.ids, other.ids) == ([1, 2, 3], [4])
    logits = session.read([[7], [8]])
    close(logits[:, 0], torch.stack([alone(PLAIN, each, len(each.ids)) for each in (row, other)]))


def test_session_refuses_what_it_cannot_read_and_stays_as_it_was() -> None:
    session = Session(PLAIN, capacity=3)
    row = session.add([1, 2])
    for ids, message in (
        ([[1, 2]], "holds 3 tokens, but this call needs 4"),
        ([[1], [2]], "2 lines of tokens for 1 rows"),
        ([[VOCAB]], "outside the vocabulary"),
    ):
        with pytest.raises(DataError, match=message):
            session.read(ids)
    for prompt in ([], [1] * 4, [VOCAB]):
        with pytest.raises(DataError):
            session.add(prompt)
        with pytest.raises(DataError):
            session.rewind_to(row, prompt)
    with pytest.raises(DataError, match="cannot go back by 2"):
        session.rewind(row, 2)
    with pytest.raises(DataError, match="no encoder reads this source"):
        session.add([1], source=[2])
    assert row.ids == [1, 2] and session.rows == [row]
    with pytest.raises(UsageError, match="cannot write"):
        Session(build(EncoderSpec(VOCAB, CONTEXT, EmbedSpec(), EXAMPLE.stack)))


# --- controls: what these properties must see ------------------------------------------------------------------------


def off(model: Any) -> float:
    session = Session(model, slack=1)
    a, b = session.add([1, 2, 3, 4]), session.add([5, 6])
    session.read([[7, 8], [9]])
    session.rewind(a, 2)
    session.fork(b)
    logits = session.read([[1], [2], [3]])
    want = torch.stack([alone(model, row, len(row.ids)) for row in session.rows])
    return float((logits[:, 0] - want).abs().max())


def test_control_the_session_works_unbroken() -> None:
    assert off(PLAIN) < 1e-9 and off(WINDOWED) < 1e-9


def test_control_a_prefix_that_is_read_in_pieces_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(with_mask(EXAMPLE, Causal() | Prefix(8)))
    assert off(model) < 1e-9
    monkeypatch.setattr(Reader, "within_prefix", lambda self, row: False)
    assert off(model) > 1e-3


def test_control_guesses_that_are_kept_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "_go_back", lambda self, rows: self._arrange(rows))
    assert off(PLAIN) > 1e-3


def test_control_a_ring_that_has_overwritten_and_does_not_say_so_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "refuse_truncate", lambda self, lengths: None)
    session = Session(WINDOWED)
    row = session.add([1, 2, 3, 4, 5])
    session.read([[6, 7, 8, 9]])
    session.rewind(row, 4)
    assert (session.read([[1]])[0, 0] - alone(WINDOWED, row, 6)).abs().max() > 1e-3
