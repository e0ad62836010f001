"""Rows of a text, rewritten: what of each an encoder reads and a decoder writes. Each corruption has its own file.

How a row is rewritten is a pure function of (seed, step, row); a corruption draws from the numbers that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64

from pellucid.batch import IGNORE, Batch
from pellucid.data.feed import Share, TextFeed, perplexity
from pellucid.data.masked import EVALUATION, TRAINING
from pellucid.data.mixture import Mixture
from pellucid.data.packing import random_for, share
from pellucid.data.pairs import batch_of_pairs
from pellucid.data.store import TokenStore
from pellucid.errors import DataError

Ids: TypeAlias = Int64[np.ndarray, " row"]
LEAST = 2  # tokens of a row: one is hidden, and one is kept


class Rewritten(NamedTuple):
    """What became of a row. source: what is read. target: what is to be written. hidden: for each token of the target,
    whether it is text that the source does not show."""

    source: Ids
    target: Ids
    hidden: Bool[np.ndarray, " target"]


@runtime_checkable  # the shape checks of the tests look
class Corruption(Protocol):
    """A way to rewrite rows."""

    def __call__(self, ids: Ids, rng: np.random.Generator) -> Rewritten:
        """A row rewritten. The source is at most one token longer than the row, and so is the target."""
        ...

    def refuse(self, row: int) -> None:
        """Raise DataError where rows of so many tokens cannot be rewritten."""
        ...


class RewrittenText(TextFeed):
    """Rows cut from a text's stream, rewritten by a corruption: a feed for encoder–decoders.

    The decoder is trained on the whole target. What is held out is measured on hidden text alone, in bits per byte and
    in perplexity of its tokens, so that neither sentinels nor copied text make the numbers better.

    around: the tokens before and after a source, as the tokenizer puts them around a prompt.
    fixed: rows are padded to ``context``, which a compiled model needs.
    """

    def __init__(
        self,
        training: TokenStore | Mixture,
        validation: TokenStore | None,
        *,
        corruption: Corruption,
        context: int,
        batch_size: int,
        seed: int,
        start_id: int,
        around: tuple[Sequence[int], Sequence[int]] = ((), ()),
        fixed: bool = False,
        rows_at_once: int | None = None,
    ):
        """Raises DataError when the text is too short for a single row, or rows cannot be rewritten."""
        row = context - len(around[0]) - len(around[1]) - 1
        if row < LEAST:
            raise DataError(f"a context of {context} tokens leaves no row to rewrite", "choose a longer --context")
        corruption.refuse(row)
        super().__init__(training, validation, context=row, batch_size=batch_size, seed=seed, rows_at_once=rows_at_once)
        self.corruption, self.context, self.seed, self.start_id, self.fixed = corruption, context, seed, start_id, fixed
        self.before, self.after = (np.array(tokens, dtype=np.int64) for tokens in around)

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        return [
            self._batch(self.rows.windows(step * self.batch_size + part.start, len(part))[:, :-1], (step, part.start))
            for part in share(self.batch_size, micro_batches, world.rank, world.size)
        ]

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """The held-out stream, cut into rows one after the other (``stride`` changes nothing), rewritten once."""
        if self.validation is None:
            return
        tokens, width, at_once = self.validation.tokens, self.rows.context, self.rows_at_once
        starts = range(0, len(tokens) - LEAST + 1, width)
        for first in range(0, len(starts), at_once):
            yield self._batch(
                [tokens[start : start + width] for start in starts[first : first + at_once]], (None, first)
            )

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte of the hidden text, and perplexity of its tokens."""
        if not sums["count"] or not sums["bytes"]:
            return {}
        return {"bits_per_byte": sums["nats"] / math.log(2) / sums["bytes"], "perplexity": perplexity(sums)}

    def _batch(self, rows: Sequence[np.ndarray] | np.ndarray, key: tuple[int | None, int]) -> Batch:
        """Rows number key[1], key[1] + 1, … of step key[0], or of what is held out."""
        step, first = key
        kind = (EVALUATION, 0) if step is None else (TRAINING, step)
        rewritten = [
            self.corruption(row.astype(np.int64), random_for(self.seed, *kind, first + i)) for i, row in enumerate(rows)
        ]
        batch = batch_of_pairs(
            [np.concatenate((self.before, each.source, self.after)) for each in rewritten],
            [each.target for each in rewritten],
            start_id=self.start_id,
            context=self.context,
            fixed=self.fixed,
        )
        labels = batch.labels
        if step is None:
            hidden = np.zeros(labels.shape, dtype=np.bool_)
            for marks, each in zip(hidden, rewritten, strict=True):
                marks[: len(each.hidden)] = each.hidden
            labels = torch.where(torch.from_numpy(hidden), labels, IGNORE)
        n_bytes = int(self.rows.store.token_bytes[labels[labels != IGNORE].numpy()].sum(dtype=np.int64))
        return replace(batch, labels=labels, n_bytes=n_bytes)
