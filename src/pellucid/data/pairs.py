"""Pairs of texts, what is read and what is to be written: a feed for encoder–decoders."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.data.feed import Share, perplexity
from pellucid.data.packing import random_for, share
from pellucid.data.text_files import lines
from pellucid.errors import DataError
from pellucid.text.tokenizer import Tokenizer

MULTIPLE = 16  # rows are padded to a multiple of this: few shapes, little padding


class Pair(NamedTuple):
    """What is read, and what is to be written."""

    source: str
    target: str


def read_pairs(files: Sequence[str]) -> list[Pair]:
    """The last two columns of each line of tab-separated files (also .gz, .xz, .bz2), in their order.

    Lines in which one of the two is empty are left out. Raises DataError for a line with one column, and where no pair
    is left.
    """
    found: list[Pair] = []
    for file in files:
        for number, line in lines(file):
            columns = line.split("\t")
            if len(columns) < 2:
                raise DataError(f"{file} line {number} has no tab", "every line is a source, a tab and a target")
            pair = Pair(columns[-2].strip(), columns[-1].strip())
            if all(pair):
                found.append(pair)
    if not found:
        raise DataError(f"{', '.join(files[:3])} holds no pair", "every line is a source, a tab and a target")
    return found


def split_pairs(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, validation): about ``fraction`` is held out, drawn by a hash of (seed, source), so that no source of
    the validation pairs is trained on. Raises DataError where nothing is left to train on."""
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(f"{seed}:{pair.source}".encode()).digest()
        parts[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(pair)
    if not parts[0]:
        raise DataError("every pair is held out", "give more pairs, or hold out fewer of them")
    return parts


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
    return np.flatnonzero((np.diff(pairs.starts, axis=0) <= context).all(1))


class PairedText:
    """Targets from sources, a pair a row, each side padded. An epoch reads all pairs in an order of its own.

    The decoder reads ``start_id`` and the target, and predicts the target and the token that ends it. Measured in bits
    per byte of the target, and in perplexity of its tokens.

    fixed: every batch is as wide as the context, which a compiled model needs; else as its longest pair.
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
        self._at_once = rows_at_once or batch_size

    @property
    def hash(self) -> str:
        return self.training.hash

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step's targets, on average."""
        ends = self.training.starts[:, 1]
        return max(1, round(self.batch_size * float((ends[self._kept + 1] - ends[self._kept]).mean())))

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        first = step * self.batch_size
        return [
            self._batch(self.training, [self._pair(first + row) for row in part])
            for part in share(self.batch_size, micro_batches, world.rank, world.size)
        ]

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """All held-out pairs in their order; ``stride`` changes nothing, since a pair is not cut."""
        for first in range(0, len(self._held), self._at_once):
            assert self.validation is not None
            yield self._batch(self.validation, self._held[first : first + self._at_once].tolist())

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
        batch = batch_of_pairs(source, target, start_id=self.start_id, context=self.context, fixed=self.fixed)
        return replace(batch, n_bytes=int(pairs.n_bytes[rows].sum()))


def batch_of_pairs(
    source: Sequence[np.ndarray], target: Sequence[np.ndarray], *, start_id: int, context: int, fixed: bool = False
) -> Batch:
    """Ids of what is read and of what is to be written, a pair a row: the decoder reads ``start_id`` and the target.

    fixed: rows are as wide as the context; else as the longest, rounded up to a ``MULTIPLE``.
    """
    read, said = _padded(source, context, fixed), _padded(target, context, fixed)
    ids = torch.cat((torch.full((len(said), 1), start_id), said[:, :-1]), 1)
    return Batch(
        ids=ids.clamp_min(0),
        tokens=Tokens.padded(said >= 0),
        labels=torch.where(said >= 0, said, IGNORE),
        source=Source(read.clamp_min(0), Tokens.padded(read >= 0)),
    )


def _padded(rows: Sequence[np.ndarray], context: int, fixed: bool) -> Int64[Tensor, "rows time"]:
    """The rows, −1 behind those that are shorter."""
    longest = max(map(len, rows))
    width = context if fixed else min(context, -(-longest // MULTIPLE) * MULTIPLE)
    out = np.full((len(rows), width), -1, dtype=np.int64)
    for padded, row in zip(out, rows, strict=True):
        padded[: len(row)] = row
    return torch.from_numpy(out)
