"""Which documents a model never trains on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath

from pellucid.data.sources import Document
from pellucid.errors import DataError, UsageError, suggest

_PARTS = 8  # a document too long to be held out whole is held out in about this many places, to be representative


@dataclass(frozen=True)
class _Unit:
    """What is held out or not as a whole: characters start…stop of one document."""

    document: int
    start: int
    stop: int
    key: str  # its place in the lottery; equal for equal documents, so that no copy of a held-out text is trained on


def split(
    documents: Sequence[Document], fraction: float = 0.05, seed: int = 0, held_out: Collection[str] = ()
) -> tuple[list[Document], list[Document]]:
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
    contents = [hashlib.sha256(document.text.encode()).hexdigest() for document in documents]
    if held_out:
        return _split_by_name(documents, contents, held_out)
    if fraction == 0:
        return list(documents), []
    units = _units(documents, contents, fraction, seed)
    drawn = _draw(units, fraction * sum(len(document.text) for document in documents))
    training: list[Document] = []
    validation: list[Document] = []
    for (number, is_drawn), run in groupby(units, key=lambda unit: (unit.document, unit.key in drawn)):
        document, of_run = documents[number], list(run)
        start, stop = of_run[0].start, of_run[-1].stop
        whole = stop - start == len(document.text)
        part = document if whole else Document(f"{document.name}[{start}:{stop}]", document.text[start:stop])
        (validation if is_drawn else training).append(part)
    if not training:
        raise DataError("the text is too short to hold a part of it out", "give more text, or hold out nothing")
    return training, validation


def _units(documents: Sequence[Document], contents: list[str], fraction: float, seed: int) -> list[_Unit]:
    copies = Counter(contents)
    target = fraction * sum(len(document.text) for document in documents)
    units: list[_Unit] = []
    for number, (document, content) in enumerate(zip(documents, contents, strict=True)):
        if len(document.text) * copies[content] > target:
            places = _cuts(document.text, max(1, round(target / _PARTS / copies[content])))
        else:
            places = iter([len(document.text)])
        start = 0
        for stop in places:
            key = hashlib.sha256(f"{seed}:{content}:{start}".encode()).hexdigest()
            units.append(_Unit(number, start, stop, key))
            start = stop
    return units


def _cuts(text: str, size: int) -> Iterator[int]:
    """Ends of pieces of about ``size`` characters: after a blank line, else a line, else a space, else anywhere."""
    start = 0
    while len(text) - start > size + size // 2:
        nominal = start + size
        for mark in ("\n\n", "\n", " "):
            found = text.rfind(mark, start + size // 2, nominal)
            if found >= 0:
                nominal = found + len(mark)
                break
        yield nominal
        start = nominal
    yield len(text)


def _draw(units: list[_Unit], target: float) -> set[str]:
    """Keys in order, until what they stand for is at least ``target`` characters."""
    length: Counter[str] = Counter()
    for unit in units:
        length[unit.key] += unit.stop - unit.start
    drawn: set[str] = set()
    held = 0
    for key in sorted(length):
        if held >= target:
            break
        drawn.add(key)
        held += length[key]
    return drawn


def _split_by_name(
    documents: Sequence[Document], contents: list[str], held_out: Collection[str]
) -> tuple[list[Document], list[Document]]:
    named: set[str] = set()
    for wanted in [held_out] if isinstance(held_out, str) else held_out:
        matches = {
            content for document, content in zip(documents, contents, strict=True) if _is_named(document.name, wanted)
        }
        if not matches:
            close = suggest(wanted, (document.name for document in documents[:1000]))
            raise DataError(f"no document is named {wanted!r}, so it cannot be held out", close)
        named |= matches
    sides = [(document, content in named) for document, content in zip(documents, contents, strict=True)]
    training = [document for document, is_named in sides if not is_named]
    if not training:
        raise DataError("every document is held out", "leave at least one to train on")
    return training, [document for document, is_named in sides if is_named]


def _is_named(name: str, wanted: str) -> bool:
    """``name``, or the source that ``name`` is a numbered part of (``book.txt#3``), is or ends with ``wanted``."""
    return any(name == wanted or PurePath(name).match(wanted) for name in (name, name.partition("#")[0]))
