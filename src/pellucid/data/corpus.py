"""Documents in memory or on the disk. A corpus may be far larger than memory: only blocks of it are ever held."""

from __future__ import annotations

import codecs
import hashlib
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, overload

from pellucid.files import explain_os_errors

BLOCK = 1 << 20  # bytes read at once
_UNNUMBERED = -1


class Place(NamedTuple):
    """A place in a document, counted in characters and in UTF-8 bytes from its beginning."""

    characters: int
    bytes: int


@dataclass(frozen=True)
class Document:
    """One text that begins and ends by itself: nothing in it may see, or be seen by, another document."""

    name: str
    text: str

    @property
    def n_characters(self) -> int:
        """Length in characters."""
        return len(self.text)

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes, the unit in which models of different vocabularies are compared."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    @property
    def digest(self) -> str:
        """sha256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def blocks(self) -> Iterator[str]:
        """The text, in parts of any length."""
        yield self.text

    def part(self, start: Place, stop: Place) -> Document:
        """The text from ``start`` to ``stop``, a document of its own."""
        a, b = start.characters, stop.characters
        return Document(f"{self.name}[{a}:{b}]", self.text[a:b])


class _Copy:
    """The file that a corpus and its passages share; it is closed, and so vanishes, with the last of them."""

    def __init__(self, folder: Path):
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - see above

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be opened
            self.file.close()


@dataclass(frozen=True)
class Passage:
    """A document of a corpus on the disk, or a part of one. It is read anew, block by block, whenever it is asked for.

    digest: sha256 of the text of a whole document; of a part, sha256 of the document's digest and the part's place.
    """

    name: str
    n_characters: int
    n_bytes: int
    digest: str
    _copy: _Copy | None
    _start: int

    @property
    def text(self) -> str:
        """All of it at once."""
        return "".join(self.blocks())

    def blocks(self) -> Iterator[str]:
        """The text, in parts of about ``BLOCK`` bytes."""
        assert self._copy is not None, "documents that were only described cannot be read"
        file, decoder = self._copy.file, codecs.getincrementaldecoder("utf-8")()
        at, stop = self._start, self._start + self.n_bytes
        while at < stop:
            file.seek(at)  # each time: others may have read elsewhere meanwhile
            data = file.read(min(BLOCK, stop - at))
            at += len(data)
            yield decoder.decode(data)

    def part(self, start: Place, stop: Place) -> Passage:
        """The text from ``start`` to ``stop``, a document of its own."""
        place = f"[{start.characters}:{stop.characters}]"
        digest = hashlib.sha256(f"{self.digest}{place}".encode()).hexdigest()
        length = stop.characters - start.characters, stop.bytes - start.bytes
        return Passage(f"{self.name}{place}", *length, digest, self._copy, self._start + start.bytes)


Text = Document | Passage


class Corpus(Sequence[Passage]):
    """Documents in one unnamed file that vanishes with the process; in memory are some sixty bytes for each.

    Whoever reads sources writes here: ``begin``, ``write`` …, ``end`` for each document; ``rollback`` undoes what came
    after a ``mark``. With ``keep=False`` documents are counted and hashed, but cannot be read again.
    """

    def __init__(self, folder: Path | None = None, *, keep: bool = True):
        """folder: where the disk has room for the text (None: the system's place for temporary files)."""
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._copy: _Copy | None = None
        if keep:
            with explain_os_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._copy = _Copy(self._folder)
        self.inputs: list[int] = []  # how many documents there were after each thing that was named
        self._sources: list[str] = []
        self._source, self._number = array("q"), array("q")
        self._characters, self._stops = array("q"), array("q")
        self._digests = bytearray()
        self._hash = hashlib.sha256()
        self._open_characters = self._open_bytes = 0
        self._blank = True

    def begin(self, source: str, number: int | None = None) -> None:
        """A document begins; its name is ``source``, or ``source#number``."""
        if not self._sources or self._sources[-1] != source:
            self._sources.append(source)
        self._source.append(len(self._sources) - 1)
        self._number.append(_UNNUMBERED if number is None else number)
        self._hash = hashlib.sha256()
        self._open_characters, self._open_bytes, self._blank = 0, self._end(), True

    def write(self, text: str) -> None:
        """More text of the document that was begun last."""
        data = text.encode()
        if self._copy is not None:
            with explain_os_errors(self._folder):
                self._copy.file.write(data)
        self._hash.update(data)
        self._open_characters += len(text)
        self._open_bytes += len(data)
        self._blank = self._blank and (not text or text.isspace())

    def end(self) -> bool:
        """The document is whole. One that is empty or white space is dropped again: then the answer is False."""
        if self._blank:
            self.rollback(len(self))
            return False
        self._characters.append(self._open_characters)
        self._stops.append(self._open_bytes)
        self._digests += self._hash.digest()
        return True

    def mark(self) -> int:
        """Where ``rollback`` can go back to."""
        return len(self)

    def rollback(self, mark: int) -> None:
        """Forget every document since ``mark``."""
        for column in (self._source, self._number, self._characters, self._stops):
            del column[mark:]
        del self._digests[32 * mark :]
        if self._copy is not None:
            with explain_os_errors(self._folder):
                self._copy.file.seek(self._end())
                self._copy.file.truncate()

    def unnumber(self) -> None:
        """The last document is the only one of its source: its name needs no number."""
        self._number[-1] = _UNNUMBERED

    def _end(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __len__(self) -> int:
        return len(self._stops)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | Sequence[Passage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        name, number = self._sources[self._source[at]], self._number[at]
        start = self._stops[at - 1] if at else 0
        return Passage(
            name if number == _UNNUMBERED else f"{name}#{number}",
            self._characters[at],
            self._stops[at] - start,
            self._digests[32 * at : 32 * at + 32].hex(),
            self._copy,
            start,
        )


def fingerprint(documents: Sequence[Text]) -> str:
    """sha256 over the names and contents of all documents, in their order."""
    running = hashlib.sha256()
    for document in documents:
        name = document.name.encode(errors="surrogateescape")
        running.update(f"{len(name)} {document.n_bytes} {document.digest} ".encode() + name)
    return running.hexdigest()
