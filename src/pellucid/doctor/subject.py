"""What a check may look at, as plain values, whoever's data and model it is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Kind = Literal["decoder", "encoder", "encoder-decoder", "classifier"]


@dataclass(frozen=True, eq=False)
class Row:
    """One row as the model reads it, and what it is scored by.

    ids: of each place. targets: the token whose probability is scored at each place, None where nothing is; of a
    classifier, its class alone. documents: which one each place belongs to, -1 where there is no token (padding).
    source: what an encoder reads beside. origin: what it was made of, for the trial that made it.
    """

    ids: tuple[int, ...]
    targets: tuple[int | None, ...]
    documents: tuple[int, ...]
    source: tuple[int, ...] = ()
    origin: Any = None

    @property
    def scored(self) -> list[int]:
        """The places at which something is scored."""
        return [place for place, target in enumerate(self.targets) if target is not None]

    def pieces(self) -> list[range]:
        """The places of each document, in their order."""
        found: list[range] = []
        for place, number in enumerate(self.documents):
            if number < 0:
                continue
            if found and found[-1].stop == place and self.documents[place - 1] == number:
                found[-1] = range(found[-1].start, place + 1)
            else:
                found.append(range(place, place + 1))
        return found


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Of a tokenizer: how many ids there are, what they stand for, and which have a role. ends: those after which
    nothing is written any more."""

    size: int
    decode: Callable[[Sequence[int]], str]
    special: Mapping[str, int]
    begin: int | None = None
    ends: frozenset[int] = frozenset()
    pad: int | None = None
    unknown: int | None = None


@dataclass(frozen=True, eq=False)
class Chat:
    """One conversation, and what became of it. ids, scored: its tokens, and which of them are learned."""

    messages: Sequence[Mapping[str, Any]]
    ids: Sequence[int]
    scored: Sequence[bool]


@dataclass(frozen=True, eq=False)
class Template:
    """How conversations are written. text, ids: of messages, and whether the answer is to begin at their end."""

    text: Callable[[Sequence[Mapping[str, Any]], bool], str]
    ids: Callable[[Sequence[Mapping[str, Any]], bool], list[int]]


@dataclass(frozen=True)
class Cut:
    """One example that may have been too long. before, after: its tokens; learned, left: those of them that are scored.

    Of an example that was left out, ``after`` is 0.
    """

    before: int
    after: int
    learned: int
    left: int


@runtime_checkable  # the shape checks of the tests look
class Trial(Protocol):
    """What can be asked of a model. Nothing here changes it."""

    def loss(self, rows: Sequence[Row]) -> float:
        """Mean loss of a scored place, as training computes it."""
        ...

    def accumulated(self, rows: Sequence[Row]) -> float | None:
        """The same, as training adds it up where each row is a micro-batch of its own; None where it does not."""
        ...

    def crosstalk(self, row: Row) -> float:
        """How far outputs of the last document move when the first one is another text, against their size."""
        ...

    def steps(self, n: int) -> list[float]:
        """The losses of ``n`` steps on always the same rows at the full learning rate, of a copy; [] without a rate."""
        ...

    @property
    def trainable(self) -> int:
        """How many parameters learn."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """All that is known. What is not known is None or empty, and checks that need it are not made.

    rows, held_out: a sample. table: how many ids the model has vectors for; classes: how many a classifier tells
    apart; context: the longest row that it reads. fresh: whether the model has not learned anything yet. texts: what
    was read before it became tokens, held_texts of what is held out. answers: whether rows are questions and answers.
    """

    name: str
    kind: Kind
    rows: Sequence[Row] = ()
    held_out: Sequence[Row] = ()
    vocabulary: Vocabulary | None = None
    table: int | None = None
    classes: int | None = None
    context: int | None = None
    fresh: bool | None = None
    texts: Sequence[str] = ()
    held_texts: Sequence[str] = ()
    chats: Sequence[Chat] = ()
    template: Template | None = None
    cuts: Sequence[Cut] = ()
    trial: Trial | None = None

    @property
    def answers(self) -> bool:
        """Whether it learns to answer, so that questions are read only."""
        return bool(self.chats)
