"""Rows of text that a model reads token by token: they join, leave, branch and go back while others go on.

A ``Session`` owns everything that this needs: the tokens of each row, where they stand, and what the model keeps of
them. Whoever writes with a model (sampling, beam search, speculation, a conversation) decides about tokens only::

    session = Session(model)
    rows = [session.add(prompt) for prompt in prompts]
    logits = session.read()                        # (rows, 1, vocab): what may follow each prompt
    logits = session.read([[5], [7, 8]])           # (rows, 2, vocab): what may follow these tokens
    session.rewind(rows[1], 1)                     # as if 8 had never been read
    branch = session.fork(rows[0])                 # another row that begins as this one
    session.drop(rows[1])                          # it costs nothing any more
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.engine.modes import evaluating
from pellucid.errors import DataError, UsageError
from pellucid.nn.models import Decoder, EncoderDecoder, Model

NewTokens: TypeAlias = Sequence[Sequence[int]] | Int[Tensor, "rows k"]


@dataclass(eq=False)
class Row:
    """One text of a session, equal to nothing but itself. Only its session changes it.

    ids: all its tokens so far, the prompt first. source: what the encoder of an encoder–decoder reads for it.
    """

    ids: list[int]
    source: tuple[int, ...] | None = None
    n_prompt: int = field(default=0)


def writer_of(model: Model) -> Decoder:
    """The part of a model that writes. Raises UsageError for a model that has none."""
    if isinstance(model, EncoderDecoder):
        return model.decoder
    if not isinstance(model, Decoder):
        raise UsageError(
            "an encoder reads whole texts and cannot write",
            "look into it, or call it for its states or its head's logits",
        )
    return model


class Session:
    """Rows of one model. capacity: how many tokens a row may have at most (default: the model's context).

    slack: by how many tokens a row may be rewound cheaply where layers keep a window only; further is read anew.
    Raises UsageError for a model that cannot write.
    """

    def __init__(self, model: Model, *, capacity: int | None = None, slack: int = 0):
        self.model, self.writer = model, writer_of(model)
        self.capacity = self.writer.spec.context if capacity is None else capacity
        self.slack = slack
        self.rows: list[Row] = []

    def add(self, prompt: Sequence[int], source: Sequence[int] | None = None) -> Row:
        """A new row, behind the others, that begins with ``prompt``. It is read by the next ``read``.

        source: what the encoder reads, for an encoder–decoder; its prompt is usually ``[spec.start_id]``.
        Raises DataError where the prompt is empty or longer than the capacity, and where a source is missing or has no
        reader.
        """
        ids = [int(token) for token in prompt]
        if not ids:
            raise DataError("a row needs at least one token to begin with", "give it the begin-of-text token")
        self._check_room(len(ids))
        if (source is None) == isinstance(self.model, EncoderDecoder):
            raise DataError(
                "an encoder–decoder needs a source for each row" if source is None else "no encoder reads this source",
                "session.add(prompt, source) for an encoder–decoder, session.add(prompt) for a decoder",
            )
        row = Row(ids, None if source is None else tuple(int(token) for token in source), len(ids))
        self.rows.append(row)
        return row

    def extend(self, row: Row, ids: Sequence[int]) -> None:
        """More tokens behind a row whose logits nobody needs; the next ``read`` reads them first.

        Raises DataError where the row would be longer than the capacity.
        """
        self._check_room(len(row.ids) + len(ids))
        row.ids.extend(int(token) for token in ids)

    def read(self, ids: NewTokens | None = None) -> Float[Tensor, "rows k vocab"]:
        """Put ``ids`` behind the rows, one line a row in the order of ``rows``, and read what is unread.

        ids: equally many a row or not, as lists; or as a tensor whose -1 at the end of a line means that there is none.
        None: nothing new, k is 1. What comes back for row r and its new token i is what may follow that token, as if
        nothing were read after it; behind a row's last new token the numbers mean nothing.
        Raises DataError, and leaves the rows as they were, where a row would be longer than the capacity, where ``ids``
        has another number of lines than there are rows, and for tokens outside the vocabulary.
        """
        new = self._new(ids)
        for row, some in zip(self.rows, new, strict=True):
            row.ids.extend(some)
        k = max((len(some) for some in new), default=0) if ids is not None else 1
        ends = [[len(row.ids) - len(some) + i + 1 for i in range(k)] for row, some in zip(self.rows, new, strict=True)]
        with evaluating(self.model, inference=True):
            steps = [self._whole([end[i] for end in ends]) for i in range(k)] if ids is not None else [self._whole()]
            return torch.stack(steps, 1)

    def _whole(self, ends: list[int] | None = None) -> Float[Tensor, "rows vocab"]:
        """Logits after the first ``ends`` tokens of each row (default: all), without anything kept."""
        device = next(self.model.parameters()).device
        out: list[Tensor] = []
        for row, end in zip(self.rows, ends or [len(row.ids) for row in self.rows], strict=True):
            ids = torch.tensor([row.ids[: min(end, len(row.ids))]], device=device)
            cache = self.writer.new_cache(1, ids.shape[1])
            if isinstance(self.model, EncoderDecoder):
                assert row.source is not None
                cache.memory = self.model.encode(torch.tensor([list(row.source)], device=device))
            out.append(self.writer(ids, Tokens.plain(*ids.shape, device=device), cache)[:, -1])
        return torch.cat(out)

    def rewind(self, row: Row, n: int) -> None:
        """Take the last ``n`` tokens of a row away, as if they had never been read.

        Raises DataError where it would have no token left.
        """
        if not 0 <= n < len(row.ids):
            raise DataError(f"a row of {len(row.ids)} tokens cannot go back by {n}", "keep at least one token")
        if n:
            del row.ids[-n:]

    def rewind_to(self, row: Row, ids: Sequence[int]) -> int:
        """Make a row hold ``ids``, whatever it held: their common beginning stays read. Returns its length.

        Raises DataError where there are no ids, or more than the capacity.
        """
        if not ids:
            raise DataError("a row needs at least one token to begin with", "give it the begin-of-text token")
        self._check_room(len(ids))
        pairs = zip(row.ids, ids, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(row.ids), len(ids)))
        row.ids[common:] = [int(token) for token in ids[common:]]
        return common

    def fork(self, row: Row) -> Row:
        """Another row with the same tokens, behind all others; nothing is read a second time."""
        branch = Row(list(row.ids), row.source, row.n_prompt)
        self.rows.append(branch)
        return branch

    def drop(self, row: Row) -> None:
        """Let a row leave: from the next ``read`` on it costs nothing."""
        self.rows.remove(row)

    def _new(self, ids: NewTokens | None) -> list[list[int]]:
        if ids is None:
            return [[] for _ in self.rows]
        lines = ids.tolist() if isinstance(ids, Tensor) else ids
        if len(lines) != len(self.rows):
            raise DataError(f"{len(lines)} lines of tokens for {len(self.rows)} rows", "give one line a row")
        new = [[int(token) for token in line if token != -1] for line in lines]
        vocab = self.writer.spec.vocab_size
        for row, some in zip(self.rows, new, strict=True):
            self._check_room(len(row.ids) + len(some))
            for token in some:
                if not 0 <= token < vocab:
                    raise DataError(f"token id {token} is outside the vocabulary 0..{vocab - 1}", "read what it has")
        return new

    def _check_room(self, length: int) -> None:
        if length > self.capacity:
            raise DataError(
                f"a row of this session holds {self.capacity} tokens, but this call needs {length}",
                "make it larger: Session(model, capacity=...)",
            )


def greedy(
    model: Model,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    source: Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    never_ids: Sequence[int] = (),
) -> list[int]:
    """The likeliest tokens behind a prompt, one after the other, a token of ``stop_ids`` being the last.

    never_ids: tokens that are not written, however likely; those outside the vocabulary have no effect.
    Raises as ``Session.add`` does. The model's mode is left as it was.
    """
    session = Session(model, capacity=len(prompt) + max_new_tokens)
    session.add(prompt, source)
    never, written = [token for token in never_ids if token < session.writer.spec.vocab_size], list[int]()
    while len(written) < max_new_tokens:
        logits = session.read([written[-1:]] if written else None)[0, -1]
        logits[never] = -torch.inf
        written.append(int(logits.argmax()))
        if written[-1] in stop_ids:
            break
    return written
