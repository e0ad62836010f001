"""What is kept of past tokens, keys and values or a running state: an argument of the model, never part of it.

A forward with a cache goes: the model takes places for the new tokens (``take``), each layer writes its k and v there
and reads everything back (``extend``), the model makes it count (``commit``). Positions are kept once a layout.
Masks need no word about any of this: empty places have position -1. A decoder's cache also holds what its encoder
read, and each layer's keys and values of that, which never change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.runs import Progress


class Slots(ABC):
    """Which place holds which token, for all layers of one layout. ``keys``: the places that ``extend`` returns."""

    name: str
    keys: Tokens

    def __init__(self, batch: int, capacity: int, device: torch.device | str | None):
        self.pos = torch.full((batch, capacity), -1, dtype=torch.long, device=device)
        self.keys = Tokens(self.pos[:, :0], None, 0)

    @abstractmethod
    def take(self, tokens: Tokens) -> None:
        """Choose places for these tokens and set ``keys``."""

    @abstractmethod
    def write(self, store: Tensor, new: Tensor) -> Tensor:
        """Put ``new`` (batch, kv_heads, time, head_dim) into the layer's store; return what ``keys`` describes."""

    @abstractmethod
    def commit(self, tokens: Tokens) -> None:
        """Make the taken places count."""


class Contiguous(Slots):
    """Column after column, padding included: appending is one copy."""

    def __init__(self, batch: int, capacity: int, device: torch.device | str | None = None):
        super().__init__(batch, capacity, device)
        self.name, self.capacity, self.length = "contiguous", capacity, 0
        self.seg, self.packed = torch.zeros_like(self.pos), False
        self.part, self.parted = torch.zeros_like(self.pos), False

    def take(self, tokens: Tokens) -> None:
        """The next columns, one for each column of ``tokens``. Raises DataError where there are not that many left."""
        end = self.length + tokens.pos.shape[1]
        if end > self.capacity:
            raise DataError(
                f"the cache holds {self.capacity} tokens, but this call needs {end}",
                "make it larger: model.new_cache(batch, capacity)",
            )
        self.pos[:, self.length : end] = tokens.pos
        if tokens.seg is not None:
            self.packed = True
            self.seg[:, self.length : end] = tokens.seg
        if tokens.part is not None:
            self.parted = True
            self.part[:, self.length : end] = tokens.part
        gapless = tokens.start == self.length and self.keys.start == 0 and not self.packed
        seg = self.seg[:, :end] if self.packed else None
        part = self.part[:, :end] if self.parted else None
        self.keys = Tokens(self.pos[:, :end], seg, 0 if gapless else None, part)

    def write(self, store: Tensor, new: Tensor) -> Tensor:
        end = self.length + new.shape[2]
        store[:, :, self.length : end] = new
        return store[:, :, :end]

    def commit(self, tokens: Tokens) -> None:
        self.length += tokens.pos.shape[1]


class Ring(Slots):
    """Position p lives in place p mod capacity, so a window of ``capacity`` tokens needs no more memory than itself.

    Padding goes to one extra place that stays empty. A call with several tokens must not overwrite what its own first
    tokens still see: it attends over (old places, new tokens) and writes afterwards. A token by itself writes first:
    what it overwrites has just left its window, and nothing is copied.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device | str | None = None):
        super().__init__(batch, capacity + 1, device)
        self.name, self.capacity = f"ring of {capacity}", capacity
        self.part, self.parted = torch.zeros_like(self.pos), False
        self.place = self.pos[:, :0]

    def take(self, tokens: Tokens) -> None:
        """Places by position, the oldest given up for the newest. Raises DataError for packed rows."""
        if tokens.seg is not None:  # two documents of a row have the same positions, and so the same places
            raise DataError("a ring cache holds one document a row", "packed rows: model.new_cache(batch, ring=False)")
        newest = tokens.pos.amax(-1, keepdim=True)
        stays = (tokens.pos >= 0) & (tokens.pos > newest - self.capacity)  # later tokens of this call take its place
        self.place = torch.where(stays, tokens.pos % self.capacity, self.capacity)
        self.parted = self.parted or tokens.part is not None
        part = self._joined(self.part, tokens.place.part) if self.parted else None
        self.keys = Tokens(self._joined(self.pos, tokens.pos), part=part)

    def _joined(self, kept: Tensor, new: Tensor) -> Tensor:
        """What ``write`` returns the keys of, here of their positions or parts."""
        return kept.scatter(1, self.place, new) if new.shape[1] == 1 else torch.cat((kept, new), 1)

    def write(self, store: Tensor, new: Tensor) -> Tensor:
        everything = store if new.shape[2] == 1 else torch.cat((store, new), 2)
        store.scatter_(2, self.place[:, None, :, None].expand_as(new), new)
        return everything

    def commit(self, tokens: Tokens) -> None:
        self.pos.scatter_(1, self.place, tokens.pos)
        self.pos[:, self.capacity] = -1
        if self.parted:
            self.part.scatter_(1, self.place, tokens.place.part)


class LayerCache:
    """One layer's keys and values, (batch, kv_heads, slots, head_dim) each."""

    def __init__(self, slots: Slots, k: Tensor, v: Tensor):
        self.slots, self.k, self.v = slots, k, v

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept."""
        return self.k, self.v

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new tokens' k and v; return those of all tokens that ``slots.keys`` lists."""
        return self.slots.write(self.k, k), self.slots.write(self.v, v)


class StateCache:
    """One layer's running state, a mixer's own tensors, batch first; the mixer reads them and sets the new ones."""

    def __init__(self, slots: Progress, tensors: tuple[Tensor, ...]):
        self.slots, self.tensors = slots, tensors


class MemoryCache:
    """One layer's projections of an encoder's states, made by the first forward that attends to them."""

    def __init__(self) -> None:
        self.tensors: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Memory:
    """What an encoder has read: a state for each token, and where the tokens stand."""

    states: Float[Tensor, "batch time d_model"]
    tokens: Tokens


class Cache:
    """What all layers keep, and where each row goes on. Made by ``model.new_cache``.

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

    def next_positions(self) -> Int[Tensor, " batch"]:
        """The position of each row's next token."""
        return self._next.clone()

    def continuing(self, time: int) -> Tokens:
        """``time`` tokens that go on where each row ends. Raises DataError where a row is several documents."""
        if any(getattr(layout, "packed", False) for layout in self.layouts):
            raise DataError("packed rows have no one place to go on at", "say where the tokens stand: Tokens(pos, seg)")
        if self._plain:
            return Tokens.plain(self.batch, time, self.length, self._next.device)
        return Tokens(self._next[:, None] + torch.arange(time, device=self._next.device))

    def take(self, tokens: Tokens) -> None:
        """Find places for these tokens in every layout. Raises DataError when a layout is full."""
        if tokens.pos.shape[0] != self.batch:
            raise DataError(f"{tokens.pos.shape[0]} rows for a cache of {self.batch}", "make one with model.new_cache")
        if self.length + tokens.pos.shape[1] > self.capacity:
            raise DataError(
                f"the cache holds {self.capacity} tokens, but this call needs {self.length + tokens.pos.shape[1]}",
                "make it larger: model.new_cache(batch, capacity)",
            )
        for layout in self.layouts:
            layout.take(tokens)

    def commit(self, tokens: Tokens) -> None:
        """Make the tokens of this forward count; the model does so once, after its last block."""
        for layout in self.layouts:
            layout.commit(tokens)
        self._plain = self._plain and tokens.start == self.length
        self.length += tokens.pos.shape[1]
        self._next = torch.maximum(self._next, tokens.pos.amax(-1) + 1)

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
