"""Which slot of a store holds which token: worked out once a forward, for all layers that keep the same tokens.

``Contiguous`` keeps everything, ``Ring`` only what a window still sees. An empty slot has position -1, which no mask
shows to anyone; so masks need not know about caches, and slots may be out of order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.errors import DataError


class Slots(ABC):
    """The slots of some rows, and what may be done to the rows.

    pos: the position of the token in each slot, -1 where there is none. seg: its document, where rows are packed.
    part: its role, where rows have tokens with another than the ordinary one.
    keys: the tokens that ``write`` returns, set by ``take``. Between ``take`` and ``commit`` the layers write; what
    fails there leaves the slots as they were.
    """

    name: str
    keys: Tokens

    def __init__(self, batch: int, n_slots: int, device: torch.device | str | None):
        self.pos = torch.full((batch, n_slots), -1, dtype=torch.long, device=device)
        self.seg: Int[Tensor, "batch slots"] | None = None
        self.part: Int[Tensor, "batch slots"] | None = None
        self.keys = Tokens(self.pos[:, :0])

    @property
    def packed(self) -> bool:
        """Whether a row may hold several documents."""
        return self.seg is not None

    @property
    @abstractmethod
    def places(self) -> Int[Tensor, "batch time"]:
        """The slot of each token that was taken."""

    @abstractmethod
    def take(self, tokens: Tokens) -> None:
        """Choose slots for these tokens and set ``keys``."""

    @abstractmethod
    def write(self, store: Tensor, new: Tensor) -> Tensor:
        """Put ``new`` (batch, kv_heads, time, head_dim) into the layer's store; return what ``keys`` describes."""

    @abstractmethod
    def commit(self, tokens: Tokens) -> None:
        """Make the taken slots count."""

    @abstractmethod
    def refuse_truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        """Raise DataError where rows cannot be cut to these lengths."""

    @abstractmethod
    def truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        """Forget each row's tokens from position ``lengths`` on. ``refuse_truncate`` has been asked."""

    def select(self, rows: Int[Tensor, " new"]) -> None:
        """The rows become those with these numbers, which may repeat."""
        self.pos = self.pos[rows]
        self.seg = None if self.seg is None else self.seg[rows]
        self.part = None if self.part is None else self.part[rows]
        self.keys = Tokens(self.pos[:, :0])

    def append(self, other: Slots) -> None:
        """The rows of ``other``, slots of the same kind and number, stand behind these."""
        self.seg = _joined(self.seg, self.pos, other.seg, other.pos)
        self.part = _joined(self.part, self.pos, other.part, other.pos)
        self.pos = torch.cat((self.pos, other.pos))
        self.keys = Tokens(self.pos[:, :0])

    def fitted(self, store: Tensor) -> Tensor:
        """A layer's store (batch, kv_heads, slots, head_dim) with as many slots as there are, new ones being zero."""
        missing = self.pos.shape[1] - store.shape[2]
        return F.pad(store, (0, 0, 0, missing)) if missing else store


def refuse_overflow(needed: int, capacity: int) -> None:
    """Raise DataError where a row would have more tokens than the cache has room for."""
    if needed > capacity:
        raise DataError(
            f"the cache holds {capacity} tokens, but this call needs {needed}",
            "make it larger: model.new_cache(batch, capacity)",
        )


def _joined(a: Tensor | None, a_pos: Tensor, b: Tensor | None, b_pos: Tensor) -> Tensor | None:
    """Rows of both; None stands for zeros."""
    if a is None and b is None:
        return None
    return torch.cat((torch.zeros_like(a_pos) if a is None else a, torch.zeros_like(b_pos) if b is None else b))


def _padded(x: Tensor | None, more: int) -> Tensor | None:
    return None if x is None else F.pad(x, (0, more))


