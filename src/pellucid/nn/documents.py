"""Which tokens share a running state: what a recurrent or linearised mixer must know about documents and padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.nn.rope import Rotation

NOTHING_READ = -2  # the document of a state that has read no token: equal to no segment, and to no padding's


@dataclass(frozen=True)
class Documents:
    """Documents along each row, as a state sees them.

    valid: False where there is no token: the state passes by unchanged, the output is zero. None: all are tokens.
    doc: the document of each token, counted along the row: 0 goes on from the state that was handed in; 1, 2, ... begin
        with an empty state; padding counts with the token before it. None: all are 0.
    rotation: rotary angles, for mixers that turn q and k.
    """

    valid: Bool[Tensor, "batch time"] | None
    doc: Int[Tensor, "batch time"] | None
    rotation: Rotation | None = None


def _segments(tokens: Tokens, before: Int[Tensor, " batch"]) -> Int[Tensor, "batch time"]:
    """The segment of each token; padding takes that of the token before it, and at first what came ``before``."""
    time = torch.arange(tokens.pos.shape[1], device=tokens.pos.device)
    last = torch.where(tokens.pos >= 0, time, -1).cummax(-1).values  # (batch, time): the newest token so far
    return torch.where(last >= 0, tokens.segments.gather(-1, last.clamp(min=0)), before[:, None])


def find_documents(
    tokens: Tokens, before: Int[Tensor, " batch"] | None = None, rotation: Rotation | None = None
) -> Documents:
    """The documents of a call. ``before``: the segment that each row's state has read last, if rows may be packed."""
    valid = None if tokens.start is not None else tokens.pos >= 0
    if tokens.seg is None and before is None:
        return Documents(valid, None, rotation)
    if before is None:
        before = torch.full_like(tokens.pos[:, 0], NOTHING_READ)
    seg = _segments(tokens, before)
    begins = seg != torch.cat((before[:, None], seg[:, :-1]), 1)
    return Documents(valid, begins.cumsum(-1), rotation)


class OpenDocuments:
    """How far the states of a cache have read: the document that each row is in."""

    name = "state"

    def __init__(self, batch: int, device: torch.device | str | None = None):
        self.seg = torch.full((batch,), NOTHING_READ, dtype=torch.long, device=device)
        self.packed = False  # False as long as each row is one document

    @property
    def before(self) -> Int[Tensor, " batch"] | None:
        """The ``before`` of ``find_documents``."""
        return self.seg if self.packed else None

    def take(self, tokens: Tokens) -> None:
        """Note whether these tokens are packed."""
        self.packed = self.packed or tokens.seg is not None

    def commit(self, tokens: Tokens) -> None:
        """Remember the document of each row's newest token."""
        if tokens.pos.shape[1]:
            self.seg = _segments(tokens, self.seg)[:, -1]

    def select(self, rows: Int[Tensor, " new"]) -> None:
        """The rows become those with these numbers, which may repeat."""
        self.seg = self.seg[rows]

    def append(self, other: OpenDocuments) -> None:
        """The rows of ``other`` stand behind these."""
        self.seg, self.packed = torch.cat((self.seg, other.seg)), self.packed or other.packed
