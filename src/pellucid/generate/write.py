"""The loop that writes: a session reads, a policy decides, and the session's rows follow its decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.engine.session import Row, Session
from pellucid.generate.policy import Decision, Line, Policy, Steps, Vocabulary
from pellucid.nn.base import Model


def vocabulary_of(model: Model) -> Vocabulary:
    """What the model may write: the ids that its tokenizer knows, if it has one, but those that are never written."""
    size, never = model.spec.vocab_size, ()
    if model.tokenizer is not None:
        size, never = min(size, model.tokenizer.vocab_size), model.tokenizer.never_ids
    device = next(model.parameters()).device
    return Vocabulary(size, torch.tensor([token for token in never if token < size], dtype=torch.long, device=device))


def write(
    session: Session, rows: Sequence[Row], lines: Sequence[Line], policy: Policy, n: int = 1
) -> Iterator[Decision]:
    """Write until every line has ended; the iterator yields the decision of each step.

    rows: the session's rows, all of them, one for each prompt, whose last token is unread. lines: ``policy.starts(n)``
    for each prompt, with the index of its row as ``request``. n: how many texts are wanted of each prompt.
    Raises at once as ``policy.begin`` does, and on the way as ``Line.push`` and ``Session.read`` do.
    """
    vocabulary = vocabulary_of(session.model)
    return _loop(session, rows, lines, policy.begin(session.model, lines, vocabulary, n), vocabulary.size)


def _loop(
    session: Session, rows: Sequence[Row], lines: Sequence[Line], steps: Steps, vocab_size: int
) -> Iterator[Decision]:
    logits = _of_rows(session.read(), session, rows)[[line.request for line in lines]]
    rows = _branch(session, rows, [line.request for line in lines])
    while True:
        decision = steps.propose(logits[..., :vocab_size], lines)
        yield decision
        going = decision.going
        if not going:
            return
        rows = _branch(session, rows, [each.parent for each in going])
        lines = [each.line for each in going]
        for row, line in zip(rows, lines, strict=True):
            session.rewind(row, len(row.ids) - (line.length - 1))  # guesses that were wrong
        unread = {row: (each.line.newest, *each.guesses) for row, each in zip(rows, going, strict=True)}
        logits = _of_rows(session.read([unread[row] for row in session.rows]), session, rows)


def _of_rows(
    logits: Float[Tensor, "all k vocab"], session: Session, rows: Sequence[Row]
) -> Float[Tensor, "rows k vocab"]:
    """The logits in the order of ``rows``."""
    if list(rows) == session.rows:
        return logits
    places = {row: place for place, row in enumerate(session.rows)}
    return logits[[places[row] for row in rows]]


def _branch(session: Session, rows: Sequence[Row], parents: Sequence[int]) -> list[Row]:
    """Rows that go on from those of ``parents``: the first from a row takes it, others fork it; the rest is dropped."""
    branches: list[Row] = []
    taken: set[Row] = set()
    for parent in parents:
        row = rows[parent]
        branches.append(session.fork(row) if row in taken else row)
        taken.add(row)
    for row in rows:
        if row not in taken:
            session.drop(row)
    return branches
