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

Changes to rows are noted at once and carried out together by the next ``read``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.engine.modes import evaluating
from pellucid.engine.reader import Reader, Row, Unread, writer_of
from pellucid.errors import DataError
from pellucid.nn.base import Model
from pellucid.nn.models import EncoderDecoder

NewTokens: TypeAlias = Sequence[Sequence[int]] | Int[Tensor, "rows k"]


class Session:
    """Rows of one model. capacity: how many tokens a row may have at most (default: the model's context).

    slack: by how many tokens a row may go back cheaply where layers keep a window only; what goes back farther is read
    anew. fixed: the cache has its full size from the beginning and is always attended to as a whole, so that compiled
    blocks meet one shape.
    Raises UsageError for a model that cannot write.
    """

    def __init__(self, model: Model, *, capacity: int | None = None, slack: int = 0, fixed: bool = False):
        self.model, self.writer = model, writer_of(model)
        self.capacity = self.writer.spec.context if capacity is None else capacity
        self.rows: list[Row] = []
        self._reader = Reader(model, self.capacity, slack, fixed)
        self._modules: list[nn.Module] = []  # of the model, listed anew for each text and not for each token
        self._awake = False

    def add(self, prompt: Sequence[int], source: Sequence[int] | None = None) -> Row:
        """A new row, behind the others, that begins with ``prompt``; the next ``read`` reads it, equal ones once.

        source: what the encoder reads, for an encoder–decoder; its prompt is usually ``[spec.start_id]``.
        Raises DataError where the prompt is empty, longer than the capacity or outside the vocabulary, and where a
        source is missing or has no reader.
        """
        ids = self._checked_prompt(prompt)
        if (source is None) == isinstance(self.model, EncoderDecoder):
            raise DataError(
                "an encoder–decoder needs a source for each row" if source is None else "no encoder reads this source",
                "session.add(prompt, source) for an encoder–decoder, session.add(prompt) for a decoder",
            )
        row = Row(ids, len(ids), None if source is None else tuple(int(token) for token in source))
        self.rows.append(row)
        self._modules = []
        return row

    def read(self, ids: NewTokens | None = None) -> Float[Tensor, "rows k vocab"]:
        """Put ``ids`` behind the rows, one line a row in the order of ``rows``, and read what is unread.

        ids: equally many a row or not, as lists; or as a tensor whose -1 at the end of a line means that there is none.
        None: nothing new, k is 1. What comes back for row r and its new token i is what may follow that token, as if
        nothing were read after it; behind a row's last new token the numbers mean nothing.
        Raises DataError, and leaves the rows as they were, where a row would be longer than the capacity, where ``ids``
        has another number of lines than there are rows, and for tokens outside the vocabulary.
        """
        new = self._checked_lines(ids)
        wanted = [1 if ids is None else len(some) for some in new]
        before = [len(row.ids) for row in self.rows]
        for row, some in zip(self.rows, new, strict=True):
            row.ids.extend(some)
        try:
            with nullcontext() if self._awake else self._evaluating():
                return self._read(wanted)
        except BaseException:  # an interruption, too, leaves layers that have read different tokens
            for row, length in zip(self.rows, before, strict=True):
                del row.ids[length:]
            self._reader.forget(self.rows)
            raise

    def rewind(self, row: Row, n: int) -> None:
        """Take the last ``n`` tokens of a row away, as if they had never been read.

        Raises DataError where it would have no token left.
        """
        if not 0 <= n < len(row.ids):
            raise DataError(f"a row of {len(row.ids)} tokens cannot go back by {n}", "keep at least one token")
        del row.ids[len(row.ids) - n :]
        row.kept = min(row.kept, len(row.ids))
        if len(row.ids) < row.n_prompt:
            row.n_prompt = len(row.ids)
            if self._reader.ahead.marked:  # what is left of the prompt has seen what is not
                row.leave_cache()

    def rewind_to(self, row: Row, prompt: Sequence[int]) -> int:
        """Make a row hold ``prompt``, whatever it held: their common beginning, whose length is returned, stays read.

        Raises DataError, and leaves the row as it was, where ``add`` would.
        """
        ids = self._checked_prompt(prompt)
        pairs = zip(row.ids, ids, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(row.ids), len(ids)))
        row.ids, row.n_prompt, row.kept = ids, len(ids), min(row.kept, common)
        self._modules = []
        return common

    def fork(self, row: Row) -> Row:
        """Another row with the same tokens, behind all others; nothing is read a second time."""
        branch = replace(row, ids=list(row.ids))
        self.rows.append(branch)
        return branch

    def drop(self, row: Row) -> None:
        """Let a row leave: from the next ``read`` on it costs nothing."""
        self.rows.remove(row)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation and inference mode for several reads, which otherwise enter and leave them one by one."""
        with evaluating(self.model, inference=True):
            self._awake = True
            try:
                yield
            finally:
                self._awake = False

    def _evaluating(self) -> AbstractContextManager[None]:
        self._modules = self._modules or list(self.model.modules())
        return evaluating(self.model, inference=True, modules=self._modules)

    def _read(self, wanted: list[int]) -> Float[Tensor, "rows k vocab"]:
        """Logits after the last ``wanted`` tokens of each row, which may all be read at once except within a prefix."""
        k = max(wanted, default=0)
        if k <= 1 or not any(map(self._reader.within_prefix, self.rows)):
            return self._reader.read(
                [Unread(row, len(row.ids), some) for row, some in zip(self.rows, wanted, strict=True)]
            )
        steps: list[Tensor] = []
        for i in range(k):  # what a token of a prefix sees depends on how many are read with it: one after the other
            ends = [len(row.ids) - some + min(i + 1, some) for row, some in zip(self.rows, wanted, strict=True)]
            rows = zip(self.rows, ends, wanted, strict=True)
            steps.append(self._reader.read([Unread(row, end, int(i < some)) for row, end, some in rows]))
        return torch.cat(steps, 1)

    # --- what is asked, checked before anything changes --------------------------------------------------------------

    def _checked_prompt(self, prompt: Sequence[int]) -> list[int]:
        ids = [int(token) for token in prompt]
        if not ids:
            raise DataError("a row needs at least one token to begin with", "give it the begin-of-text token")
        self._check(ids, len(ids))
        return ids

    def _checked_lines(self, ids: NewTokens | None) -> list[list[int]]:
        if ids is None:
            return [[] for _ in self.rows]
        lines = ids.tolist() if isinstance(ids, Tensor) else ids
        if len(lines) != len(self.rows):
            raise DataError(f"{len(lines)} lines of tokens for {len(self.rows)} rows", "give one line a row")
        new = [[int(token) for token in line if token != -1] for line in lines]
        for row, some in zip(self.rows, new, strict=True):
            self._check(some, len(row.ids) + len(some))
        return new

    def _check(self, ids: Sequence[int], length: int) -> None:
        if length > self.capacity:
            raise DataError(
                f"a row of this session holds {self.capacity} tokens, but this call needs {length}",
                "make it larger: Session(model, capacity=...)",
            )
        vocab = self.writer.spec.vocab_size
        for token in ids:
            if not 0 <= token < vocab:
                raise DataError(
                    f"token id {token} is outside the vocabulary 0..{vocab - 1}",
                    "encode the text with the tokenizer that belongs to this model",
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
    with session.evaluating():
        while len(written) < max_new_tokens:
            logits = session.read([written[-1:]] if written else None)[0, -1]
            logits[never] = -torch.inf
            written.append(int(logits.argmax()))
            if written[-1] in stop_ids:
                break
    return written
