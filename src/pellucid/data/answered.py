"""A feed of conversations: answers are predicted, all else is read; several share a row and do not see each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.data.feed import Share, perplexity
from pellucid.data.packing import share
from pellucid.errors import DataError
from pellucid.text.answers import Answered

Row = tuple[int, ...]  # the conversations of a row, by number


class AnsweredConversations:
    """Conversations in rows of ``context`` places, as many a row as fit; each is a document of its own.

    An epoch reads all of them in an order of its own, and puts the next one into a new row where it does not fit. Those
    longer than a row are left out, whole, since what would be cut is the answer. Measured in nats a scored token.
    """

    def __init__(
        self,
        training: Sequence[Answered],
        validation: Sequence[Answered],
        *,
        context: int,
        batch_size: int,
        seed: int,
        rows_at_once: int | None = None,
    ):
        """n_left_out: of the training conversations. Raises DataError where none is short enough."""
        self.training = [each for each in training if len(each.ids) - 1 <= context]
        self.validation = [each for each in validation if len(each.ids) - 1 <= context]
        self.n_left_out = len(training) - len(self.training)
        if not self.training:
            raise DataError(f"no conversation is as short as {context} tokens", "choose a longer context")
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self._at_once = rows_at_once or batch_size
        self._rows = lru_cache(maxsize=8)(self._packed)

    @property
    def hash(self) -> str:
        digest = hashlib.sha256(f"{self.context} {self.batch_size} {self.seed}".encode())
        for each in (*self.training, *self.validation):
            digest.update(np.array(each.ids, dtype=np.int64).tobytes())
            digest.update(bytes(each.scored))
        return digest.hexdigest()

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        first = step * self.batch_size
        return [
            self._batch(self.training, [self._row(first + number) for number in part])
            for part in share(self.batch_size, micro_batches, world.rank, world.size)
        ]

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """All held-out conversations in their order; ``stride`` changes nothing, since none is cut."""
        rows = self._filled(self.validation, range(len(self.validation)))
        for first in range(0, len(rows), self._at_once):
            yield self._batch(self.validation, rows[first : first + self._at_once])

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nats of a token of the answers, and the perplexity that this is."""
        if not sums["count"]:
            return {}
        return {"nats_per_token": sums["nats"] / sums["count"], "perplexity": perplexity(sums)}

    def epochs(self, steps: int) -> float:
        """How often ``steps`` steps read each conversation."""
        return steps * self.batch_size / len(self._rows(0))

    def _row(self, number: int) -> Row:
        """Row ``number`` of all epochs, one after the other."""
        epoch = 0
        while number >= (n := len(self._rows(epoch))):
            number, epoch = number - n, epoch + 1
        return self._rows(epoch)[number]

    def _packed(self, epoch: int) -> list[Row]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
        return self._filled(self.training, rng.permutation(len(self.training)).tolist())

    def _filled(self, conversations: Sequence[Answered], order: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        left = 0
        for number in order:
            places = len(conversations[number].ids) - 1
            if places <= left:
                rows[-1] = (*rows[-1], number)
                left -= places
            else:
                rows.append((number,))
                left = self.context - places
        return rows

    def _batch(self, conversations: Sequence[Answered], rows: Sequence[Row]) -> Batch:
        """The token after each one is its label where it is the model's to write; empty places hold no token."""
        shape = (len(rows), self.context)
        ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        seg = np.full(shape, -1, np.int64)
        for at, row in enumerate(rows):
            begin = 0
            for document, number in enumerate(row):
                each = conversations[number]
                end = begin + len(each.ids) - 1
                ids[at, begin:end], seg[at, begin:end] = each.ids[:-1], document
                labels[at, begin:end] = np.where(each.scored[1:], each.ids[1:], IGNORE)
                begin = end
        return Batch(torch.from_numpy(ids), Tokens.packed(torch.from_numpy(seg)), torch.from_numpy(labels))
