"""Masked tokens: a feed for encoders. Which are hidden, and behind what, is a pure function of (seed, step, row)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int

from pellucid.batch import IGNORE, Batch
from pellucid.data.feed import Share, TextFeed, perplexity
from pellucid.data.mixture import Mixture
from pellucid.data.packing import evaluation, random_for, share
from pellucid.data.store import TokenStore
from pellucid.errors import DataError
from pellucid.text.tokenizer import Tokenizer

TRAINING, EVALUATION = 0, 1  # so that no held-out row is corrupted as a training row is


@dataclass(frozen=True, eq=False)
class WordEdges:
    """Which tokens of a vocabulary begin, and which end, with a letter, a digit or a byte beyond ASCII, (vocab,)."""

    begins: Bool[np.ndarray, " vocab"]
    ends: Bool[np.ndarray, " vocab"]

    @staticmethod
    def of(tokenizer: Tokenizer) -> WordEdges:
        """Those of a tokenizer's vocabulary. What is no text begins and ends a word."""
        texts = [tokenizer.bytes_of(number) for number in range(tokenizer.vocab_size)]
        edges = np.array([[_in_word(text[:1]), _in_word(text[-1:])] for text in texts], dtype=np.bool_)
        return WordEdges(*edges.T)

    def first_of_word(self, ids: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
        """Where the word of each token begins: a token goes on with a word where letters meet."""
        place = np.arange(len(ids))
        goes_on = self.begins[ids]
        goes_on[1:] &= self.ends[ids[:-1]]
        goes_on[:1] = False
        return np.maximum.accumulate(np.where(goes_on, 0, place))


def _in_word(byte: bytes) -> bool:
    return byte.isalnum() or byte >= b"\x80"


class MaskedText(TextFeed):
    """Rows cut from a text's stream, some tokens of which are hidden and predicted (Devlin et al. 2018, section 3.1).

    A share ``masked`` of the tokens is drawn, anew each time a row is read (dynamic masking; Liu et al. 2019). Of
    those, 80 % become ``mask_id``, 10 % any token of the vocabulary, and 10 % stay: the model cannot tell which it is
    asked about. Tokens that separate documents are never drawn. Measured in perplexity, over the drawn tokens alone.

    words: whole words are drawn instead of tokens, the same share of them; each of a word's tokens is then hidden in
    one of the three ways by itself (whole-word masking, in the code of Devlin et al. 2018).
    """

    shares: ClassVar[tuple[float, float]] = (0.8, 0.1)  # of drawn tokens: those that are masked, and random ones
    draws: ClassVar[bool] = False  # whether batches have numbers by which an objective draws tokens

    def __init__(
        self,
        training: TokenStore | Mixture,
        validation: TokenStore | None,
        *,
        context: int,
        batch_size: int,
        seed: int,
        mask_id: int,
        masked: float = 0.15,
        words: WordEdges | None = None,
        rows_at_once: int | None = None,
    ):
        """Raises DataError when the text is too short for a single row."""
        super().__init__(
            training, validation, context=context, batch_size=batch_size, seed=seed, rows_at_once=rows_at_once
        )
        self.seed, self.mask_id, self.masked, self.words = seed, mask_id, masked, words
        self.vocab_size = len(training.token_bytes)
        if not 0 < masked < 1:
            raise DataError(f"masked = {masked} of the tokens leaves no batch", "choose a share between 0 and 1")

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        return [
            self._hide(self.rows.samples(step * self.batch_size + part.start, len(part)), (TRAINING, step), part.start)
            for part in share(self.batch_size, micro_batches, world.rank, world.size)
        ]

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """The held-out stream, cut into rows one after the other (``stride`` changes nothing), corrupted once."""
        if self.validation is not None:
            first = 0
            for batch in evaluation(self.validation, self.rows.context, self.rows_at_once):
                yield self._hide(batch, (EVALUATION, 0), first)
                first += len(batch.ids)

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the hidden tokens: exp of the mean of -ln p."""
        return {"perplexity": perplexity(sums)} if sums["count"] else {}

    def _hide(self, batch: Batch, key: tuple[int, int], first: int) -> Batch:
        """The rows of a batch, numbers ``first``, ``first`` + 1, … of their step, corrupted."""
        ids = batch.ids.numpy().copy()
        labels = np.full_like(ids, IGNORE)
        numbers = np.zeros(ids.shape) if self.draws else None
        valid = (batch.tokens.pos.numpy() >= 0) & (ids != self.rows.store.eot)
        for row in range(len(ids)):
            rng = random_for(self.seed, *key, first + row)
            drawn, how = rng.random((2, ids.shape[1]))
            drawn = drawn if self.words is None else drawn[self.words.first_of_word(ids[row])]
            other = rng.integers(self.vocab_size, size=ids.shape[1])
            scored = valid[row] & (drawn < self.masked)
            labels[row, scored] = ids[row, scored]
            mask, random = self.shares
            ids[row] = np.where(
                scored & (how < mask), self.mask_id, np.where(scored & (how >= 1 - random), other, ids[row])
            )
            if numbers is not None:
                numbers[row] = rng.random(ids.shape[1])
        draws = None if numbers is None else torch.from_numpy(numbers)
        n_bytes = int(self.rows.store.token_bytes[labels[labels != IGNORE]].sum(dtype=np.int64))
        return replace(batch, ids=torch.from_numpy(ids), labels=torch.from_numpy(labels), n_bytes=n_bytes, draws=draws)
