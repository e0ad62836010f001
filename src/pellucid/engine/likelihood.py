"""How likely a model finds given text: continuations of contexts, and whole texts longer than its context.

Everything is told in token ids. Who has text must encode context and continuation together and cut where the context's
own tokens end: a tokenizer may merge across the seam, and a space at the end of a context belongs to the continuation.
Nothing is added to the ids, no begin or end of text either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pellucid.batch import IGNORE, Batch, Source, Tokens, padded
from pellucid.engine.modes import evaluating
from pellucid.engine.reader import writer_of
from pellucid.errors import DataError, UsageError
from pellucid.nn.base import Model
from pellucid.nn.models import Decoder, EncoderDecoder
from pellucid.predicates import ORDINARY, PREFIX

BATCH_TOKENS = 8192  # in one forward, padding included


@dataclass(frozen=True)
class Likelihood:
    """each: ln p of every token given all before it, in nats. greedy: whether each was the likeliest of all."""

    each: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """ln p of the whole, in nats."""
        return float(sum(self.each))


@dataclass(frozen=True)
class _Row:
    """One row of a forward: what it reads, and whose labels it scores.

    labels: for each id, the token after it, or IGNORE. to: where its numbers go, (text, first token). prefix: how many
    ids are the prefix of a prefix language model.
    """

    ids: Sequence[int]
    labels: Sequence[int]
    to: tuple[int, int]
    prefix: int = 0
    source: Sequence[int] | None = None


def likelihoods(
    model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_tokens: int = BATCH_TOKENS
) -> list[Likelihood]:
    """For each (context, continuation): how likely the continuation is after the context.

    The context is what a prefix language model takes as its prefix, and what the encoder of an encoder–decoder reads;
    its decoder begins with ``spec.start_id``. Many are read in one forward, of up to ``batch_tokens`` tokens; each gets
    the numbers that it would get alone, but for rounding. The model's mode is left as it was.
    Raises UsageError for a model that cannot write; DataError for a context or continuation without tokens, a pair that
    is longer than the model's context, and ids outside the vocabulary.
    """
    writer = writer_of(model)
    rows: list[_Row] = []
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation):
            empty = "continuation" if len(context) else "context"
            raise DataError(
                f"pair {number}: its {empty} has no tokens",
                "a context needs at least the begin-of-text token; where a tokenizer merged a continuation into the"
                " context, cut earlier",
            )
        source = context if isinstance(model, EncoderDecoder) else None
        before = [model.spec.start_id] if isinstance(model, EncoderDecoder) else context
        rows += _rows(writer, before, continuation, (number, 0), source)
    return _scored(model, rows, len(pairs), batch_tokens)


def rolling(
    model: Model,
    texts: Sequence[Sequence[int]],
    *,
    before: int,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Likelihood]:
    """The likelihood of whole texts of any length, each token scored once.

    before: the token that the first one is predicted from, usually begin or end of text; a text that already begins
    with it gets it twice. stride: how far the window of the model's context moves on (default: its whole length): each
    token is predicted from at least context - stride tokens before it, as far as the text has them.
    Raises UsageError for a model that is no decoder and for a stride outside 1…context.
    """
    if not isinstance(model, Decoder):
        raise UsageError("a text's own likelihood is that of a decoder", "likelihoods(model, [(source, target), …])")
    size = model.spec.context
    step = size if stride is None else stride
    if not 1 <= step <= size:
        raise UsageError(f"stride={step} is not in 1…{size}", "a stride is at most the model's context")
    rows: list[_Row] = []
    for number, text in enumerate(texts):
        inputs, start, done = [before, *text], 0, 0
        while done < len(text):
            end = min(start + size, len(text))
            rows += _rows(model, inputs[start : done + 1], text[done:end], (number, done), None, prefix=False)
            start, done = start + step, end
    return _scored(model, rows, len(texts), batch_tokens)


def _rows(
    writer: Decoder,
    before: Sequence[int],
    scored: Sequence[int],
    to: tuple[int, int],
    source: Sequence[int] | None,
    prefix: bool = True,
) -> Iterator[_Row]:
    """The rows that score the tokens ``scored`` behind ``before``: one, but for a model with a fixed prefix.

    There a token inside the prefix is seen by those before it: each such one is scored by a row that ends before it.
    """
    ids = [*before, *scored]
    if len(ids) - 1 > writer.spec.context:
        raise DataError(
            f"text {to[0]} has {len(ids) - 1} tokens to read, but the model's context is {writer.spec.context}",
            "leave out the beginning of its context",
        )
    ahead = writer.spec.ahead
    marked = len(before) if prefix and ahead.marked and source is None else 0
    alone = range(len(before), min(ahead.first, len(ids)))
    for place in alone:
        labels = [IGNORE] * (place - 1) + [ids[place]]
        yield _Row(ids[:place], labels, (to[0], to[1] + place - len(before)), marked, source)
    first = max(len(before), alone.stop if len(alone) else 0)
    if first < len(ids):
        labels = [IGNORE] * (first - 1) + ids[first:]
        yield _Row(ids[:-1], labels, (to[0], to[1] + first - len(before)), marked, source)


def _scored(model: Model, rows: Sequence[_Row], n_texts: int, batch_tokens: int) -> list[Likelihood]:
    """Read the rows, alike long ones together, and put their numbers where they belong."""
    parts: list[list[tuple[int, list[float]]]] = [[] for _ in range(n_texts)]
    greedy = [True] * n_texts
    with evaluating(model, inference=True):
        for group in _groups(rows, batch_tokens):
            batch = _batch(model, group)
            logprobs, likeliest = (x.tolist() for x in model.scores(batch))
            for row, each, right in zip(group, logprobs, likeliest, strict=True):
                scored = [at for at, label in enumerate(row.labels) if label != IGNORE]
                text, first = row.to
                parts[text].append((first, [each[at] for at in scored]))
                greedy[text] = greedy[text] and all(right[at] for at in scored)
    each_text = ([x for _, some in sorted(part) for x in some] for part in parts)
    return [Likelihood(tuple(each), right) for each, right in zip(each_text, greedy, strict=True)]


def _groups(rows: Sequence[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Long rows first, so that memory that is too small shows at once; no group has more than ``batch_tokens``."""
    group: list[_Row] = []
    for row in sorted(rows, key=lambda row: (len(row.ids), len(row.source or ())), reverse=True):
        longest = group[0] if group else row
        size = max(len(longest.ids), max((len(each.source or ()) for each in (*group, row)), default=0))
        if group and size * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _places(lines: Sequence[Sequence[int]], prefixes: Sequence[int], device: torch.device) -> Tokens:
    """Where the tokens of lines that are padded at their end stand."""
    longest = max(map(len, lines))
    part = None
    if any(prefixes):
        marks = [[PREFIX] * n + [ORDINARY] * (longest - n) for n in prefixes]
        part = torch.tensor(marks, device=device)
    if all(len(line) == longest for line in lines):
        plain = Tokens.plain(len(lines), longest, device=device)
        return plain if part is None else Tokens(plain.pos, part=part)
    lengths = torch.tensor([[len(line)] for line in lines], device=device)
    valid = torch.arange(longest, device=device) < lengths
    return Tokens(Tokens.padded(valid).pos, part=part)


def _batch(model: Model, group: Sequence[_Row]) -> Batch:
    device, ids = model.device, [row.ids for row in group]
    source: Source | None = None
    if isinstance(model, EncoderDecoder):
        read = [row.source or () for row in group]
        source = Source(padded(read, 0, device), _places(read, [0] * len(read), device))
    tokens = _places(ids, [row.prefix for row in group], device)
    return Batch(padded(ids, 0, device), tokens, padded([row.labels for row in group], IGNORE, device), source=source)
