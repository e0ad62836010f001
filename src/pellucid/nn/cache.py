"""What is kept of past tokens, keys and values or a running state: an argument of the model, never part of it.

A forward with a cache goes: the model takes slots for the new tokens (``take``), each layer writes its k and v there
and reads everything back (``extend``), the model makes it count (``commit``). Positions are kept once for all layers
that keep the same tokens (``nn.slots``). A decoder's cache also holds what its encoder read, and each layer's keys and
values of that, which never change.

Rows are independent of each other: they may be reordered, repeated and dropped (``select``), joined by others
(``append``), and cut (``truncate``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.documents import OpenDocuments
from pellucid.nn.slots import Slots


class Keys(NamedTuple):
    """What a layer attends to: k and v of all tokens that the slots' ``keys`` lists."""

    k: Float[Tensor, "batch kv_heads key head_dim"]
    v: Float[Tensor, "batch kv_heads key head_dim"]


class LayerCache:
    """One layer's keys and values, (batch, kv_heads, slots, head_dim) each."""

    def __init__(self, slots: Slots, k: Tensor, v: Tensor):
        self.slots, self.k, self.v = slots, k, v

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept."""
        return self.k, self.v

    def extend(self, k: Tensor, v: Tensor) -> Keys:
        """Keep the new tokens' k and v; return those of all tokens that ``slots.keys`` lists."""
        self._fit()
        return Keys(self.slots.write(self.k, k), self.slots.write(self.v, v))

    def select(self, rows: Int[Tensor, " new"]) -> None:
        """The rows become those with these numbers."""
        self.k, self.v = self.k[rows], self.v[rows]

    def append(self, other: LayerCache) -> None:
        """The rows of ``other`` stand behind these; the slots have been appended."""
        self._fit()
        other.slots = self.slots
        other._fit()
        self.k, self.v = torch.cat((self.k, other.k)), torch.cat((self.v, other.v))

    def _fit(self) -> None:
        if self.k.shape[2] != self.slots.pos.shape[1]:
            self.k, self.v = self.slots.fitted(self.k), self.slots.fitted(self.v)


class StateCache:
    """One layer's running state, a mixer's own tensors, batch first; the mixer reads them and sets the new ones.

    They are replaced at each forward and never written into, so keeping the old ones is a snapshot.
    """

    def __init__(self, slots: OpenDocuments, tensors: tuple[Tensor, ...]):
        self.slots, self.tensors = slots, tensors

    def select(self, rows: Int[Tensor, " new"]) -> None:
        """The rows become those with these numbers."""
        self.tensors = tuple(tensor[rows] for tensor in self.tensors)

    def append(self, other: StateCache) -> None:
        """The rows of ``other`` stand behind these."""
        self.tensors = tuple(torch.cat(pair) for pair in zip(self.tensors, other.tensors, strict=True))


class MemoryCache:
    """One layer's projections of an encoder's states, made by the first forward that attends to them.

    Each is (batch, …, source_time, width); None: not made yet.
    """

    def __init__(self) -> None:
        self.tensors: tuple[Tensor, ...] | None = None

    def select(self, rows: Int[Tensor, " new"]) -> None:
        """The rows become those with these numbers."""
        self.tensors = None if self.tensors is None else tuple(tensor[rows] for tensor in self.tensors)

    def append(self, other: MemoryCache) -> None:
        """The rows of ``other`` stand behind these. Where one side is not made yet, the next forward makes both."""
        if self.tensors is None or other.tensors is None:
            self.tensors = None
        else:
            self.tensors = tuple(_one_below_the_other(*pair) for pair in zip(self.tensors, other.tensors, strict=True))


@dataclass(frozen=True)
class Memory:
    """What an encoder has read: a state for each token, and where the tokens stand."""

    states: Float[Tensor, "batch time d_model"]
    tokens: Tokens

    def select(self, rows: Int[Tensor, " new"]) -> Memory:
        """Of the rows with these numbers, which may repeat."""
        tokens = self.tokens
        seg, part = (None if marks is None else marks[rows] for marks in (tokens.seg, tokens.part))
        return Memory(self.states[rows], Tokens(tokens.pos[rows], seg, tokens.start, part))

    def append(self, other: Memory) -> Memory:
        """With the rows of ``other`` behind these; the shorter sources are padded. Raises DataError for packed ones."""
        if self.tokens.seg is not None or other.tokens.seg is not None:
            raise DataError("packed sources cannot be joined: a row has several documents", "one source a row")
        time = max(self.states.shape[1], other.states.shape[1])
        pos = torch.cat([F.pad(m.tokens.pos, (0, time - m.states.shape[1]), value=-1) for m in (self, other)])
        alike = self.tokens.start == other.tokens.start and self.states.shape[1] == other.states.shape[1]
        return Memory(
            _one_below_the_other(self.states, other.states), Tokens(pos, None, self.tokens.start if alike else None)
        )


