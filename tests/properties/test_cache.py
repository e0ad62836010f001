"""A model with a cache says what it says without one: any chunking, contiguous and ring, any padding at the start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CONTEXT, EXAMPLE, build, chunks, close, ids, models, padded, specs, with_mask
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.cache import Cache, LayerCache
from pellucid.nn.models import Decoder
from pellucid.nn.slots import Contiguous, Ring
from pellucid.spec import Causal, Window

few = settings(max_examples=20)
windowed = st.builds(with_mask, specs(), st.integers(1, 5).map(lambda n: Causal() & Window(n))).map(build)
all_models = models | windowed
PLAIN, WINDOWED = (build(with_mask(EXAMPLE, mask)) for mask in (Causal(), Causal() & Window(3)))


def in_chunks(model: Decoder, text: Tensor, lengths: list[int], cache: Cache) -> Tensor:
    """Logits (batch, time, vocab), from one call a chunk."""
    with torch.no_grad():
        return torch.cat([model(chunk, cache=cache) for chunk in text.split(lengths, 1)], 1)


def whole(model: Decoder, text: Tensor) -> Tensor:
    with torch.no_grad():
        return model(text)


@given(all_models, ids(max_time=14), st.booleans(), st.data())
@settings(max_examples=40)
def test_cached_is_uncached(model: Decoder, text: Tensor, ring: bool, data: st.DataObject) -> None:
    batch, time = text.shape
    cache = model.new_cache(batch, time + data.draw(st.integers(0, 2)), ring=ring)
    got = in_chunks(model, text, data.draw(chunks(time)), cache)
    close(got, whole(model, text))
    assert cache.length == time and cache.next_positions().tolist() == [time] * batch


@given(all_models, padded(), ids(st.just(3), max_time=5), st.booleans(), st.data())
@settings(max_examples=40)
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
    assert [type(s) for s in ring.layouts] == [Ring] and [type(s) for s in full.layouts] == [Contiguous]
    assert ring.capacity == full.capacity == CONTEXT
    assert ring.n_bytes < full.n_bytes / 4
    assert [type(s) for s in WINDOWED.new_cache(1, 3).layouts] == [Contiguous]  # the window covers all there is


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
