"""What data makes and what masks, models and objectives read: where each token stands, and what it should predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.errors import DataError
from pellucid.predicates import Place

IGNORE = -100  # the label of a position that is not scored (the value torch's cross_entropy ignores)


@dataclass(frozen=True)
class Tokens:
    """Position, segment and part of every token of a batch: all that a mask, a position or a cache may look at.

    pos: position within its document, from 0; -1 means "no token here": padding on any side, an empty cache slot.
    seg: which document of a packed row; None when a row holds one document.
    start: when known without reading memory that every row's pos is start, start+1, ... with no gap and one segment.
        It is what lets a kernel prove that ``is_causal=True`` or no mask at all is equal to the predicate.
    part: each token's role in its document, 0 (ordinary) or 1 (of the prefix); None when all are ordinary.
    """

    pos: Int[Tensor, "batch time"]
    seg: Int[Tensor, "batch time"] | None = None
    start: int | None = None
    part: Int[Tensor, "batch time"] | None = None

    @staticmethod
    def plain(batch: int, time: int, start: int = 0, device: torch.device | str | None = None) -> Tokens:
        """``time`` tokens in each row, at positions start, start+1, ..."""
        pos = torch.arange(start, start + time, device=device).expand(batch, time)
        return Tokens(pos, None, start)

    @staticmethod
    def padded(valid: Bool[Tensor, "batch time"]) -> Tokens:
        """Rows with padding anywhere (left, right, middle): positions count the valid tokens only."""
        pos = (valid.cumsum(-1) - 1).masked_fill(~valid, -1)
        return Tokens(pos)

    @staticmethod
    def packed(seg: Int[Tensor, "batch time"], part: Int[Tensor, "batch time"] | None = None) -> Tokens:
        """Rows of several documents, one number in ``seg`` a document (contiguous runs); -1 marks padding."""
        time = torch.arange(seg.shape[1], device=seg.device).expand_as(seg)
        first = torch.ones_like(seg, dtype=torch.bool)
        first[:, 1:] = seg[:, 1:] != seg[:, :-1]
        begin = torch.where(first, time, 0).cummax(-1).values  # (batch, time): where this token's document begins
        return Tokens((time - begin).masked_fill(seg < 0, -1), seg, part=part)

    @property
    def segments(self) -> Int[Tensor, "batch time"]:
        """``seg``, or zeros where each row is one document."""
        return torch.zeros_like(self.pos) if self.seg is None else self.seg

    @property
    def place(self) -> Place:
        """Position, segment and part of each token, (batch, time) each: what masks are asked about."""
        return Place(self.pos, self.segments, torch.zeros_like(self.pos) if self.part is None else self.part)

    @property
    def alike(self) -> bool:
        """Whether it is known without reading memory that all rows are equal."""
        return self.start is not None and self.part is None


@dataclass(frozen=True)
class Source:
    """What an encoder reads: ids, and where each stands."""

    ids: Int[Tensor, "batch time"]
    tokens: Tokens


@dataclass(frozen=True)
class Batch:
    """One micro-batch: what a model reads, and what it should say.

    labels[b, t] is the token that position t should predict, already shifted (this is the only place where the shift
    lives: neither model nor objective shifts again); IGNORE where nothing is scored. A classifier's are (batch, 1).
    n_bytes: how many bytes of text the scored labels stand for, the denominator of bits per byte.
    types: the kind of each token, for models that know several. source: what an encoder reads beside. weights: a factor
    for the loss of each label; None when all count alike. draws: a number in [0, 1) for each label, for objectives that
    draw tokens themselves.
    """

    ids: Int[Tensor, "batch time"]
    tokens: Tokens
    labels: Int[Tensor, "batch labels"]
    n_bytes: int = 0
    types: Int[Tensor, "batch time"] | None = None
    source: Source | None = None
    weights: Float[Tensor, "batch labels"] | None = None
    draws: Float[Tensor, "batch labels"] | None = None

    def with_segments(self) -> Batch:
        """The same with segments written out, so that rows with and without a boundary run the same code."""
        source = self.source
        if source is not None:
            source = replace(source, tokens=replace(source.tokens, seg=source.tokens.segments, start=None))
        tokens = replace(self.tokens, seg=self.tokens.segments, start=None)
        return replace(self, tokens=tokens, source=source)

    def to(self, device: torch.device) -> Batch:
        """The same on another device; the batch itself where it is there already."""
        return self if self.ids.device == device else _each(self, lambda tensor: tensor.to(device))

    def first(self, n: int) -> Batch:
        """The first ``n`` rows."""
        return _each(self, lambda tensor: tensor[:n])

    def refuse_unshifted(self) -> None:
        """Raise DataError where labels are the inputs themselves: the silent failure that trains a copying machine."""
        if self.labels.shape != self.ids.shape:
            return
        scored = self.labels != IGNORE
        if int(scored.sum()) > 8 and bool((self.labels == self.ids)[scored].all()):
            constant = int(self.ids[scored].min()) == int(self.ids[scored].max())
            if not constant:
                raise DataError(
                    "labels equal the inputs at every scored position: they were not shifted",
                    "labels[:, t] must be the token after ids[:, t]",
                )


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device | None = None) -> Int[Tensor, "batch time"]:
    """Rows as one tensor; shorter ones are filled at their end."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass of tensors, or of such dataclasses, with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _each(getattr(value, field.name), change) for field in fields(value)})
