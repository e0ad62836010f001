"""What a model is given to read: ids, where there are any, and what an encoder reads beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Side = Literal["left", "right", "middle"]


@dataclass(frozen=True)
class Reading:
    """Rows of ids. valid: the places that hold a token; None: all. source: what an encoder–decoder's encoder reads.

    prefix: so many places of each row are the prompt, which a model may read both ways (``Subject.marked``).
    """

    ids: Int[Tensor, "batch time"]
    valid: Bool[Tensor, "batch time"] | None = None
    source: Reading | None = None
    prefix: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def there(self) -> Bool[Tensor, "batch time"]:
        """``valid``, written out."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.valid is None else self.valid

    def to(self, device: torch.device) -> Reading:
        """The same reading, on another device."""
        valid = None if self.valid is None else self.valid.to(device)
        source = None if self.source is None else self.source.to(device)
        return replace(self, ids=self.ids.to(device), valid=valid, source=source)

    def rows(self, pick: Any) -> Reading:
        """Some rows, by whatever indexes a tensor's first axis; the source's rows go with them."""
        valid = None if self.valid is None else self.valid[pick]
        source = None if self.source is None else self.source.rows(pick)
        return replace(self, ids=self.ids[pick], valid=valid, source=source)

    def with_ids(self, ids: Int[Tensor, "batch time"]) -> Reading:
        """Other ids in the same places."""
        return replace(self, ids=ids)

    def first(self, time: int) -> Reading:
        """The first ``time`` places of each row; the source stays."""
        valid = None if self.valid is None else self.valid[:, :time]
        return replace(self, ids=self.ids[:, :time], valid=valid)

    def padded(self, side: Side, pad_id: int, gap: int) -> Reading:
        """Rows that had no padding, with ``gap`` empty places in each: in the middle, at another place in each row."""
        rows, time = self.shape
        if side == "middle":
            begin = torch.arange(rows) % (time - 1) + 1
        else:
            begin = torch.full((rows,), 0 if side == "left" else time)
        place = torch.arange(time + gap)
        valid = (place < begin[:, None]) | (place >= begin[:, None] + gap)
        ids = torch.full((rows, time + gap), pad_id).masked_scatter(valid, self.ids)
        return Reading(ids, valid, self.source)


def join(readings: Sequence[Reading]) -> Reading:
    """Rows of the same length, one below the other."""

    def stack(parts: list[Reading]) -> tuple[Tensor, Tensor]:
        return torch.cat([part.ids for part in parts]), torch.cat([part.there for part in parts])

    sources = [reading.source for reading in readings if reading.source is not None]
    return Reading(*stack(list(readings)), Reading(*stack(sources)) if sources else None)
