"""A model with a cache says what it says without one: any chunking, contiguous and ring, any padding at the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CONTEXT, EXAMPLE, build, chunks, close, ids, models, padded, specs, with_mask
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.cache import Cache
from pellucid.nn.models import Decoder
from pellucid.nn.slots import Contiguous, Ring
from pellucid.nn.stores import LayerCache
from pellucid.spec import BlockSpec, Causal, LayerNormSpec, RecurrentSpec, Window

few = settings(max_examples=examples(20))
windowed = st.builds(with_mask, specs(), st.integers(1, 5).map(lambda n: Causal() & Window(n))).map(build)
all_models = models | windowed
RECURRENT = BlockSpec(RecurrentSpec("gru", 8), None, LayerNormSpec())
PLAIN, WINDOWED = (build(with_mask(EXAMPLE, mask)) for mask in (Causal(), Causal() & Window(3)))


def in_chunks(model: Decoder, text: Tensor, lengths: list[int], cache: Cache) -> Tensor:
    """Logits (batch, time, vocab), from one call a chunk."""
    with torch.no_grad():
        return torch.cat([model(chunk, cache=cache) for chunk in text.split(lengths, 1)], 1)


def whole(model: Decoder, text: Tensor) -> Tensor:
    with torch.no_grad():
        return model(text)


@given(all_models, ids(max_time=14), st.booleans(), st.data())
@settings(max_examples=examples(40))
def test_cached_is_uncached(model: Decoder, text: Tensor, ring: bool, data: st.DataObject) -> None:
    batch, time = text.shape
    cache = model.new_cache(batch, time + data.draw(st.integers(0, 2)), ring=ring)
    got = in_chunks(model, text, data.draw(chunks(time)), cache)
    close(got, whole(model, text))
    assert cache.length == time and cache.next_positions().tolist() == [time] * batch


@given(all_models, padded(), ids(st.just(3), max_time=5), st.booleans(), st.data())
@settings(max_examples=examples(40))
def test_padded_prefill_goes_on_row_by_row(
    model: Decoder, drawn: tuple[list[Tensor], Tensor, Tensor], more: Tensor, ring: bool, data: st.DataObject
) -> None:
    rows, text, valid = drawn
    more = more[: len(rows)]
    cache = model.new_cache(len(rows), text.shape[1] + more.shape[1], ring=ring)
    with torch.no_grad():
        first = model(text, Tokens.padded(valid), cache=cache)
    assert cache.next_positions().tolist() == [len(row) for row in rows]
    then = in_chunks(model, more, data.draw(chunks(more.shape[1])), cache)
    for i, row in enumerate(rows):
        alone = whole(model, torch.cat((row, more[i]))[None])[0]
        close(torch.cat((first[i, valid[i]], then[i])), alone)


@given(all_models, padded(), st.booleans(), st.data())
@few
def test_padding_may_come_in_any_chunk(
    model: Decoder, drawn: tuple[list[Tensor], Tensor, Tensor], ring: bool, data: st.DataObject
) -> None:
    rows, text, valid = drawn
    tokens, cache = Tokens.padded(valid), model.new_cache(len(rows), text.shape[1], ring=ring)
    got, start = [], 0
    for n in data.draw(chunks(text.shape[1])):
        part = slice(start, start + n)
        with torch.no_grad():
            got.append(model(text[:, part], Tokens(tokens.pos[:, part]), cache=cache))
        start += n
    logits = torch.cat(got, 1)
    for i, row in enumerate(rows):
        close(logits[i, valid[i]], whole(model, row[None])[0])


@given(models, ids(max_time=8), st.data())
@few
def test_packed_rows_through_a_cache(model: Decoder, text: Tensor, data: st.DataObject) -> None:
    batch, time = text.shape
    lengths = data.draw(chunks(time))
    seg = torch.cat([torch.full((batch, n), i) for i, n in enumerate(lengths)], 1)
    tokens, cache = Tokens.packed(seg), model.new_cache(batch, time, ring=False)
    start, got = 0, []
    for n in data.draw(chunks(time)):
        part = slice(start, start + n)
        with torch.no_grad():
            got.append(model(text[:, part], Tokens(tokens.pos[:, part], seg[:, part]), cache=cache))
        start += n
    expected = torch.cat([whole(model, document) for document in text.split(lengths, 1)], 1)
    close(torch.cat(got, 1), expected)


VERBS = st.sampled_from(["read", "read", "select", "append", "truncate", "restore"])


class Rows:
    """A cache, and the texts that its rows have read; each read is compared with reading every text from scratch."""

    def __init__(self, model: Decoder, data: st.DataObject, fixed: bool, slack: int):
        self.model, self.data = model, data
        self.new_cache = partial(model.new_cache, capacity=CONTEXT, fixed=fixed, slack=slack)
        self.cache, self.texts = self.begun()

    def begun(self) -> tuple[Cache, list[list[int]]]:
        """Some rows of unequal length, read at once."""
        rows, text, valid = self.data.draw(padded())
        cache = self.new_cache(len(rows))
        with torch.no_grad():
            self.model(text, Tokens.padded(valid), cache)
        return cache, [row.tolist() for row in rows]

    def play(self, verb: str) -> None:
        if verb == "read":
            self.read()
        elif verb == "select":
            chosen = self.data.draw(st.lists(st.integers(0, len(self.texts) - 1), min_size=1, max_size=4))
            self.cache.select(torch.tensor(chosen))
            self.texts = [self.texts[row] for row in chosen]
        elif verb == "append" and len(self.texts) < 5:
            other, texts = self.begun()
            self.cache.append(other)
            self.texts = self.texts + texts
        elif verb == "truncate":
            lengths = [self.data.draw(st.integers(1, len(text))) for text in self.texts]
            if self.went_back(lambda: self.cache.truncate(torch.tensor(lengths))):
                self.texts = [text[:n] for text, n in zip(self.texts, lengths, strict=True)]
        elif verb == "restore":
            before, texts = self.cache.snapshot(), self.texts
            self.read()
            back = [row for row in range(len(texts)) if self.data.draw(st.booleans())]
            if self.went_back(lambda: self.cache.restore(before, torch.tensor(back, dtype=torch.long)), states=True):
                self.texts = [texts[row] if row in back else text for row, text in enumerate(self.texts)]

    def went_back(self, go: Callable[[], None], states: bool = False) -> bool:
        """False where the cache refuses because it must; nothing has changed then."""
        try:
            go()
        except DataError:
            assert any(isinstance(slots, Ring) for slots in self.cache.slots) or (
                self.cache.keeps_states and not states
            )
            return False
        return True

    def read(self) -> None:
        k = min(self.data.draw(st.integers(1, 3)), CONTEXT - max(map(len, self.texts)))
        if k:
            new = self.data.draw(ids(st.just(len(self.texts)), max_time=k, min_time=k))
            with torch.no_grad():
                logits = self.model(new, cache=self.cache)
            self.texts = [text + more for text, more in zip(self.texts, new.tolist(), strict=True)]
            for row, text in enumerate(self.texts):
                close(logits[row], whole(self.model, torch.tensor([text]))[0, -k:])


@given(all_models, st.lists(VERBS, min_size=3, max_size=8), st.booleans(), st.integers(0, 3), st.data())
@settings(max_examples=examples(50))
def test_rows_of_a_cache_after_any_verbs_read_as_each_text_from_scratch(
    model: Decoder, verbs: list[str], fixed: bool, slack: int, data: st.DataObject
) -> None:
    rows = Rows(model, data, fixed, slack)
    for verb in [*verbs, "read"]:
        rows.play(verb)
        assert rows.cache.next_positions().tolist() == [len(text) for text in rows.texts]


def test_cache_refuses_to_go_where_it_cannot_and_stays_as_it_was() -> None:
    """A running state, a ring without slack, another number of rows, and caches that do not fit together."""
    text = torch.arange(8)[None]
    state = build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=(RECURRENT,) * 2)))
    for model, message in ((state, "snapshot"), (WINDOWED, "slack")):
        cache = model.new_cache(1, 10)
        with torch.no_grad():
            model(text, cache=cache)
            with pytest.raises(DataError, match=message):
                cache.truncate(torch.tensor([4]))
            close(model(text[:, :1], cache=cache)[:, 0], whole(model, torch.cat((text, text[:, :1]), 1))[:, -1])
    cache = PLAIN.new_cache(2, 10)
    with pytest.raises(DataError, match="1 lengths for a cache of 2 rows"):
        cache.truncate(torch.tensor([0]))
    with pytest.raises(DataError, match="a snapshot of 1 rows"):
        cache.restore(PLAIN.new_cache(1, 10).snapshot())
    with pytest.raises(DataError, match="cannot join"):
        cache.append(PLAIN.new_cache(1, 12))


def test_a_ring_refuses_what_it_cannot_hold() -> None:
    """Places go by position, and two documents of a row have the same positions."""
    text, tokens = torch.zeros(1, 4, dtype=torch.long), Tokens.packed(torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(DataError, match="ring=False"):
        WINDOWED(text, tokens, WINDOWED.new_cache(1, 8))


def test_packed_rows_do_not_go_on_by_themselves() -> None:
    text, tokens = torch.zeros(1, 4, dtype=torch.long), Tokens.packed(torch.tensor([[0, 0, 1, 1]]))
    cache = PLAIN.new_cache(1, 8)
    with torch.no_grad():
        PLAIN(text, tokens, cache)
        with pytest.raises(DataError, match=r"Tokens\(pos, seg\)"):
            PLAIN(text, cache=cache)


def test_capacity_is_an_error_and_nothing_is_lost() -> None:
    model, text = PLAIN, torch.arange(6)[None]
    cache = model.new_cache(1, 5)
    with torch.no_grad():
        model(text[:, :4], cache=cache)
        with pytest.raises(DataError, match=r"holds 5 tokens, but this call needs 6"):
            model(text[:, 4:6], cache=cache)
        assert cache.length == 4
        last = model(text[:, 4:5], cache=cache)
    close(last[:, 0], whole(model, text[:, :5])[:, -1])
    with pytest.raises(DataError, match="2 rows for a cache of 1"):
        model(torch.zeros(2, 1, dtype=torch.long), Tokens.plain(2, 1), model.new_cache(1, 5))


def test_layouts() -> None:
    """Windowed layers keep their window only; ``ring=False`` keeps everything; the default capacity is the context."""
    ring, full = WINDOWED.new_cache(2), WINDOWED.new_cache(2, ring=False)
    assert [type(s) for s in ring.slots] == [Ring] and [type(s) for s in full.slots] == [Contiguous]
    assert ring.capacity == full.capacity == CONTEXT
    assert ring.n_bytes < full.n_bytes / 4
    assert [type(s) for s in WINDOWED.new_cache(1, 3).slots] == [Contiguous]  # the window covers all there is


def test_the_cache_is_an_argument() -> None:
    """Two rows of talk through one model do not mix: no state stays in it."""
    model, a, b = PLAIN, torch.tensor([[1, 2, 3, 4]]), torch.tensor([[9, 8, 7, 6]])
    one, two = model.new_cache(1, 4), model.new_cache(1, 4)
    with torch.no_grad():
        got = [(model(a[:, t : t + 1], cache=one), model(b[:, t : t + 1], cache=two)) for t in range(4)]
    close(torch.cat([x for x, _ in got], 1), whole(model, a))
    close(torch.cat([y for _, y in got], 1), whole(model, b))


def test_a_token_by_itself_is_read_where_it_is_kept() -> None:
    """No copy of the window a token, which would cost more than to attend to it."""
    model, text = WINDOWED, torch.arange(7)[None]
    cache, read = model.new_cache(1), list[tuple[LayerCache, Tensor, Tensor]]()
    extend = LayerCache.extend

    def noted(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = extend(self, k, v)
        read.append((self, k, v))
        return k, v

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(LayerCache, "extend", noted)
        for t in range(7):
            model(text[:, t : t + 1], cache=cache)
    assert len(read) == 14 and all(k is layer.k and v is layer.v for layer, k, v in read)


# --- controls: what these properties must see ------------------------------------------------------------------------


def discrepancy(model: Decoder, ring: bool = True) -> float:
    text = torch.arange(10)[None]
    got = in_chunks(model, text, [3, 1, 2, 4], model.new_cache(1, 10, ring=ring))
    return (got - whole(model, text)).abs().max().item()


def test_control_the_cache_works_unbroken() -> None:
    assert discrepancy(PLAIN) < 1e-6 and discrepancy(WINDOWED) < 1e-6


def test_control_a_cache_that_forgets_a_column_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Contiguous.take

    def forgets(self: Contiguous, tokens: Tokens) -> None:
        take(self, tokens)
        self.keys = replace(self.keys, pos=self.keys.pos.clone(), start=None)
        self.keys.pos[:, 0] = -1

    monkeypatch.setattr(Contiguous, "take", forgets)
    assert discrepancy(PLAIN) > 1e-3


def test_control_a_cache_that_counts_positions_from_zero_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "continuing", lambda self, time: Tokens(torch.arange(time).expand(self.batch, time)))
    assert discrepancy(PLAIN) > 1e-3


def test_control_a_ring_too_small_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Window, "reach", lambda self: self.size - 2
    )  # size - 1 would do: the call's own token is on top
    assert discrepancy(WINDOWED) > 1e-3
    assert discrepancy(WINDOWED, ring=False) < 1e-6


def test_control_a_ring_that_overwrites_before_it_reads_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Ring, store: Tensor, new: Tensor) -> Tensor:
        store.scatter_(2, self.place[:, None, :, None].expand_as(new), new)
        return store if new.shape[2] == 1 else torch.cat((store, new), 2)

    monkeypatch.setattr(Ring, "write", hasty)
    assert discrepancy(WINDOWED) > 1e-3
