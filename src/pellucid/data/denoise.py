"""Denoising: sentences change places, spans become one mask each, and the target is the text (Lewis et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from pellucid.data.rewriting import Ids, Rewritten
from pellucid.errors import DataError
from pellucid.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Denoising:
    """Sentence permutation, then text infilling (section 2.2): how BART was trained.

    mask: the token that stands for a span of any length, also of none. end: the token that ends a text. masked: share
    of the tokens that are hidden. span: mean of the Poisson distribution of a span's length, in tokens. stops: which
    tokens of the vocabulary end a sentence, (vocab,); None: sentences stay where they are. separator: the token that
    stands between documents, whose sentences do not mix.
    """

    mask: int
    end: int
    separator: int
    masked: float = 0.3
    span: float = 3.0
    stops: Bool[np.ndarray, " vocab"] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise DataError(f"masked = {self.masked} of the tokens leaves no text", "choose a share between 0 and 1")

    def __call__(self, ids: Ids, rng: np.random.Generator) -> Rewritten:
        order = np.arange(len(ids))
        if self.stops is not None:
            order = permuted(ids == self.separator, self.stops[ids], rng)
        kept = infilled(span_lengths(len(ids), self.masked, self.span, rng), len(ids), rng)
        source = np.where(kept >= 0, ids[order[kept]], self.mask)
        hidden = np.ones(len(ids) + 1, dtype=np.bool_)
        hidden[order[kept[kept >= 0]]] = False
        hidden[-1] = False
        return Rewritten(source, np.append(ids, self.end), hidden)

    def refuse(self, row: int) -> None:
        """Raise DataError for rows shorter than a span."""
        if not 0 < self.span < row:
            raise DataError(
                f"hidden spans of {self.span:g} tokens do not fit rows of {row}", f"choose 0 < --span < {row}"
            )


def sentence_ends(tokenizer: Tokenizer) -> Bool[np.ndarray, " vocab"]:
    """Which tokens end a sentence: those in which a full stop is the last that is no space or quotation mark."""
    texts = (tokenizer.bytes_of(number) for number in range(tokenizer.vocab_size))
    return np.array([text.rstrip(b" \t\r\n\"')").endswith(b".") for text in texts], dtype=np.bool_)


def permuted(
    separators: Bool[np.ndarray, " row"], stops: Bool[np.ndarray, " row"], rng: np.random.Generator
) -> Int64[np.ndarray, " row"]:
    """The places of a row's tokens after the sentences of each document have changed places. Separators stay."""
    last = stops | separators
    last[:-1] |= separators[1:]
    starts = np.concatenate(([0], np.flatnonzero(last[:-1]) + 1))
    pieces = np.split(np.arange(len(stops)), starts[1:])
    fixed = separators[starts]
    document = np.cumsum(fixed)
    order = np.arange(len(pieces))
    for number in np.unique(document):
        own = np.flatnonzero((document == number) & ~fixed)
        order[own] = rng.permutation(own)
    return np.concatenate([pieces[number] for number in order])


def span_lengths(row: int, masked: float, span: float, rng: np.random.Generator) -> Int64[np.ndarray, " spans"]:
    """Lengths of hidden spans, Poisson (span), until the share ``masked`` of the row is hidden: the last is cut to it.

    There are never more spans than hidden tokens.
    """
    tokens = min(max(round(row * masked), 1), row - 1)
    lengths = rng.poisson(span, tokens)
    used = 1 + int(np.searchsorted(lengths.cumsum(), tokens))
    lengths = lengths[:used]
    lengths[-1] += tokens - lengths.sum()
    return lengths


def infilled(lengths: Int64[np.ndarray, " spans"], row: int, rng: np.random.Generator) -> Int64[np.ndarray, " source"]:
    """For each token of the source the place in the row where it stood, −1 for a mask. All arrangements of the spans
    among the kept tokens are equally likely, and none touch another token twice."""
    size = row - int(lengths.sum()) + len(lengths)
    is_mask = np.zeros(size, dtype=np.bool_)
    is_mask[rng.choice(size, len(lengths), replace=False)] = True
    width = np.ones(size, dtype=np.int64)
    width[is_mask] = lengths
    return np.where(is_mask, -1, width.cumsum() - width)
