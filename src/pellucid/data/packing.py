"""From a stream of tokens to batches, in an order that a seed and a step number fully decide."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.data.store import TokenStore
from pellucid.errors import DataError, UsageError


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, rows: int, slack: int) -> tuple[int, Int64[np.ndarray, " rows"]]:
    """How far an epoch's rows are shifted, in 0…slack, and the order in which they are read."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return int(rng.integers(slack + 1)), rng.permutation(rows)


class Packed:
    """Rows of ``context`` tokens cut from the stream of a store, for training.

    An epoch shifts all cuts by its own random offset, so a document is not cut at the same places every time, and reads
    the rows in its own random order. A row may hold several documents: segments keep them apart, and the positions of
    each begin at 0 (as do those of a document whose beginning was cut off).
    There is no state: sample number n is the same for ever, and step s reads samples s·batch_size, s·batch_size + 1, …

    rows: how many samples an epoch has. Their labels are different tokens of the stream, never the same one twice; less
    than two contexts of tokens, before the first row and after the last, are left to other epochs.
    """

    def __init__(self, store: TokenStore, context: int, seed: int):
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
        self.store, self.context, self.seed = store, context, seed
        self.rows = max(1, (store.n_tokens - context) // context)  # the same number, however far an epoch is shifted
        self._slack = min(context - 1, store.n_tokens - 1 - self.rows * context)

    def samples(self, first: int, count: int) -> Batch:
        """Samples first, first + 1, …, as one batch."""
        numbers = range(first, first + count)
        starts = np.array([self._start(number) for number in numbers], dtype=np.int64)
        window = self.store.tokens[starts[:, None] + np.arange(self.context + 1)]  # (count, context + 1)
        return _batch(self.store, window[:, :-1], window[:, 1:])

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
        parts, part = world * micro_batches, rank * micro_batches + micro
        if not (0 <= micro < micro_batches and 0 <= rank < world):
            raise UsageError(f"micro {micro} of {micro_batches} on rank {rank} of {world} does not exist")
        if batch_size < parts:
            raise UsageError(
                f"batch_size={batch_size} cannot be shared by {world} ranks × {micro_batches} micro-batches",
                f"choose a batch_size of at least {parts}",
            )
        begin, end = batch_size * part // parts, batch_size * (part + 1) // parts
        return self.samples(step * batch_size + begin, end - begin)

    def batches(self, step: int, batch_size: int, micro_batches: int = 1, rank: int = 0, world: int = 1) -> list[Batch]:
        """All micro-batches of one rank in ``step``; ``batch_size`` counts the samples of all ranks together."""
        return [self.batch(step, micro, batch_size, micro_batches, rank, world) for micro in range(micro_batches)]


def evaluation(store: TokenStore, context: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
    """Batches in which every token of the stream but the first is scored exactly once.

    A window of ``context`` tokens moves on by ``stride`` (``context`` if None) and scores what it has not scored yet:
    each token after the first window is predicted from at least ``context - stride`` tokens, less where its document
    began later. So the sum of nats / ln 2 / the sum of ``n_bytes`` is bits per byte of the text, with nothing left out.
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
        yield _batch(store, ids, store.tokens[inside + 1], valid, scored)


def _batch(
    store: TokenStore,
    ids: np.ndarray,
    labels: np.ndarray,
    valid: np.ndarray | None = None,
    scored: np.ndarray | None = None,
) -> Batch:
    """``valid`` is False at padding, ``scored`` where the label does not count; None means True everywhere."""
    wide_ids, wide_labels = ids.astype(np.int64), labels.astype(np.int64)
    n_bytes = int(store.token_bytes[labels if scored is None else labels[scored]].sum(dtype=np.int64))
    if scored is not None:
        wide_labels[~scored] = IGNORE
    return Batch(torch.from_numpy(wide_ids), _places(store, ids, valid), torch.from_numpy(wide_labels), n_bytes)


def _places(store: TokenStore, ids: np.ndarray, valid: np.ndarray | None) -> Tokens:
    """A document begins wherever <|endoftext|> stands (and nowhere else: text never encodes to it)."""
    seg = (ids == store.eot).cumsum(axis=1)
    seg -= seg[:, :1]
    padded = valid is not None and not valid.all()
    if valid is not None and padded:
        seg[~valid] = -1
    if not padded and not seg.any():
        return Tokens.plain(*ids.shape)
    tensor: Tensor = torch.from_numpy(seg)
    return Tokens.packed(tensor)
