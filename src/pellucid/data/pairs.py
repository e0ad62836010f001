"""Pairs of texts, what is read and what is to be written: a feed for encoder–decoders."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.data.feed import Share, perplexity
from pellucid.data.groups import Groups
from pellucid.data.packing import random_for, share
from pellucid.data.pair_files import Pair
from pellucid.errors import DataError
from pellucid.text.tokenizer import Tokenizer

MULTIPLE = 16  # rows are padded to a multiple of this: few shapes, little padding


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Token ids of pairs, all in one stream a side.

    source, target: the streams. starts: where each pair begins in them, and where the last one ends, (pairs + 1, 2).
    n_bytes: of each target's text. tokenizer: hash of what encoded them.
    """

    source: Int64[np.ndarray, " source"]
    target: Int64[np.ndarray, " target"]
    starts: Int64[np.ndarray, "ends 2"]
    n_bytes: Int64[np.ndarray, " pairs"]
    tokenizer: str

    def __len__(self) -> int:
        return len(self.n_bytes)

    @property
    def n_tokens(self) -> int:
        """Tokens of all targets."""
        return len(self.target)

    @property
    def lengths(self) -> Int64[np.ndarray, "pairs 2"]:
        """Tokens of the source and of the target of each pair."""
        return np.diff(self.starts, axis=0)

    @cached_property
    def hash(self) -> str:
        """Equal for equal ids of the same vocabulary in the same pairs."""
        digest = hashlib.sha256(self.tokenizer.encode())
        for array in (self.source, self.target, self.starts):
            digest.update(array.tobytes())
        return digest.hexdigest()


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer) -> EncodedPairs:
    """Both sides of each pair as ids: the source as a prompt is read, the target and the token that ends it.

    Raises DataError where the vocabulary has no token that ends a text.
    """
    if (end := tokenizer.eos_id) is None:
        raise DataError("the tokenizer has no token that ends a text", "use the tokenizer of a model that writes")
    targets = [[*ids, end] for ids in tokenizer.encode_batch([pair.target for pair in pairs])]
    sources = [tokenizer.encode_prompt(pair.source) for pair in pairs]
    lengths = np.array([[len(a), len(b)] for a, b in zip(sources, targets, strict=True)], dtype=np.int64)
    return EncodedPairs(
        source=np.array([token for ids in sources for token in ids], dtype=np.int64),
        target=np.array([token for ids in targets for token in ids], dtype=np.int64),
        starts=np.concatenate((np.zeros((1, 2), np.int64), lengths.cumsum(0))),
        n_bytes=np.array([len(pair.target.encode()) for pair in pairs], dtype=np.int64),
        tokenizer=tokenizer.hash,
    )


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, pairs: int) -> Int64[np.ndarray, " pairs"]:
    return random_for(seed, epoch).permutation(pairs)


def _within(pairs: EncodedPairs, context: int) -> Int64[np.ndarray, " kept"]:
    """Numbers of the pairs neither side of which is longer."""
    return np.flatnonzero((pairs.lengths <= context).all(1))


