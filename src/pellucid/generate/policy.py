"""What the loop that writes asks of whoever chooses the tokens.

A *line* is one text on its way. At each step the loop reads every line's newest tokens, and a policy decides from the
logits how the lines go on: which line each next one continues (so lines fork and are dropped), what it appends, and
what is guessed to follow. Sampling continues every line by one token; beam search forks and drops; speculation keeps
several guessed tokens at once. Between two steps, all of a line but its newest token has been read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.errors import RunError
from pellucid.generate.stop import StopDecoder
from pellucid.nn.base import Model

FinishReason: TypeAlias = Literal["stop", "eos", "length", "context"]


@dataclass(frozen=True)
class Score:
    """What a search ranks its texts by: the sum of ln p over the ``length`` tokens that were generated, the end of text
    included and the prompt not, divided by length ** ``length_penalty``. ``float(score)`` is that number."""

    logprob: float
    length: int
    length_penalty: float

    def __float__(self) -> float:
        return self.logprob / self.length**self.length_penalty

    def __str__(self) -> str:
        by = f" / {self.length}^{self.length_penalty:g}" if self.length_penalty else ""
        return f"{float(self):.4f} (ln p{by})"


@dataclass(eq=False)
class Line:
    """One text on its way: what was written so far, what of it is certain to be shown, and why it ended.

    request: the place of its prompt among the caller's. place: its own among the texts of that prompt.
    source: what an encoder reads; without one the prompt itself. prompt_ids: what the writing side reads before its
    first token. room: how many tokens may be written before the text ends for the reason ``full``. stop_ids: the tokens
    that end a text. special: how special tokens, which are not shown, are written. score: set by a policy that ranks
    its lines.
    """

    request: int
    place: int
    source: list[int]
    prompt_ids: list[int]
    room: int
    full: Literal["length", "context"]
    generator: torch.Generator
    stop_ids: tuple[int, ...]
    bytes_of: Callable[[int], bytes] | None
    decoder: StopDecoder
    special: Mapping[int, str] = field(default_factory=dict[int, str])
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    reason: FinishReason | None = None
    score: Score | None = None

    @property
    def length(self) -> int:
        """How many tokens the writing side's text has, the prompt's and the newest one included."""
        return len(self.prompt_ids) + len(self.ids)

    @property
    def tokens(self) -> list[int]:
        """All tokens of the writing side's text, the prompt's and the newest one included."""
        return self.prompt_ids + self.ids

    @property
    def newest(self) -> int:
        """The token that has not been read yet."""
        return self.ids[-1] if self.ids else self.prompt_ids[-1]

    def push(self, token: int, logprob: float) -> None:
        """Append one token, and find out whether it ends the text. logprob: ln p under the model itself.

        Raises RunError where the probability is not a number.
        """
        if math.isnan(logprob):
            raise RunError(
                f"the model's logits are not finite after {self.length} tokens",
                "its weights are damaged or its training diverged: use an earlier checkpoint",
            )
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self.special:
            text = self.decoder.feed_special(self.special[token])
        else:
            text = self.decoder.feed(self.bytes_of(token)) if self.bytes_of else ""
        if self.decoder.stopped is None:
            if token in self.stop_ids:
                self.reason = "eos"
            elif len(self.ids) == self.room:
                self.reason = self.full
            if self.reason is not None:
                text += self.decoder.finish()
        if self.decoder.stopped is not None:  # perhaps only now that nothing can follow
            self.reason = "stop"
        self.pieces.append(text)

    def fork(self) -> Line:
        """Another line with the same text so far. It shares the random generator."""
        return replace(
            self, ids=[*self.ids], logprobs=[*self.logprobs], pieces=[*self.pieces], decoder=self.decoder.fork()
        )


@dataclass(frozen=True)
class Next:
    """A line of the next step. parent: the index of the line that it continues, among those of this step.

    line: its text, with the tokens of this step appended; it has not ended. The cache keeps the first
    ``line.length - 1`` tokens of the parent's row: the rest was guessed wrongly.
    guesses: tokens that may follow ``line.newest``, read with it, so that the next logits are (…, 1 + guesses, vocab).
    """

    parent: int
    line: Line
    guesses: Sequence[int] = ()


@dataclass(frozen=True)
class Decision:
    """What one step settles. A parent named twice is forked, one that is not named is dropped.

    going: the lines of the next step, in the order of their rows. ended: final texts, each with its ``place``.
    """

    going: list[Next]
    ended: list[Line]


@dataclass(frozen=True)
class Vocabulary:
    """What may be written: the ids below ``size``, except ``never``. Embeddings are often padded to a round number."""

    size: int
    never: Int[Tensor, " refused"]


@runtime_checkable
class Steps(Protocol):
    """A policy at work on some lines."""

    def propose(self, logits: Float[Tensor, "rows k vocab"], lines: Sequence[Line]) -> Decision:
        """Decide how the lines go on.

        logits: after each line's newest token and each of its guesses, of the ids below ``Vocabulary.size`` and as the
        model gives them. Lines with fewer guesses than others have columns at the end that mean nothing.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    """How texts are written. A frozen value: what belongs to one call is kept in the ``Steps`` that it begins."""

    streams: ClassVar[bool]  # whether what a line has written is final, so that it may be shown at once

    @property
    def lookahead(self) -> int:
        """How many guesses a line may have at most: the cache must be able to take back so many tokens."""
        ...

    def starts(self, n: int) -> int:
        """How many lines each prompt begins with, where ``n`` texts of it are wanted: they share what was read of it.

        Raises UsageError where this policy cannot write so many.
        """
        ...

    def begin(self, model: Model, lines: Sequence[Line], vocabulary: Vocabulary, n: int) -> Steps:
        """Start to write ``n`` texts for each prompt. lines: those of the first step.

        Raises UsageError, before anything is written, where this model cannot be written with by this policy.
        """
        ...
