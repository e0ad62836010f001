"""From a stream of tokens to batches, in an order that a seed and a step number fully decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.data.store import Encoded, TokenStore
from pellucid.errors import DataError, UsageError
from pellucid.predicates import Ahead

Places = Int64[np.ndarray, "rows context"]
Marks = Bool[np.ndarray, "rows context"]
_FOR_PREFIXES = 0x9EF1  # keeps random numbers for prefixes apart from those for the order


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, rows: int, slack: int) -> tuple[int, Int64[np.ndarray, " rows"]]:
    """How far an epoch's rows are shifted, in 0…slack, and the order in which they are read."""
    rng = random_for(seed, epoch)
    return int(rng.integers(slack + 1)), rng.permutation(rows)


def random_for(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that are a function of the seed and the key alone, such as of a step and a row of it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


def share(batch_size: int, micro_batches: int, rank: int, world: int) -> list[range]:
    """Which of a step's rows, 0 … batch_size - 1, are in each micro-batch of this rank. Shares differ by at most one.

    Raises UsageError where there are fewer rows than shares, and for a rank that does not exist.
    """
    parts = world * micro_batches
    if not 0 <= rank < world:
        raise UsageError(f"micro 0 of {micro_batches} on rank {rank} of {world} does not exist")
    if batch_size < parts:
        raise UsageError(
            f"batch_size={batch_size} cannot be shared by {world} ranks × {micro_batches} micro-batches",
            f"choose a batch_size of at least {parts}",
        )
    first = rank * micro_batches
    return [
        range(batch_size * part // parts, batch_size * (part + 1) // parts)
        for part in range(first, first + micro_batches)
    ]


class Packed:
    """Rows of ``context`` tokens cut from the stream of a store, for training.

    An epoch shifts all cuts by its own random offset, so a document is not cut at the same places every time, and reads
    the rows in its own random order. A row may hold several documents: segments keep them apart, and the positions of
    each begin at 0 (as do those of a document whose beginning was cut off).
    A model that lets tokens see later ones (``ahead``; ``DecoderSpec.ahead``) is not scored where it sees the label. If
    these are the tokens of a prefix of each document's own, then sample n says which: of a document's tokens in the row
    the first 1, 2, … or all, each number as likely as the others (Raffel et al. 2020, section 3.2.3).
    There is no state: sample number n is the same for ever, and step s reads samples s·batch_size, s·batch_size + 1, …

    rows: how many samples an epoch has. Their labels are different tokens of the stream, never the same one twice; less
    than two contexts of tokens, before the first row and after the last, are left to other epochs.
    """

    def __init__(self, store: TokenStore, context: int, seed: int, ahead: Ahead | None = None):
        """Raises DataError when the stream is too short for a single row."""
        if context < 1:
            raise UsageError(f"context={context} is no length", "choose a context of at least 1 token")
        if seed < 0:
            raise UsageError(f"seed={seed} is negative", "choose a seed of 0 or more")
        if store.n_tokens <= context:
            raise DataError(
                f"the text has {store.n_tokens} tokens, too few for a context of {context}",
                f"give more text, or a shorter --context (at most {store.n_tokens - 1})",
            )
        self.store: Encoded = store
        self._tokens, self.context, self.seed, self.ahead = store.tokens, context, seed, ahead or Ahead()
        self.rows = max(1, (store.n_tokens - context) // context)  # the same number, however far an epoch is shifted
        self._slack = min(context - 1, store.n_tokens - 1 - self.rows * context)

    def samples(self, first: int, count: int) -> Batch:
        """Samples first, first + 1, …, as one batch."""
        numbers, window = range(first, first + count), self.windows(first, count)
        ids, labels = window[:, :-1], window[:, 1:]
        seg = documents_in(self.store, ids)
        part = None
        if self.ahead.marked:
            part = np.stack([self._prefixes(number, row) for number, row in zip(numbers, seg, strict=True)])
        return batch_of(self.store, ids, labels, seg, part=part, scored=_unseen(seg, self.ahead.first, part))

    def windows(self, first: int, count: int) -> UInt[np.ndarray, "count labelled"]:
        """The tokens of samples first, first + 1, … and the one behind each, (count, context + 1)."""
        starts = np.array([self._start(number) for number in range(first, first + count)], dtype=np.int64)
        return self._tokens[starts[:, None] + np.arange(self.context + 1)]

    def _prefixes(self, number: int, seg: Int64[np.ndarray, " context"]) -> Bool[np.ndarray, " context"]:
        """Which tokens of sample ``number`` are in the prefix of their document."""
        rng = random_for(self.seed, number, _FOR_PREFIXES)
        lengths = np.bincount(seg)
        ends = 1 + (rng.random(len(lengths)) * lengths).astype(np.int64)
        return _positions(seg[None])[0] < ends[seg]

    def _start(self, number: int) -> int:
        epoch, index = divmod(number, self.rows)
        shift, order = _epoch_order(self.seed, epoch, self.rows, self._slack)
        return shift + int(order[index]) * self.context

    def batch(
        self, step: int, micro: int, batch_size: int, micro_batches: int = 1, rank: int = 0, world: int = 1
    ) -> Batch:
        """The share of one micro-batch on one rank of the ``batch_size`` samples of ``step``.

        However they are shared out, the same samples are read in each step. Shares differ by at most one sample.
        """
        if not 0 <= micro < micro_batches:
            raise UsageError(f"micro {micro} of {micro_batches} on rank {rank} of {world} does not exist")
        part = share(batch_size, micro_batches, rank, world)[micro]
        return self.samples(step * batch_size + part.start, len(part))

    def batches(self, step: int, batch_size: int, micro_batches: int = 1, rank: int = 0, world: int = 1) -> list[Batch]:
        """All micro-batches of one rank in ``step``; ``batch_size`` counts the samples of all ranks together."""
        return [self.batch(step, micro, batch_size, micro_batches, rank, world) for micro in range(micro_batches)]


def evaluation(
    store: TokenStore, context: int, batch_size: int, stride: int | None = None, ahead: Ahead | None = None
) -> Iterator[Batch]:
    """Batches in which every token of the stream but the first is scored exactly once.

    A window of ``context`` tokens moves on by ``stride`` (``context`` if None) and scores what it has not scored yet:
    each token after the first window is predicted from at least ``context - stride`` tokens, less where its document
    began later. So the sum of nats / ln 2 / the sum of ``n_bytes`` is bits per byte of the text, with nothing left out.
    With ``ahead``, tokens that the model sees before they are due are left out after all: those of a fixed prefix. No
    document has a prefix of its own here.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise UsageError(f"stride={stride} is not in 1…{context}", "a stride is at most the context")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} is not positive", "choose at least 1")
    n_labels = store.n_tokens - 1
    windows = 1 + max(0, -(-(n_labels - context) // stride))
    for first in range(0, windows, batch_size):
        number = np.arange(first, min(first + batch_size, windows))[:, None]
        at = number * stride + np.arange(context)  # (batch, context): place of each input in the stream
        valid = at < n_labels
        inside = np.minimum(at, n_labels - 1)
        scored = valid & ((number == 0) | (at >= number * stride + context - stride))
        ids = np.where(valid, store.tokens[inside], store.eot)
        seg = documents_in(store, ids, valid)
        if ahead is not None and ahead.first:
            scored &= _unseen(seg, ahead.first)
        yield batch_of(store, ids, store.tokens[inside + 1], seg, scored=scored)


def documents_in(store: Encoded, ids: np.ndarray, valid: Marks | None = None) -> Places:
    """The number of each token's document in its row, from 0; -1 where ``valid`` is False.

    A document begins wherever <|endoftext|> stands (and nowhere else: text never encodes to it).
    """
    seg = (ids == store.eot).cumsum(axis=1)
    seg -= seg[:, :1]
    return seg if valid is None else np.where(valid, seg, -1)


def _positions(seg: Places) -> Places:
    """The position of each token in its document."""
    place = np.broadcast_to(np.arange(seg.shape[1]), seg.shape)
    begins = np.diff(seg, axis=1, prepend=seg[:, :1] - 1) != 0
    return place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)


def _unseen(seg: Places, first: int, part: Marks | None = None) -> Marks | None:
    """Where the label is a token not seen yet: of another document, or at position ``first`` or later and not marked in
    ``part``. None means everywhere."""
    if not first and part is None:
        return None
    early = _positions(seg) < first
    early = early if part is None else early | part
    seen = np.zeros(seg.shape, dtype=bool)
    seen[:, :-1] = early[:, 1:] & (seg[:, 1:] == seg[:, :-1])
    return ~seen


def batch_of(
    store: Encoded,
    ids: np.ndarray,
    labels: np.ndarray,
    seg: Places,
    *,
    part: Marks | None = None,
    scored: Marks | None = None,
) -> Batch:
    """``scored`` is False where the label does not count; None means True everywhere."""
    wide_ids, wide_labels = ids.astype(np.int64), labels.astype(np.int64)
    n_bytes = int(store.token_bytes[labels if scored is None else labels[scored]].sum(dtype=np.int64))
    if scored is not None:
        wide_labels[~scored] = IGNORE
    tokens = Tokens.packed(torch.from_numpy(seg)) if seg.any() else Tokens.plain(*ids.shape)
    if part is not None:
        tokens = replace(tokens, part=torch.from_numpy(part.astype(np.int64)))
    return Batch(torch.from_numpy(wide_ids), tokens, torch.from_numpy(wide_labels), n_bytes)