class PairedText:
    """Targets from sources, a pair a row, each side padded. An epoch reads all pairs in an order of its own.

    The decoder reads ``start_id`` and the target, and predicts the target and the token that ends it. Measured in bits
    per byte of the target, and in perplexity of its tokens.

    fixed: every batch is as wide as the context, which a compiled model needs; else as its longest pair.
    batch_tokens: tokens of targets in a step, on average. Pairs of like length then stand together, so that little is
    padded, and ``batch_size`` says nothing of training (Vaswani et al. 2017, section 5.1).
    """

    def __init__(
        self,
        training: EncodedPairs,
        validation: EncodedPairs | None,
        *,
        context: int,
        batch_size: int,
        seed: int,
        start_id: int,
        fixed: bool = False,
        batch_tokens: int | None = None,
        rows_at_once: int | None = None,
    ):
        """Pairs of which a side is longer than ``context`` are left out; ``n_left_out``: of the training pairs.

        Raises DataError where none is left.
        """
        self.training, self.validation, self.context, self.seed = training, validation, context, seed
        self._kept = _within(training, context)
        self._held = np.zeros(0, np.int64) if validation is None else _within(validation, context)
        self.n_left_out = len(training) - len(self._kept)
        if not len(self._kept):
            raise DataError(f"no pair is as short as {context} tokens", "choose a longer --context")
        self.batch_size, self.start_id, self.fixed = batch_size, start_id, fixed
        self._at_once, self.batch_tokens = rows_at_once or batch_size, batch_tokens
        self._groups = None if batch_tokens is None else Groups(training.lengths[self._kept], batch_tokens, seed)

    @property
    def hash(self) -> str:
        return self.training.hash

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step's targets, on average."""
        if self._groups is not None:
            return max(1, round(self._groups.lengths[:, 1].sum() / self._groups.count))
        ends = self.training.starts[:, 1]
        return max(1, round(self.batch_size * float((ends[self._kept + 1] - ends[self._kept]).mean())))

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        if self._groups is not None:
            return self._of_group(self._groups.rows(step), micro_batches, world)
        first = step * self.batch_size
        return [
            self._batch(self.training, [self._pair(first + row) for row in part])
            for part in share(self.batch_size, micro_batches, world.rank, world.size)
        ]

    def _of_group(self, rows: np.ndarray, micro_batches: int, world: Share) -> list[Batch]:
        parts = share(len(rows), micro_batches, world.rank, world.size)
        return [self._batch(self.training, self._kept[rows[part.start : part.stop]].tolist()) for part in parts]

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """All held-out pairs, those of like length together, batches of all lengths in turn; ``stride`` changes
        nothing, since a pair is not cut."""
        if self.validation is None or not len(self._held):
            return
        order = self._held[np.lexsort(self.validation.lengths[self._held].T)]
        batches = [order[first : first + self._at_once].tolist() for first in range(0, len(order), self._at_once)]
        for number in random_for(0, len(batches)).permutation(len(batches)):  # so that a few stand for all
            yield self._batch(self.validation, batches[number])

    def padding(self) -> float:
        """The share of padding in all places, of sources and targets, that the steps of the first epoch compute."""
        lengths, n = self.training.lengths[self._kept], len(self._kept)
        if self._groups is not None:
            steps = [self._groups.rows(step) for step in range(self._groups.count)]
        else:
            order = _order(self.seed, 0, n)
            steps = [order[first : first + self.batch_size] for first in range(0, n, self.batch_size)]
        multiple = MULTIPLE if self._groups is None else 1
        widths = (-(-lengths[rows].max(0) // multiple) * multiple for rows in steps)
        places = sum(
            len(rows) * (2 * self.context if self.fixed else int(np.minimum(wide, self.context).sum()))
            for rows, wide in zip(steps, widths, strict=True)
        )
        return 1 - int(lengths.sum()) / places

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte of the targets' text, the ends included; perplexity of their tokens."""
        if not sums["count"]:
            return {}
        return {"bits_per_byte": sums["nats"] / math.log(2) / sums["bytes"], "perplexity": perplexity(sums)}

    def _pair(self, number: int) -> int:
        epoch, index = divmod(number, len(self._kept))
        return int(self._kept[_order(self.seed, epoch, len(self._kept))[index]])

    def _batch(self, pairs: EncodedPairs, rows: list[int]) -> Batch:
        sides = zip((pairs.source, pairs.target), pairs.starts.T, strict=True)
        source, target = ([stream[starts[row] : starts[row + 1]] for row in rows] for stream, starts in sides)
        how: dict[str, Any] = {"start_id": self.start_id, "context": self.context, "fixed": self.fixed}
        batch = batch_of_pairs(source, target, multiple=MULTIPLE if self._groups is None else 1, **how)
        return replace(batch, n_bytes=int(pairs.n_bytes[rows].sum()))


def batch_of_pairs(
    source: Sequence[np.ndarray],
    target: Sequence[np.ndarray],
    *,
    start_id: int,
    context: int,
    fixed: bool = False,
    multiple: int = MULTIPLE,
) -> Batch:
    """Ids of what is read and of what is to be written, a pair a row: the decoder reads ``start_id`` and the target.

    fixed: rows are as wide as the context; else as the longest, rounded up to a ``multiple``.
    """
    wide = context if fixed else None
    read, said = (_padded(side, context, wide, multiple) for side in (source, target))
    ids = torch.cat((torch.full((len(said), 1), start_id), said[:, :-1]), 1)
    return Batch(
        ids=ids.clamp_min(0),
        tokens=Tokens.padded(said >= 0),
        labels=torch.where(said >= 0, said, IGNORE),
        source=Source(read.clamp_min(0), Tokens.padded(read >= 0)),
    )


def _padded(rows: Sequence[np.ndarray], most: int, wide: int | None, multiple: int) -> Int64[Tensor, "rows time"]:
    """The rows, −1 behind those that are shorter."""
    longest = max(map(len, rows))
    width = min(most, -(-longest // multiple) * multiple) if wide is None else wide
    out = np.full((len(rows), width), -1, dtype=np.int64)
    for padded, row in zip(out, rows, strict=True):
        padded[: len(row)] = row
    return torch.from_numpy(out)
