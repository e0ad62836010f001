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

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.documents import OpenDocuments
from pellucid.nn.slots import Slots, refuse_overflow
from pellucid.nn.stores import LayerCache, Memory, MemoryCache, StateCache


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
        """The snapshot of a cache whose rows have become those with these numbers."""
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
        self.slots = list({id(layer.slots): layer.slots for layer in layers}.values())
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
        """Find slots for these tokens in every layer's store. Raises DataError when a row would be too long."""
        if tokens.pos.shape[0] != self.batch:
            raise DataError(f"{tokens.pos.shape[0]} rows for a cache of {self.batch}", "make one with model.new_cache")
        end = self.length + tokens.pos.shape[1]
        if end > self.capacity and not self._plain:
            end = int((self._next + (tokens.pos >= 0).sum(-1)).amax())
        refuse_overflow(end, self.capacity)
        for slots in self.slots:
            slots.take(tokens)

    def commit(self, tokens: Tokens) -> None:
        """Make the tokens of this forward count; the model does so once, after its last block."""
        for slots in self.slots:
            slots.commit(tokens)
        self._plain = self._plain and tokens.start == self.length
        self._next = torch.maximum(self._next, tokens.pos.amax(-1) + 1)
        self.length += tokens.pos.shape[1]

    # --- rows --------------------------------------------------------------------------------------------------------

    def select(self, rows: Int[Tensor, " new"]) -> None:
        """The rows become those with these numbers: reordered, repeated where a number repeats, dropped where it is
        missing."""
        for part in (*self.slots, *self.layers, *self.cross):
            part.select(rows)
        self.memory = None if self.memory is None else self.memory.select(rows)
        self._next, self.batch = self._next[rows], len(rows)

    def append(self, other: Cache) -> None:
        """The rows of ``other``, a cache of the same model and capacity, stand behind these; it must not be used again.

        Raises DataError where they do not fit together.
        """
        alike = [slots.name for slots in self.slots] == [slots.name for slots in other.slots]
        if not alike or self.capacity != other.capacity or (self.memory is None) != (other.memory is None):
            raise DataError(f"{other} cannot join {self}", "make both with the same new_cache(batch, capacity)")
        memory = None if self.memory is None or other.memory is None else self.memory.append(other.memory)
        for mine, theirs in (
            *zip(self.slots, other.slots, strict=True),
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
        kept = [slots for slots in self.slots if isinstance(slots, Slots)]
        for slots in kept:
            slots.refuse_truncate(lengths)
        for slots in kept:
            slots.truncate(lengths)
        self._next = torch.minimum(self._next, lengths)
        self.length = int(self._next.amax()) if self.batch else 0
        self._plain = self._plain and bool((self._next == self.length).all())

    def snapshot(self) -> Snapshot:
        """Where every row is now, to go back to. It copies nothing."""
        states = tuple(layer.tensors for layer in self.layers if isinstance(layer, StateCache))
        documents = next((slots for slots in self.slots if isinstance(slots, OpenDocuments)), None)
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
        for slots in self.slots:
            if isinstance(slots, OpenDocuments) and snapshot.seg is not None:
                slots.seg = torch.where(back, snapshot.seg, slots.seg)

    @property
    def _packed(self) -> bool:
        return any(slots.packed for slots in self.slots)

    # --- facts -------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where positions and keys are."""
        return self._next.device

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of keys and values; None where no layer keeps any."""
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
        kinds = ", ".join(slots.name for slots in self.slots)
        return f"Cache({self.length}/{self.capacity} tokens × {self.batch} rows, {kinds}, {self.n_bytes / 1e6:.1f} MB)"
