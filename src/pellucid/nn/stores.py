"""How the layers of a new cache are made: each mixer makes its store, equal ones share their slots."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pellucid.nn.cache import LayerCache
from pellucid.nn.documents import OpenDocuments
from pellucid.nn.slots import Contiguous, Ring, Slots


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
        """The one that all layers with a running state share."""
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
