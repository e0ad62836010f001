"""UL2's mixture of denoisers: short spans, long or many spans, and the end of a row (Tay et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pellucid.data.rewriting import Ids, Rewritten
from pellucid.data.spans import hide, random_spans, refuse_spans

R, S, X = range(3)  # regular, sequential and extreme denoising: the places of their tokens in ``modes``


class Denoiser(NamedTuple):
    """One way to hide spans. masked: share of the tokens. span: mean length; None: one span, at the row's end."""

    mode: int
    masked: float
    span: float | None


MIXTURE = (  # table 1 of the paper: each row is rewritten by one of these, all equally likely
    Denoiser(R, 0.15, 3.0),
    Denoiser(R, 0.15, 8.0),
    Denoiser(S, 0.25, None),
    Denoiser(X, 0.5, 3.0),
    Denoiser(X, 0.5, 8.0),
    Denoiser(X, 0.15, 64.0),
    Denoiser(X, 0.5, 64.0),
)


@dataclass(frozen=True)
class MixtureOfDenoisers:
    """Each row is rewritten as ``spans.Spans`` does, with one of several rates, and told which by its first token.

    sentinels, end: as of ``Spans``. modes: the tokens that stand before rows of R-, S- and X-denoising.
    """

    sentinels: tuple[int, ...]
    end: int
    modes: tuple[int, int, int]
    mixture: tuple[Denoiser, ...] = MIXTURE

    def __call__(self, ids: Ids, rng: np.random.Generator) -> Rewritten:
        how = self.mixture[int(rng.integers(len(self.mixture)))]
        if how.span is None:
            hidden = np.arange(len(ids)) >= len(ids) - _last(len(ids), how.masked)
        else:
            hidden = random_spans(len(ids), how.masked, how.span, rng)
        rewritten = hide(ids, hidden, self.sentinels, self.end)
        return rewritten._replace(source=np.append(self.modes[how.mode], rewritten.source))

    def refuse(self, row: int) -> None:
        """Raise DataError for rows whose spans need more sentinels than there are, or a target longer than a row.

        A row that is shorter than a span of the mixture has one span of as many tokens as its rate allows.
        """
        for how in self.mixture:
            span = min(how.span or math.inf, row - 1.0)
            refuse_spans(row, how.masked, span, len(self.sentinels))


def _last(row: int, masked: float) -> int:
    """How many tokens at the end of a row are hidden."""
    return min(max(round(row * masked), 1), row - 1)