def _one_below_the_other(a: Tensor, b: Tensor) -> Tensor:
    """Rows of both, (…, time, width); what is shorter in time is padded with zeros at its end."""
    time = max(a.shape[-2], b.shape[-2])
    return torch.cat([F.pad(x, (0, 0, 0, time - x.shape[-2])) if x.shape[-2] < time else x for x in (a, b)])


@dataclass(frozen=True)
class Snapshot:
    """How far each row of a cache has read, and its running states there: what ``Cache.restore`` goes back to.

    lengths: the position of each row's next token. states: of each layer with a running state. seg: the document that
    each row is in.
    """

    lengths: Int[Tensor, " batch"]
    states: tuple[tuple[Tensor, ...], ...]
    seg: Int[Tensor, " batch"] | None

    def select(self, rows: Int[Tensor, " new"]) -> Snapshot:
        """Of a cache whose rows have become those with these numbers."""
        states = tuple(tuple(tensor[rows] for tensor in layer) for layer in self.states)
        return Snapshot(self.lengths[rows], states, None if self.seg is None else self.seg[rows])


class Cache:
    """What all layers keep, and where each row goes on. Made by ``model.new_cache``.

    capacity: how many tokens a row may have. length: how many the longest row has (at least that, where rows differ).
    memory: what the encoder has read, for a decoder that attends to it; ``cross`` holds each layer's view of it.
    """

    def __init__(
        self,
        layers: list[LayerCache | StateCache],
        batch: int,
        capacity: int,
        device: torch.device | str | None = None,
        memory: Memory | None = None,
    ):
        self.layers, self.batch, self.capacity = layers, batch, capacity
        self.memory, self.cross = memory, [MemoryCache() for _ in layers]
        self.layouts = list({id(layer.slots): layer.slots for layer in layers}.values())
        self.length = 0
        self._next = torch.zeros(batch, dtype=torch.long, device=device)
        self._plain = True  # no padding and no packing so far: every row goes on at ``length``

    # --- a forward ---------------------------------------------------------------------------------------------------

    def next_positions(self) -> Int[Tensor, " batch"]:
        """The position of each row's next token."""
        return self._next.clone()

    def continuing(self, time: int) -> Tokens:
        """``time`` tokens that go on where each row ends. Raises DataError where a row is several documents."""
        if self._packed:
            raise DataError("packed rows have no one place to go on at", "say where the tokens stand: Tokens(pos, seg)")
        if self._plain:
            return Tokens.plain(self.batch, time, self.length, self._next.device)
        return Tokens(self._next[:, None] + torch.arange(time, device=self._next.device))

    def take(self, tokens: Tokens) -> None:
        """Find slots for these tokens in every layout. Raises DataError when a row would be too long."""
        if tokens.pos.shape[0] != self.batch:
            raise DataError(f"{tokens.pos.shape[0]} rows for a cache of {self.batch}", "make one with model.new_cache")
        end = self.length + tokens.pos.shape[1]
        if end > self.capacity and not self._plain:
            end = int((self._next + (tokens.pos >= 0).sum(-1)).amax())
        if end > self.capacity:
            raise DataError(
                f"the cache holds {self.capacity} tokens, but this call needs {end}",
                "make it larger: model.new_cache(batch, capacity)",
            )
        for layout in self.layouts:
            layout.take(tokens)

    def commit(self, tokens: Tokens) -> None:
        """Make the tokens of this forward count; the model does so once, after its last block."""
        for layout in self.layouts:
            layout.commit(tokens)
        self._plain = self._plain and tokens.start == self.length
        self._next = torch.maximum(self._next, tokens.pos.amax(-1) + 1)
        self.length += tokens.pos.shape[1]

    # --- rows --------------------------------------------------------------------------------------------------------

    def select(self, rows: Int[Tensor, " new"]) -> None:
        """The rows become those with these numbers: reordered, repeated where a number repeats, dropped where it is
        missing."""
        for part in (*self.layouts, *self.layers, *self.cross):
            part.select(rows)
        self.memory = None if self.memory is None else self.memory.select(rows)
        self._next, self.batch = self._next[rows], len(rows)

    def append(self, other: Cache) -> None:
        """The rows of ``other``, a cache of the same model and capacity, stand behind these; it must not be used again.

        Raises DataError where they do not fit together.
        """
        alike = [layout.name for layout in self.layouts] == [layout.name for layout in other.layouts]
        if not alike or self.capacity != other.capacity or (self.memory is None) != (other.memory is None):
            raise DataError(f"{other} cannot join {self}", "make both with the same new_cache(batch, capacity)")
        memory = None if self.memory is None or other.memory is None else self.memory.append(other.memory)
        for mine, theirs in (
            *zip(self.layouts, other.layouts, strict=True),
            *zip(self.layers, other.layers, strict=True),
            *zip(self.cross, other.cross, strict=True),
        ):
            mine.append(theirs)  # type: ignore[arg-type]  # of one kind, each with each
        self._plain = self._plain and other._plain and self.length == other.length
        self.memory, self.length = memory, max(self.length, other.length)
        self._next, self.batch = torch.cat((self._next, other._next)), self.batch + other.batch

    @property
    def keeps_states(self) -> bool:
        """Whether some layer has a running state, which can go back to a snapshot only."""
        return any(isinstance(layer, StateCache) for layer in self.layers)

    def truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        """Forget each row's tokens from position ``lengths`` on; rows that are shorter stay as they are.

        Raises DataError, and changes nothing, where a running state would have to go back, where a ring has overwritten
        what is needed (see ``slack`` of ``new_cache``), and for packed rows.
        """
        if self.keeps_states and bool((lengths < self._next).any()):
            raise DataError("a running state cannot forget tokens", "take a snapshot before, and restore it")
        self._truncate(lengths)

    def _truncate(self, lengths: Int[Tensor, " batch"]) -> None:
        if len(lengths) != self.batch:
            raise DataError(f"{len(lengths)} lengths for a cache of {self.batch} rows", "give one length a row")
        slots = [layout for layout in self.layouts if isinstance(layout, Slots)]
        for layout in slots:
            layout.refuse_truncate(lengths)
        for layout in slots:
            layout.truncate(lengths)
        self._next = torch.minimum(self._next, lengths)
        self.length = int(self._next.amax()) if self.batch else 0
        self._plain = self._plain and bool((self._next == self.length).all())

    def snapshot(self) -> Snapshot:
        """Where every row is now, to go back to. It copies nothing."""
        states = tuple(layer.tensors for layer in self.layers if isinstance(layer, StateCache))
        documents = next((layout for layout in self.layouts if isinstance(layout, OpenDocuments)), None)
        return Snapshot(self._next, states, None if documents is None else documents.seg)

    def restore(self, snapshot: Snapshot, rows: Int[Tensor, " some"] | None = None) -> None:
        """Go back to where a snapshot was taken, with the rows of these numbers (None: all).

        The rows must be those of then. Raises as ``truncate`` does, except for running states.
        """
        every = torch.arange(self.batch, device=self._next.device)
        rows = every if rows is None else rows
        if len(snapshot.lengths) != self.batch:
            raise DataError(f"a snapshot of {len(snapshot.lengths)} rows, the cache has {self.batch}", "take a new one")
        back = torch.isin(every, rows)
        self._truncate(torch.where(back, snapshot.lengths, self._next))
        states = iter(snapshot.states)
        for layer in self.layers:
            if isinstance(layer, StateCache):
                then = next(states)
                layer.tensors = tuple(
                    torch.where(back.view(-1, *[1] * (new.ndim - 1)), old, new)
                    for old, new in zip(then, layer.tensors, strict=True)
                )
        for layout in self.layouts:
            if isinstance(layout, OpenDocuments) and snapshot.seg is not None:
                layout.seg = torch.where(back, snapshot.seg, layout.seg)

    @property
    def _packed(self) -> bool:
        return any(
            layout.packed if isinstance(layout, OpenDocuments) else layout.seg is not None for layout in self.layouts
        )

    # --- facts -------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where positions and keys are."""
        return self._next.device

    @property
    def dtype(self) -> torch.dtype | None:
        """Of keys and values; None where no layer keeps any."""
        return next((layer.k.dtype for layer in self.layers if isinstance(layer, LayerCache)), None)

    @property
    def n_bytes(self) -> int:
        """Memory of all keys, values and states, and of what the encoder has read."""
        own = [t for layer in self.layers for t in layer.tensors]
        read = [] if self.memory is None else [self.memory.states]
        read += [t for layer in self.cross for t in layer.tensors or ()]
        once = {id(t): t for t in read}.values()  # a layer that projects nothing keeps the states themselves
        return sum(t.numel() * t.element_size() for t in (*own, *once))

    def __repr__(self) -> str:
        kinds = ", ".join(layout.name for layout in self.layouts)
        return f"Cache({self.length}/{self.capacity} tokens × {self.batch} rows, {kinds}, {self.n_bytes / 1e6:.1f} MB)"
