"""Fill in the middle: a document's parts change places, so that a decoder learns to write between two texts.

A document is cut at two random characters into prefix, middle and suffix (Bavarian et al. 2022, section 3)::

    PSM: <pre> prefix <suf> suffix <mid> middle
    SPM: <pre> <suf> suffix <mid> prefix middle
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from pellucid.batch import Batch
from pellucid.data.feed import Share, TextFeed
from pellucid.data.masked import EVALUATION, TRAINING
from pellucid.data.mixture import Mixture
from pellucid.data.packing import batch_of, documents_in, random_for, share
from pellucid.data.store import TokenStore
from pellucid.errors import DataError
from pellucid.text.tokenizer import Tokenizer


class Markers(NamedTuple):
    """Ids of the tokens that stand before prefix, suffix and middle."""

    prefix: int
    suffix: int
    middle: int


class FilledInText(TextFeed):
    """The next token of a text, some of whose documents have their middle at the end ("context level": section 4.5).

    Each document of a row, or what the row holds of it, is rearranged with probability ``fim_rate``; of those,
    ``spm_rate`` stand as SPM, the others as PSM. Its parts are encoded anew, each by itself. What no longer fits is cut
    from the end of the suffix; where that is too short, or a row was cut within a character, the document stays as it
    is. Of what is held out every document is rearranged, and its middle alone is measured, in bits per byte.
    """

    def __init__(
        self,
        training: TokenStore | Mixture,
        validation: TokenStore | None,
        *,
        tokenizer: Tokenizer,
        markers: Markers,
        context: int,
        batch_size: int,
        seed: int,
        fim_rate: float = 0.5,
        spm_rate: float = 0.5,
        rows_at_once: int | None = None,
    ):
        """Raises DataError when the text is too short for a row, or the tokenizer cannot encode a part of a text."""
        super().__init__(
            training, validation, context=context, batch_size=batch_size, seed=seed, rows_at_once=rows_at_once
        )
        self.tokenizer, self.markers, self.seed = tokenizer, markers, seed
        self.fim_rate, self.spm_rate = fim_rate, spm_rate
        if self._bytes(tokenizer.encode("b")) != b"b":
            raise DataError("the tokenizer adds to a text that begins within a word", "use a byte-level tokenizer")

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        found: list[Batch] = []
        for part in share(self.batch_size, micro_batches, world.rank, world.size):
            windows = self.rows.windows(step * self.batch_size + part.start, len(part))
            randoms = [random_for(self.seed, TRAINING, step, row) for row in part]
            rows = [self.rearranged(row, rng)[0] for row, rng in zip(windows, randoms, strict=True)]
            found.append(self._batch(rows, [np.ones(len(row), np.bool_) for row in rows]))
        return found

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """The held-out stream, cut into rows one after the other (``stride`` changes nothing), rearranged once."""
        if self.validation is None:
            return
        tokens, width = self.validation.tokens, self.rows.context
        starts = range(0, len(tokens) - 1, width)
        for first in range(0, len(starts), self.rows_at_once):
            made: list[tuple[np.ndarray, np.ndarray]] = []
            for row, start in enumerate(starts[first : first + self.rows_at_once], first):
                rng = random_for(self.seed, EVALUATION, 0, row)
                made.append(self.rearranged(tokens[start : start + width + 1], rng, always=True))
            yield self._batch([ids for ids, _ in made], [middle for _, middle in made])

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte of the middles, given what stands around them."""
        return {"bits_per_byte": sums["nats"] / math.log(2) / sums["bytes"]} if sums["bytes"] else {}

    def rearranged(
        self, ids: np.ndarray, rng: np.random.Generator, *, always: bool = False
    ) -> tuple[Int64[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
        """A row, at most as long as it was, and which of its tokens are a middle that was moved."""
        eot = self.rows.store.eot
        starts = np.unique(np.concatenate(([0], np.flatnonzero(ids == eot))))
        found, middles = list[np.ndarray](), list[np.ndarray]()
        for document in np.split(ids.astype(np.int64), starts[1:]):
            wanted, spm = rng.random(2) < (self.fim_rate, self.spm_rate)
            moved = self._moved(document, bool(spm), rng) if wanted or always else None
            found.append(document if moved is None else moved[0])
            middles.append(np.zeros(len(document), np.bool_) if moved is None else moved[1])
        return np.concatenate(found), np.concatenate(middles)

    def _moved(self, document: np.ndarray, spm: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        """A document with its middle at the end, and which tokens that are; None where it must stay as it is."""
        begin = document[:1] if document[0] == self.rows.store.eot else document[:0]
        try:
            text = self._bytes(document[len(begin) :]).decode()
        except UnicodeDecodeError:  # the row was cut within a character
            return None
        a, b = sorted(int(place) for place in rng.integers(len(text) + 1, size=2))
        parts = self.tokenizer.encode_batch([text[:a], text[a:b], text[b:]])
        prefix, middle, suffix = (np.array(part, dtype=np.int64) for part in parts)
        room = len(document) - len(begin) - len(prefix) - len(middle) - len(self.markers)
        if room < min(len(suffix), 1):
            return None
        before, behind, between = (np.array([marker]) for marker in self.markers)
        if spm:
            shown = [begin, before, behind, suffix[:room], between, prefix]
        else:
            shown = [begin, before, prefix, behind, suffix[:room], between]
        moved = np.concatenate((*shown, middle))
        return moved, np.arange(len(moved)) >= len(moved) - len(middle)

    def _bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return b"".join(self.tokenizer.bytes_of(int(number)) for number in ids)

    def _batch(self, rows: Sequence[np.ndarray], scored: Sequence[np.ndarray]) -> Batch:
        """Rows of tokens, each padded to the context, and which of them are scored as labels."""
        store, width = self.rows.store, self.rows.context
        ids, marks = np.full((len(rows), width + 1), store.eot), np.zeros((len(rows), width + 1), dtype=np.bool_)
        valid = np.zeros_like(marks)
        for i, (row, mark) in enumerate(zip(rows, scored, strict=True)):
            ids[i, : len(row)], marks[i, : len(row)], valid[i, : len(row)] = row, mark, True
        inside = valid[:, 1:]
        seg = documents_in(store, ids[:, :-1], inside)
        return batch_of(store, ids[:, :-1], ids[:, 1:], seg, scored=marks[:, 1:] & inside)
