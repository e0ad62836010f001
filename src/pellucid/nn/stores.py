"""What one layer keeps of past tokens, what an encoder has read, and the plan by which the stores of a cache are made.

Each mixer makes its own store; stores that keep the same tokens share their slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.documents import OpenDocuments
from pellucid.nn.slots import Contiguous, Ring, Slots


class Keys(NamedTuple):
    """What a layer attends to: k and v of all tokens that the slots' ``keys`` lists."""

    k: Float[Tensor, "batch kv_heads key head_dim"]
    v: Float[Tensor, "batch kv_heads key head_dim"]


class Reserved(NamedTuple):
    """Room for new tokens in a layer's store.

    k, v: (batch, kv_heads, slots, head_dim). places: the slot of each new token. n_keys: how many slots are read.
    """

    k: Tensor
    v: Tensor
    places: Int[Tensor, "batch time"]
    n_keys: int


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

    def reserved(self) -> Reserved:
        """Where the one new token of each row goes, for whoever writes it there and reads all back by itself."""
        self._fit()
        return Reserved(self.k, self.v, self.slots.places, self.slots.keys.pos.shape[1])

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
        """What was read by the rows with these numbers, which may repeat."""
        tokens = self.tokens
        seg, part = (None if marks is None else marks[rows] for marks in (tokens.seg, tokens.part))
        return Memory(self.states[rows], Tokens(tokens.pos[rows], seg, tokens.start, part))

    def append(self, other: Memory) -> Memory:
        """Both, the rows of ``other`` behind these; shorter sources are padded. Raises DataError for packed ones."""
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
class StorePlan:
    """What a new cache is to be; ``Decoder.new_cache`` makes one, and hands it to every ``Mixer.new_store``.

    batch: rows. capacity: tokens per row. dtype: of keys and values; state_dtype: of what running states are made from.
    ring, fixed, grows, slack: see ``Decoder.new_cache``.
    """

    batch: int
    capacity: int
    dtype: torch.dtype
    state_dtype: torch.dtype
    device: torch.device
    ring: bool = True
    fixed: bool = False
    grows: bool = False
    slack: int = 0
    _documents: list[OpenDocuments] = field(default_factory=list[OpenDocuments])
    _slots: dict[int, Slots] = field(default_factory=dict[int, Slots])

    @property
    def documents(self) -> OpenDocuments:
        """What all layers with a running state share: how far each row has read."""
        if not self._documents:
            self._documents.append(OpenDocuments(self.batch, self.device))
        return self._documents[0]

    def slots(self, reach: int | None) -> Slots:
        """The slots of all layers whose queries see at most ``reach`` positions back, itself included."""
        rolls = self.ring and reach is not None and reach + self.slack < self.capacity
        size = reach if rolls and reach is not None else self.capacity
        if size not in self._slots:
            self._slots[size] = (
                Ring(self.batch, size, self.device, slack=self.slack)
                if rolls
                else Contiguous(self.batch, size, self.device, fixed=self.fixed, grows=self.grows)
            )
        return self._slots[size]

    def keys_values(self, n_kv_heads: int, head_dim: int, reach: int | None) -> LayerCache:
        """An empty store of keys and values, (batch, n_kv_heads, slots, head_dim) each."""
        slots = self.slots(reach)
        shape = (self.batch, n_kv_heads, slots.pos.shape[1], head_dim)
        k, v = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return LayerCache(slots, k, v)
