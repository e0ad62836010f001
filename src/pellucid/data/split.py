"""Which documents a model never trains on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import overload

import numpy as np

from pellucid.data.corpus import Place, Text
from pellucid.errors import DataError, UsageError, suggest

_PARTS = 8  # a document too long to be held out whole is held out in about this many places, to be representative


class Selection(Sequence[Text]):
    """Some documents of a longer sequence, and parts of documents, each made when it is asked for."""

    def __init__(self, documents: Sequence[Text]):
        self._documents = documents
        self._rows = array("q")  # document, begin and end: five numbers each

    def add(self, document: int, start: Place, stop: Place) -> None:
        """Document number ``document``, from ``start`` to ``stop``."""
        self._rows.extend((document, *start, *stop))

    @staticmethod
    def whole(documents: Sequence[Text], numbers: Iterable[int]) -> Selection:
        """The documents of these numbers."""
        found = Selection(documents)
        for number in numbers:
            found.add(number, Place(0, 0), Place(documents[number].n_characters, documents[number].n_bytes))
        return found

    def __len__(self) -> int:
        return len(self._rows) // 5

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Text]: ...
    def __getitem__(self, index: int | slice) -> Text | Sequence[Text]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        number, *places = self._rows[5 * at : 5 * at + 5]
        start, stop = Place(*places[:2]), Place(*places[2:])
        document = self._documents[number]
        return document if stop.characters - start.characters == document.n_characters else document.part(start, stop)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def split(
    documents: Sequence[Text], fraction: float = 0.05, seed: int = 0, held_out: Collection[str] = ()
) -> tuple[Sequence[Text], Sequence[Text]]:
    """(training, validation) documents: about ``fraction`` of the text, or exactly what ``held_out`` names.

    Whole documents are drawn by a hash of (seed, content) until ``fraction`` of the characters is held out. Only a
    document longer than all that should be held out is cut, at line ends, into contiguous pieces (each an eighth of
    the validation text); pieces that stay together on one side are one document again, named ``name[start:stop]``.
    ``held_out`` takes names, the last parts of names, or patterns: ``json/decoder.py``, ``test_*.py``.
    Equal documents are always on the same side. Raises DataError when either side would be empty.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"fraction={fraction} of the text cannot be held out", "choose one from 0 up to 1, e.g. 0.05")
    if not documents:
        raise DataError("there is no document to split", "name at least one text")
    if held_out:
        return _split_by_name(documents, held_out)
    if fraction == 0:
        return documents, []
    units = _Units.of(documents, fraction, seed)
    training, validation = Selection(documents), Selection(documents)
    drawn = units.drawn()
    begin = Place(0, 0)
    for i, (number, stop, is_drawn) in enumerate(zip(units.documents, units.stops(), drawn, strict=True)):
        last = i + 1 == len(drawn)
        if not last and units.documents[i + 1] == number and drawn[i + 1] == is_drawn:
            continue  # the next piece of the same document stays with this one
        (validation if is_drawn else training).add(number, begin, stop)
        begin = stop if not last and units.documents[i + 1] == number else Place(0, 0)
    if not training:
        raise DataError("the text is too short to hold a part of it out", "give more text, or hold out nothing")
    return training, validation


