"""A feed and a model of ours as a subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Source, Tokens, padded
from pellucid.data.feed import Feed
from pellucid.doctor.subject import Kind, Row, Subject, Vocabulary
from pellucid.engine.modes import evaluating
from pellucid.nn.models import AnyModel, EncoderDecoder
from pellucid.spec import (
    ClassifierHeadSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    MaskedLMHeadSpec,
    ModelSpec,
)
from pellucid.text.tokenizer import Tokenizer

ROWS = 256  # that are looked at, at most
STEPS = 32  # whose rows are looked at, at most


class _Alone:
    """All rows of a step."""

    rank, size = 0, 1


def kind_of(spec: ModelSpec) -> Kind:
    """What a model of this spec learns from rows."""
    if isinstance(spec, EncoderDecoderSpec):
        return "encoder-decoder"
    if isinstance(spec, EncoderSpec):
        return "encoder" if isinstance(spec.head, MaskedLMHeadSpec) else "classifier"
    return "decoder"


def subject_of(
    feed: Feed, spec: ModelSpec, tokenizer: Tokenizer | None, *, name: str = "the feed", most: int = ROWS
) -> Subject:
    """What is known of a feed for a model of this spec: rows of its first steps, and of what is held out."""
    (first,) = feed.batches(0, 1, _Alone())
    return Subject(
        name=name,
        kind=kind_of(spec),
        rows=_training_rows(feed, first, most),
        held_out=rows_of(feed.evaluation(), most),
        vocabulary=None if tokenizer is None else vocabulary_of(tokenizer),
        table=spec.vocab_size or None,
        classes=_classes(spec),
        context=spec.context,
    )


def _classes(spec: ModelSpec) -> int | None:
    """How many classes are told apart; one alone is a score."""
    head = spec.head if isinstance(spec, EncoderSpec) else None
    found = head.n_classes if isinstance(head, ClassifierHeadSpec) else 1
    return found if found > 1 else None


def _training_rows(feed: Feed, first: Batch, most: int) -> list[Row]:
    """The rows of the first steps, up to one that brings nothing new: then all has been read once.

    first: what the first step reads.
    """
    rows = rows_of([first], most)
    seen = {(row.ids, row.source) for row in rows}
    for step in range(1, STEPS):
        more = rows_of(feed.batches(step, 1, _Alone()), most - len(rows))
        new = {(row.ids, row.source) for row in more} - seen
        if not new:
            break
        rows += [row for row in more if (row.ids, row.source) in new]
        seen |= new
    return rows


def rows_of(batches: Iterable[Batch], most: int = ROWS) -> list[Row]:
    """The first rows of these batches."""
    rows: list[Row] = []
    for batch in batches:
        if len(rows) >= most:
            break
        rows += _rows(batch, most - len(rows))
    return rows


def _rows(batch: Batch, most: int) -> Iterator[Row]:
    documents = batch.tokens.segments.masked_fill(batch.tokens.pos < 0, -1)[:most].tolist()
    labels, ids = batch.labels[:most].tolist(), batch.ids[:most].tolist()
    sources = [()] * len(ids) if batch.source is None else _present(batch.source, len(ids))
    for row, numbers, targets, source in zip(ids, documents, labels, sources, strict=True):
        scored = tuple(None if label == IGNORE else label for label in targets)
        yield Row(tuple(row), scored, tuple(numbers), source)


def _present(source: Source, n: int) -> list[tuple[int, ...]]:
    """What is read of each row, without padding."""
    there = (source.tokens.pos >= 0)[:n]
    return [tuple(ids[mask].tolist()) for ids, mask in zip(source.ids[:n], there, strict=True)]


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer as the checks see it."""
    return Vocabulary(
        size=tokenizer.vocab_size,
        decode=tokenizer.decode,
        special=tokenizer.special,
        begin=tokenizer.bos_id,
        ends=frozenset(tokenizer.stop_ids),
        pad=tokenizer.pad_id,
        unknown=tokenizer.unk_id,
    )


@dataclass(frozen=True, eq=False)
class Trial:
    """A model of ours. probe: the losses of so many training steps; None where no learning rate is known."""

    model: AnyModel
    probe: Callable[[int], list[float]] | None = None

    @torch.no_grad()
    def loss(self, rows: Sequence[Row]) -> float:
        batch = batch_of(rows, self._device)
        with evaluating(self.model):
            return float(self.model.nll_sum(batch)) / sum(len(row.scored) for row in rows)

    @torch.no_grad()
    def accumulated(self, rows: Sequence[Row]) -> float | None:
        scored = sum(len(row.scored) for row in rows)
        with evaluating(self.model):
            return sum(float(self.model.nll_sum(batch_of([row], self._device))) for row in rows) / scored

    @torch.no_grad()
    def crosstalk(self, row: Row) -> float:
        assert not isinstance(self.model, EncoderDecoder)
        batch, (first, *_, last) = batch_of([row], self._device), row.pieces()
        other = batch.ids.clone()
        other[0, first.start : first.stop] = (other[0, first.start : first.stop] + 1) % self.model.spec.vocab_size
        with evaluating(self.model):
            before, after = (self.model(ids, batch.tokens)[0, last.start : last.stop] for ids in (batch.ids, other))
        return moved(before, after)

    def steps(self, n: int) -> list[float]:
        return [] if self.probe is None else self.probe(n)

    @property
    def trainable(self) -> int:
        return sum(each.numel() for each in self.model.parameters() if each.requires_grad)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def moved(before: Tensor, after: Tensor) -> float:
    """The largest difference, as a share of how far outputs usually are from zero."""
    return float((after - before).abs().max() / before.float().pow(2).mean().sqrt().clamp_min(1e-9))


def batch_of(rows: Sequence[Row], device: torch.device) -> Batch:
    """Rows as one batch again; shorter ones are padded."""
    ids = padded([row.ids for row in rows], 0)
    documents = padded([row.documents for row in rows], -1)
    labels = padded([[IGNORE if target is None else target for target in row.targets] for row in rows], IGNORE)
    batch = Batch(ids, Tokens.packed(documents), labels)
    if any(row.source for row in rows):
        source = padded([row.source for row in rows], -1)
        batch = replace(batch, source=Source(source.clamp_min(0), Tokens.padded(source >= 0)))
    return batch.to(device)
