"""How a session reads: few forwards, over a cache whose rows follow the session's.

Rows that the cache has nothing of (new ones, and those that went back to where it cannot) are read into a cache of
their own, together with others about as long, and join. Prompts that are equal are read once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import DataError, UsageError
from pellucid.nn.base import Model
from pellucid.nn.cache import Cache, Snapshot
from pellucid.nn.models import Decoder, EncoderDecoder
from pellucid.nn.stores import Memory
from pellucid.predicates import ORDINARY, PREFIX

T = TypeVar("T")
_WITHOUT_LOGITS = 16  # more unread tokens than these, whose logits nobody wants, are read in a forward of their own


@dataclass(eq=False)
class Row:
    """One text of a session, equal to nothing but itself. Only its session changes it.

    ids: all its tokens so far. n_prompt: how many of them are its prompt. source: what an encoder reads for it, and
    memory, what that made of it. slot: its number among the cache's rows, None where the cache has nothing of it; kept:
    how many of its tokens, from the first, are taken from there.
    """

    ids: list[int]
    n_prompt: int
    source: tuple[int, ...] | None = None
    memory: Memory | None = None
    slot: int | None = None
    kept: int = 0

    def leave_cache(self) -> None:
        """All its tokens are to be read anew."""
        self.slot, self.kept = None, 0


class Unread(NamedTuple):
    """What is asked of a row: to be read up to its token ``end``, with logits after the last ``wanted`` of these."""

    row: Row
    end: int
    wanted: int


def writer_of(model: Model) -> Decoder:
    """The part of a model that writes. Raises UsageError for a model that has none."""
    if isinstance(model, EncoderDecoder):
        return model.decoder
    if not isinstance(model, Decoder):
        raise UsageError(
            "an encoder reads whole texts and cannot write",
            "look into it, or call it for its states or its head's logits",
        )
    return model


class Reader:
    """The cache of a session, and the forwards over it."""

    def __init__(self, model: Model, capacity: int, slack: int, fixed: bool):
        self.model, self.writer = model, writer_of(model)
        self.capacity, self.slack, self.fixed = capacity, slack, fixed
        # A mask may also hide a prefix from itself: it is causal, but its tokens must be told their parts as well.
        self.ahead = self.writer.spec.ahead._replace(marked=self.writer.spec.asks_part)
        self.cache: Cache | None = None
        self.lengths: list[int] = []  # how many tokens each row of the cache holds
        self.before: tuple[Snapshot, list[int]] | None = None  # where running states were before the last forward

    def within_prefix(self, row: Row) -> bool:
        """Whether tokens that the row has kept may see what comes next, so that they must be read again with it."""
        return row.kept < max(self.ahead.first, row.n_prompt if self.ahead.marked else 0)

    def forget(self, rows: Iterable[Row]) -> None:
        """Keep nothing: all rows are read anew."""
        self.cache, self.lengths, self.before = None, [], None
        for row in rows:
            row.leave_cache()

    def read(self, unread: Sequence[Unread]) -> Float[Tensor, "rows k vocab"]:
        """Logits after the last ``wanted`` tokens of each row; where a row wants fewer than others, zeros follow."""
        device = self.writer.device
        rows = [each.row for each in unread]
        for each in unread:
            each.row.kept = min(each.row.kept, each.end - each.wanted)
            if self.within_prefix(each.row):
                each.row.leave_cache()
        self._go_back(rows)
        k, vocab = max((each.wanted for each in unread), default=0), self.writer.spec.vocab_size
        new = [each for each in unread if each.row.slot is None]
        whole = [each for each in new if self.within_prefix(Row([], each.row.n_prompt, kept=each.end - each.wanted))]
        joining = [each for each in new if each not in whole]
        if joining:
            self._join(joining)
            self._arrange(rows)
        kept = [each for each in unread if each.row.slot is not None]
        if not whole and k:
            return self._go_on(kept, k)
        logits = torch.zeros(len(unread), k, vocab, dtype=self.writer.dtype, device=device)
        if kept and k:
            logits[[place for place, each in enumerate(unread) if each.row.slot is not None]] = self._go_on(kept, k)
        for place, each in enumerate(unread):
            if each in whole:
                logits[place, : each.wanted] = self._read_whole(each)
        return logits

    # --- the rows of the cache ---------------------------------------------------------------------------------------

    def _arrange(self, rows: Sequence[Row]) -> None:
        """The cache's rows become those of ``rows`` that it has, in their order."""
        here = [(row, row.slot) for row in rows if row.slot is not None]
        if self.cache is None or not here:
            self.cache, self.lengths, self.before = None, [], None
            return
        order = [slot for _, slot in here]
        if order == list(range(self.cache.batch)):
            return
        chosen = torch.tensor(order, device=self.cache.device)
        self.cache.select(chosen)
        self.lengths = [self.lengths[slot] for slot in order]
        if self.before is not None:
            snapshot, lengths = self.before
            self.before = snapshot.select(chosen), [lengths[slot] for slot in order]
        for slot, (row, _) in enumerate(here):
            row.slot = slot

    def _go_back(self, rows: Sequence[Row]) -> None:
        """The cache forgets what its rows keep no longer; a row leaves it where that is impossible."""
        states = self.cache is not None and self.cache.keeps_states
        for row in rows:
            if not states or row.slot is None or row.kept == self.lengths[row.slot]:
                continue
            if self.before is None or self.before[1][row.slot] > row.kept:
                row.leave_cache()
        self._arrange(rows)
        back = [row for row in rows if row.slot is not None and row.kept < self.lengths[row.slot]]
        if self.cache is None or not back:
            return
        try:
            if states:
                assert self.before is not None
                snapshot, lengths = self.before
                self.cache.restore(snapshot, torch.tensor([row.slot for row in back], device=self.cache.device))
                for row in back:
                    row.kept = lengths[row.slot or 0]
            else:
                kept = [row.kept for row in rows if row.slot is not None]
                self.cache.truncate(torch.tensor(kept, device=self.cache.device))
        except DataError:  # a ring has overwritten what they would see
            for row in back:
                row.leave_cache()
            self._arrange(rows)
        else:
            for row in back:
                self.lengths[row.slot or 0] = row.kept

    def _join(self, new: Sequence[Unread]) -> None:
        """Read all of these rows but what is wanted of them, and put them behind the others in the cache."""
        self._read_sources([each.row for each in new])
        texts: dict[tuple[object, ...], list[Unread]] = {}
        for each in new:
            texts.setdefault((*each.row.ids[: each.end - each.wanted], each.row.source), []).append(each)
        alike = list(texts.values())
        for group in _of_like_length(alike, [some[0].end - some[0].wanted for some in alike]):
            firsts = [some[0] for some in group]
            cache = self._new_cache([each.row for each in firsts])
            if any(each.end > each.wanted for each in firsts):
                self.writer.states(*self._tokens([(each.row, 0, each.end - each.wanted) for each in firsts]), cache)
            for slot, some in enumerate(group, len(self.lengths)):
                for each in some:
                    each.row.slot, each.row.kept = slot, each.end - each.wanted
            self._append(cache, [each.row.kept for each in firsts])

    def _append(self, cache: Cache, lengths: list[int]) -> None:
        if self.cache is None:
            self.cache = cache
        else:
            self.cache.append(cache)
        self.lengths, self.before = self.lengths + lengths, None

    def _new_cache(self, rows: Sequence[Row]) -> Cache:
        memory: Memory | None = None
        for row in rows:
            if row.memory is not None:
                memory = row.memory if memory is None else memory.append(row.memory)
        return self.writer.new_cache(
            len(rows), self.capacity, memory=memory, fixed=self.fixed, grows=not self.fixed, slack=self.slack
        )

    def _read_sources(self, rows: Sequence[Row]) -> None:
        """Each row's source, once; equal ones together."""
        if not isinstance(self.model, EncoderDecoder):
            return
        sources = list({row.source: None for row in rows if row.memory is None and row.source is not None})
        read: dict[tuple[int, ...], Memory] = {}
        device = self.writer.device
        for group in _of_like_length(sources, [len(source) for source in sources]):
            longest = max(map(len, group))
            ids = torch.tensor([[*source, *[0] * (longest - len(source))] for source in group], device=device)
            lengths = torch.tensor([[len(source)] for source in group], device=device)
            padded = Tokens.padded(torch.arange(longest, device=device) < lengths)
            alike = all(len(source) == longest for source in group)
            states = self.model.encode(ids, None if alike else padded).states
            for states_of_one, source in zip(states, group, strict=True):
                tokens = Tokens.plain(1, len(source), device=device)
                read[source] = Memory(states_of_one[None, : len(source)], tokens)
        for row in rows:
            if row.memory is None and row.source is not None:
                row.memory = read[row.source]

    # --- forwards ----------------------------------------------------------------------------------------------------

    def _tokens(self, spans: Sequence[tuple[Row, int, int]]) -> tuple[Int[Tensor, "rows time"], Tokens]:
        """The tokens first to end of each row, padded at their end, and where they stand."""
        device = self.writer.device
        time = max(end - first for _, first, end in spans)
        ids = [row.ids[first:end] + [0] * (time - end + first) for row, first, end in spans]
        _, first, end = spans[0]
        if not self.ahead.marked and all(span[1:] == (first, end) for span in spans):
            return torch.tensor(ids, device=device), Tokens.plain(len(spans), time, first, device)
        pos = [[*range(first, end), *[-1] * (time - end + first)] for _, first, end in spans]
        part = None
        if self.ahead.marked:
            roles = [
                [PREFIX if 0 <= p < row.n_prompt else ORDINARY for p in places]
                for (row, *_), places in zip(spans, pos, strict=True)
            ]
            part = torch.tensor(roles, device=device)
        return torch.tensor(ids, device=device), Tokens(torch.tensor(pos, device=device), part=part)

    def _go_on(self, unread: Sequence[Unread], k: int) -> Float[Tensor, "rows k vocab"]:
        """Read what is unread of the cache's rows."""
        assert self.cache is not None
        surplus = [each.end - each.wanted - each.row.kept for each in unread]
        if max(surplus) > _WITHOUT_LOGITS:
            self.writer.states(
                *self._tokens([(each.row, each.row.kept, each.end - each.wanted) for each in unread]), self.cache
            )
            self._keep(unread, [each.end - each.wanted for each in unread])
            surplus = [0] * len(unread)
        if self.cache.keeps_states:
            self.before = self.cache.snapshot(), list(self.lengths)
        logits = self.writer(*self._tokens([(each.row, each.row.kept, each.end) for each in unread]), self.cache)
        self._keep(unread, [each.end for each in unread])
        if not any(surplus):
            return logits
        columns = torch.tensor(surplus, device=logits.device)[:, None] + torch.arange(k, device=logits.device)
        columns = columns.clamp(max=logits.shape[1] - 1)[:, :, None].expand(-1, -1, logits.shape[-1])
        return logits.gather(1, columns)

    def _keep(self, unread: Sequence[Unread], ends: list[int]) -> None:
        self.lengths = ends
        for each, end in zip(unread, ends, strict=True):
            each.row.kept = end

    def _read_whole(self, each: Unread) -> Float[Tensor, "wanted vocab"]:
        """All of a row at once, as its prefix must be. It joins the others where its prefix is complete."""
        self._read_sources([each.row])
        cache = self._new_cache([each.row])
        states = self.writer.states(*self._tokens([(each.row, 0, each.end)]), cache)[:, each.end - each.wanted :]
        logits = self.writer.tap("logits", self.writer.head(states, self.writer.embed.head_table))[0]
        each.row.kept = each.end
        if self.within_prefix(each.row):
            each.row.leave_cache()
        else:
            each.row.slot = len(self.lengths)
            self._append(cache, [each.end])
        return logits


def _of_like_length(items: Sequence[T], lengths: Sequence[int]) -> list[list[T]]:
    """Groups in which none is much longer than another, so that little is padded; in order of length."""
    groups: list[list[T]] = []
    shortest = 0
    for length, item in sorted(zip(lengths, items, strict=True), key=lambda pair: pair[0]):
        if not groups or length > 2 * shortest + 32:
            groups.append([])
            shortest = length
        groups[-1].append(item)
    return groups