@dataclass(frozen=True)
class _Units:
    """What is held out or not as a whole: each is a document, or a piece of one. Columns of numbers, one row a unit.

    keys: their places in the lottery, the first 8 bytes of a sha256. Equal documents have equal keys, so that no copy
    of a held-out text is trained on. characters, bytes: where a unit ends in its document.
    """

    target: float
    documents: array[int]
    characters: array[int]
    bytes: array[int]
    lengths: array[int]
    keys: array[int]

    @staticmethod
    def of(documents: Sequence[Text], fraction: float, seed: int) -> _Units:
        digests, lengths = array("Q"), array("q")
        for document in documents:
            digests.append(int(document.digest[:16], 16))
            lengths.append(document.n_characters)
        _, which, counts = np.unique(np.array(digests), return_inverse=True, return_counts=True)
        target = fraction * sum(lengths)
        units = _Units(target, array("q"), array("q"), array("q"), array("q"), array("Q"))
        for number, document in enumerate(documents):
            copies = int(counts[which[number]])
            places = iter([Place(document.n_characters, document.n_bytes)])
            if document.n_characters * copies > target:
                places = _cuts(document, max(1, round(target / _PARTS / copies)))
            start = 0
            for stop in places:
                key = hashlib.sha256(f"{seed}:{document.digest}:{start}".encode()).digest()
                units.documents.append(number)
                units.characters.append(stop.characters)
                units.bytes.append(stop.bytes)
                units.lengths.append(stop.characters - start)
                units.keys.append(int.from_bytes(key[:8], "big"))
                start = stop.characters
        return units

    def stops(self) -> Iterator[Place]:
        """Where each unit ends in its document."""
        return map(Place, self.characters, self.bytes)

    def drawn(self) -> list[bool]:
        """Which units are held out: those of the lowest keys, until they are at least ``target`` characters."""
        _, which = np.unique(np.array(self.keys), return_inverse=True)  # numbered from the lowest key
        lengths = np.zeros(which.max() + 1, dtype=np.int64)
        np.add.at(lengths, which, np.array(self.lengths))
        before = lengths.cumsum() - lengths
        return (before < self.target)[which].tolist()


def _cuts(document: Text, size: int) -> Iterator[Place]:
    """Ends of pieces of about ``size`` characters: after a blank line, else a line, else a space, else anywhere."""
    ahead = _Ahead(document)
    left = document.n_characters
    while left > size + size // 2:
        step = ahead.last_mark(size // 2, size)
        yield ahead.advance(step)
        left -= step
    yield Place(document.n_characters, document.n_bytes)


class _Ahead:
    """A document that is read once, from its beginning to its end."""

    def __init__(self, document: Text):
        self._blocks = document.blocks()
        self._text = ""
        self._at = Place(0, 0)

    def _need(self, characters: int) -> None:
        parts, length = [self._text], len(self._text)
        while length < characters and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            length += len(block)
        self._text = "".join(parts)

    def last_mark(self, first: int, last: int) -> int:
        """Where the best place to cut is, between ``first`` and ``last`` characters from here; ``last`` if none is."""
        self._need(last)
        for mark in ("\n\n", "\n", " "):
            if (found := self._text.rfind(mark, first, last)) >= 0:
                return found + len(mark)
        return last

    def advance(self, step: int) -> Place:
        """Go on by ``step`` characters, and say where that is."""
        self._at = Place(self._at.characters + step, self._at.bytes + len(self._text[:step].encode()))
        self._text = self._text[step:]
        return self._at


def _split_by_name(documents: Sequence[Text], held_out: Collection[str]) -> tuple[Sequence[Text], Sequence[Text]]:
    named: set[str] = set()
    for wanted in [held_out] if isinstance(held_out, str) else held_out:
        matches = {document.digest for document in documents if _is_named(document.name, wanted)}
        if not matches:
            close = suggest(wanted, (document.name for document in documents[:1000]))
            raise DataError(f"no document is named {wanted!r}, so it cannot be held out", close)
        named |= matches
    training, validation = Selection(documents), Selection(documents)
    for number, document in enumerate(documents):
        side = validation if document.digest in named else training
        side.add(number, Place(0, 0), Place(document.n_characters, document.n_bytes))
    if not training:
        raise DataError("every document is held out", "leave at least one to train on")
    return training, validation


def _is_named(name: str, wanted: str) -> bool:
    """``name``, or the source that ``name`` is a numbered part of (``book.txt#3``), is or ends with ``wanted``."""
    return any(name == wanted or PurePath(name).match(wanted) for name in (name, name.partition("#")[0]))