class Contiguous(Slots):
    """Token after token of each row, without gaps: the n-th token of a row is in slot n, padding nowhere.

    As long as all rows are equally long and without padding, appending is one copy. Otherwise each token goes to its
    row's next slot, and padding to one spare slot at the end that stays empty.
    fixed: ``write`` returns all slots, always, so that a compiled block meets one shape however long the rows are.
    grows: there are few slots at first, and more as rows get longer; otherwise all of them from the beginning.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        device: torch.device | str | None = None,
        *,
        fixed: bool = False,
        grows: bool = False,
    ):
        super().__init__(batch, capacity + 1 if fixed else 0 if grows else capacity, device)
        self.name, self.capacity, self.fixed, self.spare = "contiguous", capacity, fixed, int(fixed)
        self.length = 0  # of the longest row; of rows that differ, at least that
        self.lengths: Int[Tensor, " batch"] | None = None  # of each row; None: each has the tokens 0 to length - 1
        self.place: Int[Tensor, "batch time"] | None = None
        # what ``commit`` makes of pos, lengths and length
        self._taken = self.pos
        self._after: Int[Tensor, " batch"] | None = None
        self._end = 0

    @property
    def places(self) -> Int[Tensor, "batch time"]:
        if self.place is not None:
            return self.place
        taken = torch.arange(self.length, self.keys.pos.shape[1], device=self.pos.device)
        return taken.expand(self.pos.shape[0], -1).contiguous()

    def take(self, tokens: Tokens) -> None:
        """The next slots of each row. Raises DataError where there are not that many left."""
        end = self.length + tokens.pos.shape[1]
        alike = tokens.start == self.length and tokens.seg is None and tokens.part is None and self.part is None
        if alike and self.lengths is None and not self.fixed:
            self._make_room(end)
            self.place, self.keys = None, Tokens.plain(self.pos.shape[0], end, 0, self.pos.device)
            return
        token = tokens.pos >= 0
        before = self._row_lengths()
        after = before + token.sum(-1)
        if self.pos.device.type == "cpu" or tokens.pos.shape[1] > 1 or end > self.capacity:
            end = int(after.amax()) if len(after) else 0  # elsewhere ``end`` is near enough, and need not be waited for
        self._make_room(end, spare=1)
        self.place = (before[:, None] + token.cumsum(-1) - 1).masked_fill(~token, self.pos.shape[1] - 1)
        free = torch.arange(self.pos.shape[1], device=self.pos.device) >= before[:, None]
        self._taken = self.pos.masked_fill(free, -1).scatter(1, self.place, tokens.pos)
        self.seg, self.part = self._marked(self.seg, tokens.seg), self._marked(self.part, tokens.part)
        shown = self.pos.shape[1] if self.fixed else end
        seg, part = (None if marks is None else marks[:, :shown] for marks in (self.seg, self.part))
        self.keys = Tokens(self._taken[:, :shown], seg, part=part)
        self._after, self._end = after, end

    def _marked(self, kept: Tensor | None, new: Tensor | None) -> Tensor | None:
        """Segments or parts with those of the new tokens; None stands for zeros."""
        assert self.place is not None
        if kept is None and new is None:
            return None
        kept = torch.zeros_like(self.pos) if kept is None else kept
        return kept.scatter(1, self.place, torch.zeros_like(self.place) if new is None else new)

    def write(self, store: Tensor, new: Tensor) -> Tensor:
        if self.place is None:
            end = self.length + new.shape[2]
            store[:, :, self.length : end] = new
            return store[:, :, :end]
        store.scatter_(2, self.place[:, None, :, None].expand_as(new), new)
        return store if self.fixed else store[:, :, : self.keys.pos.shape[1]]

    def commit(self, tokens: Tokens) -> None:
        if self.place is None:
            end = self.length + tokens.pos.shape[1]
            self.pos[:, self.length : end] = tokens.pos
            self.length = end
            return
        self.pos, self.lengths, self.length = self._taken, self._after, self._end

    def refuse_truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        if self.seg is not None:
            raise DataError("packed rows cannot be cut: a row has several documents", "read what is to stay anew")

    def truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        self.pos = self.pos.masked_fill(self.pos >= lengths[:, None], -1)
        kept = (self.pos >= 0).sum(-1)
        self.length = int(kept.amax()) if len(kept) else 0
        self.lengths = None if self.lengths is None and bool((kept == self.length).all()) else kept

    def select(self, rows: Int[Tensor, " new"]) -> None:
        super().select(rows)
        if self.lengths is not None:
            self.lengths = self.lengths[rows]
            self.length = int(self.lengths.amax()) if len(rows) else 0

    def append(self, other: Slots) -> None:
        assert isinstance(other, Contiguous)
        for side, beside in ((self, other), (other, self)):
            side._widen(beside.pos.shape[1] - beside.spare, beside.spare)
        if self.lengths is not None or other.lengths is not None or self.length != other.length:
            self.lengths = torch.cat((self._row_lengths(), other._row_lengths()))
        self.length = max(self.length, other.length)
        super().append(other)

    def _row_lengths(self) -> Int[Tensor, " batch"]:
        full = torch.full((self.pos.shape[0],), self.length, dtype=torch.long, device=self.pos.device)
        return full if self.lengths is None else self.lengths

    def _make_room(self, end: int, spare: int = 0) -> None:
        """Slots for rows of ``end`` tokens. Raises DataError where these are more than the capacity."""
        refuse_overflow(end, self.capacity)
        n = self.pos.shape[1] - self.spare
        self._widen(n if end <= n else min(self.capacity, max(end + 64, 2 * n)), spare)

    def _widen(self, n: int, spare: int) -> None:
        """At least ``n`` slots, and the spare one; stores follow when they are next written (``fitted``)."""
        n = max(n, self.pos.shape[1] - self.spare)
        self.spare = max(self.spare, spare)
        more = n + self.spare - self.pos.shape[1]
        if more:
            self.pos = F.pad(self.pos, (0, more), value=-1)
            self.seg, self.part = _padded(self.seg, more), _padded(self.part, more)


class Ring(Slots):
    """Position p lives in slot p mod capacity, so a window of w tokens needs no more memory than itself.

    capacity: w, and ``slack`` on top: so many tokens may be read and taken back (``truncate``) without the loss of any
    that the window of the next token reaches. Padding goes to one extra slot that stays empty. A call with more than
    1 + slack tokens must not overwrite what its own first tokens still see: it attends over (old slots, new tokens) and
    writes afterwards. A shorter one writes first: what it overwrites has left all its windows, and nothing is copied.
    """

    def __init__(self, batch: int, window: int, device: torch.device | str | None = None, *, slack: int = 0):
        self.window, self.capacity = window, window + slack
        super().__init__(batch, self.capacity + 1, device)
        self.name = f"ring of {self.capacity}"
        self.place = self.pos[:, :0]

    @property
    def places(self) -> Int[Tensor, "batch time"]:
        return self.place

    def _writes_first(self, time: int) -> bool:
        return time <= 1 + self.capacity - self.window

    def take(self, tokens: Tokens) -> None:
        """Slots by position, the oldest given up for the newest. Raises DataError for packed rows."""
        if tokens.seg is not None:  # two documents of a row have the same positions, and so the same slots
            raise DataError("a ring cache holds one document a row", "packed rows: model.new_cache(batch, ring=False)")
        newest = tokens.pos.amax(-1, keepdim=True)
        stays = (tokens.pos >= 0) & (tokens.pos > newest - self.capacity)  # later tokens of this call take its slot
        self.place = torch.where(stays, tokens.pos % self.capacity, self.capacity)
        if tokens.part is not None and self.part is None:
            self.part = torch.zeros_like(self.pos)
        part = None if self.part is None else self._with(self.part, tokens.place.part)
        self.keys = Tokens(self._with(self.pos, tokens.pos), part=part)

    def _with(self, kept: Int[Tensor, "batch slots"], new: Int[Tensor, "batch time"]) -> Int[Tensor, "batch key"]:
        """Positions or parts of what ``write`` returns."""
        return kept.scatter(1, self.place, new) if self._writes_first(new.shape[1]) else torch.cat((kept, new), 1)

    def write(self, store: Tensor, new: Tensor) -> Tensor:
        everything = store if self._writes_first(new.shape[2]) else torch.cat((store, new), 2)
        store.scatter_(2, self.place[:, None, :, None].expand_as(new), new)
        return everything

    def commit(self, tokens: Tokens) -> None:
        self.pos.scatter_(1, self.place, tokens.pos)
        self.pos[:, self.capacity] = -1
        if self.part is not None:
            self.part.scatter_(1, self.place, tokens.place.part)

    def refuse_truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        ends = lengths[:, None]
        seen = (self.pos < ends) & (self.pos > ends - self.window) & (self.pos >= 0)  # by the next token, but itself
        shorter = self.pos.amax(-1) >= lengths
        if bool((shorter & (seen.sum(-1) < lengths.clamp(max=self.window - 1))).any()):
            raise DataError(
                f"a {self.name} tokens for a window of {self.window} has overwritten what a row cut so short would see",
                "give it more slack, model.new_cache(batch, slack=...), or read the row anew",
            )

    def truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        self.pos = self.pos.masked_fill(self.pos >= lengths[:, None], -1)
