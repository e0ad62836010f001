"""Ids: known to the model, begun once, made by a tokenizer that knows the text."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.doctor.checks import Check
from pellucid.doctor.report import Complaint, number_of
from pellucid.doctor.subject import Subject

STRANGE = 0.02  # the share of tokens that stand for nothing known, from which on it is told


def range_of_ids(subject: Subject) -> Complaint | None:
    """Ids for which the model has no vector."""
    assert subject.table is not None
    read = [number for row in subject.rows for number in row.ids]
    bad = [number for number in read if not 0 <= number < subject.table]
    if not bad:
        return None
    said = f"{number_of(len(bad), len(read), 'ids')} are none of the model's {subject.table:,}, such as {bad[0]}"
    return Complaint("refuse", said, "use the model's own tokenizer, or enlarge its table of tokens")


def size(subject: Subject) -> Complaint | None:
    """A tokenizer with more tokens than the model has vectors for."""
    assert subject.vocabulary is not None and subject.table is not None
    if subject.vocabulary.size <= subject.table:
        return None
    said = f"the tokenizer has {subject.vocabulary.size:,} tokens, the model's table {subject.table:,}"
    return Complaint("refuse", said, "enlarge the table of tokens after tokens were added, or use its own tokenizer")


def begin(subject: Subject) -> Complaint | None:
    """Documents that begin with the begin-of-text token twice."""
    assert subject.vocabulary is not None
    mark = subject.vocabulary.begin
    documents = [row.ids[piece.start : piece.start + 2] for row in subject.rows for piece in row.pieces()]
    twice = sum(first == (mark, mark) for first in documents) if mark is not None else 0
    if not twice:
        return None
    said = f"{number_of(twice, len(documents), 'documents')} begin with {_name(subject, mark)} twice"
    remedy = "encode what a chat template wrote without special tokens (add_special_tokens=False)"
    return Complaint("refuse" if twice > len(documents) / 2 else "warn", said, remedy)


def unknown(subject: Subject) -> Complaint | None:
    """Tokens that stand for anything that the vocabulary does not know."""
    assert subject.vocabulary is not None
    read = [number for row in subject.rows for number in (*row.ids, *row.source)]
    strange = read.count(subject.vocabulary.unknown) if subject.vocabulary.unknown is not None else 0
    ends = subject.vocabulary.unknown in {subject.vocabulary.pad, subject.vocabulary.begin, *subject.vocabulary.ends}
    if ends or strange <= STRANGE * len(read):  # GPT-2's vocabulary calls the end of a text unknown, too
        return None
    said = f"{number_of(strange, len(read), 'tokens')} are {_name(subject, subject.vocabulary.unknown)}"
    return Complaint("warn", said, "the vocabulary was not learned from texts like these: choose another one")


def too_long(subject: Subject) -> Complaint | None:
    """Rows that are longer than what the model reads."""
    assert subject.context is not None
    longer = [len(row.ids) for row in subject.rows if len(row.ids) > subject.context]
    if not longer:
        return None
    said = f"{number_of(len(longer), len(subject.rows), 'rows')} have up to {max(longer):,} tokens"
    return Complaint(
        "refuse", f"{said}; the model reads {subject.context:,}", "cut or split them, and see what is lost"
    )


def _name(subject: Subject, number: int | None) -> str:
    assert subject.vocabulary is not None
    named = {each: text for text, each in subject.vocabulary.special.items()}
    return named.get(-1 if number is None else number, f"token {number}")


CHECKS: Sequence[Check] = (
    Check("unknown-ids", "does the model know every id?", range_of_ids, ("rows", "table")),
    Check("vocabulary-size", "has the model a vector for every token?", size, ("vocabulary", "table")),
    Check("double-begin", "does a text begin once?", begin, ("rows", "vocabulary")),
    Check("unknown-words", "does the vocabulary know the words?", unknown, ("rows", "vocabulary")),
    Check("too-long", "are rows as short as what the model reads?", too_long, ("rows", "context")),
)
