"""Feeds: what a model learns from, and by which measures. Every batch is a pure function of (seed, step).

A feed has no state: a run that is resumed asks for step s and gets the batches that it would have got, whatever the
number of processes that share them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from pellucid.batch import Batch
from pellucid.data.mixture import MixedRows, Mixture, Read, rows_of
from pellucid.data.packing import evaluation
from pellucid.data.store import TokenStore
from pellucid.predicates import Ahead


@runtime_checkable  # the shape checks of the tests look
class Share(Protocol):
    """Which part of a step's rows a process reads: number ``rank`` of ``size``. A ``train.world.World`` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...


@runtime_checkable
class Feed(Protocol):
    """What a trainer asks of its data.

    hash: equal exactly for feeds that give the same batches. tokens_per_step: places of one step, on all processes.
    """

    @property
    def hash(self) -> str: ...

    @property
    def tokens_per_step(self) -> int: ...

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        """The micro-batches of ``step`` that this process reads; all processes together read the same rows always."""
        ...

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """Held-out batches, always the same; none where nothing is held out.

        stride: how far a window moves on over a text that is longer than one; None: by its length.
        """
        ...

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Named measures of what was held out, from sums over ``evaluation``: nats, count (of scored places), bytes.

        The first is the one that a run is judged by. Empty where nothing was scored.
        """
        ...


@runtime_checkable
class Mixing(Protocol):
    """A feed that can say what it has read of each of its texts."""

    def read(self, steps: int) -> list[Read]: ...


def perplexity(sums: Mapping[str, float]) -> float:
    """exp of the mean of -ln p over scored places; at most e^700, which a number can still hold."""
    return math.exp(min(sums["nats"] / sums["count"], 700.0))


class TextFeed:
    """What the feeds of a text share: rows cut from its stream (``packing``).

    batch_size: rows of ``context`` tokens in a step, on all processes together. rows_at_once: in one batch of the
    evaluation. ahead: which later tokens the model sees, so that their labels are not scored (``packing.Packed``).
    """

    def __init__(
        self,
        training: TokenStore | Mixture,
        validation: TokenStore | None,
        *,
        context: int,
        batch_size: int,
        seed: int,
        rows_at_once: int | None = None,
        ahead: Ahead | None = None,
    ):
        """Raises DataError when the text is too short for a single row."""
        self.rows, self.validation = rows_of(training, context, seed, ahead), validation
        self.batch_size, self.rows_at_once = batch_size, rows_at_once or batch_size

    @property
    def hash(self) -> str:
        return self.rows.store.hash

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.rows.context

    def read(self, steps: int) -> list[Read]:
        """What so many steps read of each text of a mixture; [] where there is one text alone."""
        return self.rows.read(steps * self.batch_size) if isinstance(self.rows, MixedRows) else []


class PackedText(TextFeed):
    """The next token of a text. Measured in bits per byte."""

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        return self.rows.batches(step, self.batch_size, micro_batches, world.rank, world.size)

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        """Batches in which every token of the held-out stream but the first is scored exactly once."""
        if self.validation is not None:
            yield from evaluation(self.validation, self.rows.context, self.rows_at_once, stride, self.rows.ahead)

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte: a unit that no tokenizer can flatter.

        The tokens that end documents are paid for too, but stand for no byte, so this is never better than the truth.
        """
        return {"bits_per_byte": sums["nats"] / math.log(2) / sums["bytes"]} if sums["bytes"] else {}
