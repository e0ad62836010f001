"""Span corruption: hidden spans become sentinels, and the target says what stood behind each (Raffel et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from pellucid.data.rewriting import Ids, Rewritten
from pellucid.errors import DataError


@dataclass(frozen=True)
class Spans:
    """Of a row ``a b c d e f``, with ``c d`` hidden: source ``a b <0> e f``, target ``<0> c d <1> end`` (figure 2).

    sentinels: their ids, in the order of use; the last one used ends the last span. end: the token that ends a text.
    masked: share of the tokens that are hidden. span: mean length of a hidden span, in tokens.
    """

    sentinels: tuple[int, ...]
    end: int
    masked: float = 0.15
    span: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise DataError(f"masked = {self.masked} of the tokens leaves no text", "choose a share between 0 and 1")

    def __call__(self, ids: Ids, rng: np.random.Generator) -> Rewritten:
        return hide(ids, random_spans(len(ids), self.masked, self.span, rng), self.sentinels, self.end)

    def refuse(self, row: int) -> None:
        """Raise DataError for rows shorter than a span, too few sentinels, and a target longer than a row."""
        refuse_spans(row, self.masked, self.span, len(self.sentinels))


def counts(row: int, masked: float, span: float) -> tuple[int, int]:
    """(hidden tokens, hidden spans) of a row of so many tokens: they follow from its length alone."""
    tokens = min(max(round(row * masked), 1), row - 1)
    return tokens, min(max(round(tokens / span), 1), tokens, row - tokens)


def random_spans(row: int, masked: float, span: float, rng: np.random.Generator) -> Bool[np.ndarray, " row"]:
    """Which tokens are hidden: kept and hidden spans in turn, a kept one first, all divisions equally likely."""
    tokens, spans = counts(row, masked, span)
    hidden, kept = _lengths(tokens, spans, rng), _lengths(row - tokens, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack((kept, hidden), 1).ravel())


def _lengths(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """The lengths of ``parts`` pieces, none of them empty, into which ``items`` are cut at random."""
    cuts = 1 + np.sort(rng.choice(items - 1, parts - 1, replace=False)) if parts > 1 else np.zeros(0, np.int64)
    return np.diff(np.concatenate(([0], cuts, [items])))


def hide(ids: Ids, hidden: Bool[np.ndarray, " row"], sentinels: Sequence[int], end: int) -> Rewritten:
    """A row whose hidden spans become one sentinel each, and what they hid."""
    begins = np.flatnonzero(np.diff(hidden, prepend=False) & hidden)
    ends = np.flatnonzero(np.diff(hidden, append=False) & hidden) + 1
    source, target, is_text = list[np.ndarray](), list[np.ndarray](), list[bool]()
    at = 0
    for sentinel, begin, stop in zip(sentinels, begins, ends, strict=False):
        source += [ids[at:begin], np.array([sentinel])]
        target += [np.array([sentinel]), ids[begin:stop]]
        is_text += [False, *[True] * int(stop - begin)]
        at = int(stop)
    target += [np.array([sentinels[len(begins)], end])]
    marks = np.array([*is_text, False, False], dtype=np.bool_)
    return Rewritten(np.concatenate((*source, ids[at:])), np.concatenate(target), marks)


def refuse_spans(row: int, masked: float, span: float, sentinels: int) -> None:
    """Raise DataError where spans of this mean length do not fit a row, its sentinels or its target."""
    if span < 1 or span >= row:
        raise DataError(f"hidden spans of {span:g} tokens do not fit rows of {row}", f"choose 1 <= --span < {row}")
    tokens, spans = counts(row, masked, span)
    if spans + 1 > sentinels:
        raise DataError(
            f"{spans} hidden spans of a row need {spans + 1} sentinels, but the vocabulary has {sentinels}",
            "choose longer spans with --span, or a shorter --context; or train a tokenizer with more of them",
        )
    if tokens + spans + 2 > row + 1:
        raise DataError(
            f"a target of {tokens} hidden tokens and {spans + 2} others is longer than a row of {row}",
            "hide fewer with --masked, or choose longer spans with --span",
        )
