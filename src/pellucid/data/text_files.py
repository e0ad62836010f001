"""Text files, block by block: decompressed, decoded, and cut into documents where a line says so."""

from __future__ import annotations

import bz2
import codecs
import gzip
import itertools
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pellucid.data.corpus import BLOCK, Corpus
from pellucid.errors import DataError

SEPARATOR = "<|endoftext|>"  # alone on a line of a text file, it ends one document and begins the next
_SEPARATOR_LINE = re.compile(r"^" + re.escape(SEPARATOR) + r"[ \t\r]*(?:\n|\Z)", re.MULTILINE)
_MAYBE_SEPARATOR = re.compile(
    "|".join(re.escape(SEPARATOR[:n]) for n in range(len(SEPARATOR))) + "|" + re.escape(SEPARATOR) + r"[ \t\r]*"
)  # what the end of a block may be of such a line
OPENERS: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_HEAD = 1 << 16  # bytes looked at first, so that a huge binary is refused at once


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed by its suffix; what goes wrong while reading becomes a DataError."""
    opener = OPENERS.get(Path(name).suffix)
    try:
        if name == "-":
            yield sys.stdin.buffer
        else:
            with opener(name) if opener else open(name, "rb") as stream:
                yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(name, error) from error
    except OSError as error:
        if error.errno is None:  # bz2 reports damage so
            raise _damaged(name, error) from error
        raise DataError(f"{name} cannot be read: {os.strerror(error.errno)}", "check the file's permissions") from error


def _damaged(name: str, error: Exception) -> DataError:
    kind = Path(name).suffix.lstrip(".")
    return DataError(f"{name} is damaged, or is no {kind} file: {error}", "fetch or compress it again")


def read_text(corpus: Corpus, name: str) -> None:
    """The documents of a text file, numbered from 1 where there are several. No more than a block is held in memory."""
    with opened(name) as stream:
        name = "standard input" if name == "-" else name
        shown = Path(name).as_posix()
        number, separated = 1, False
        corpus.begin(shown, number)
        for part in _parts(_decoded(name, stream.read)):
            if part is None:
                number += corpus.end()
                corpus.begin(shown, number)
                separated = True
            else:
                corpus.write(part)
        number += corpus.end()
    if number == 1:
        what = "holds nothing but separators" if separated else "is empty"
        raise DataError(f"{name} {what}", "name a file that holds text")
    if number == 2:
        corpus.unnumber()


def _parts(blocks: Iterator[str]) -> Iterator[str | None]:
    """The text of ``blocks`` without lines that only separate; None stands for each of those."""
    held, inside = "", False  # the beginning of what may become such a line; whether a line was cut that will not
    for block in itertools.chain(blocks, [None]):
        text = held + (block or "")
        held = ""
        if inside:  # up to the next line
            stop = text.find("\n") + 1 or len(text)
            yield text[:stop]
            inside = not text[:stop].endswith("\n")
            text = text[stop:]
        if block is not None:
            last = text.rfind("\n") + 1
            if _MAYBE_SEPARATOR.fullmatch(text, last):
                text, held = text[:last], text[last:]
            else:
                inside = True
        first, *rest = _SEPARATOR_LINE.split(text)
        yield first
        for part in rest:
            yield None
            yield part


def _decoded(name: str, read: Callable[[int], bytes]) -> Iterator[str]:
    """The text of a file, block by block. Raises DataError for what is binary or not UTF-8, and says where."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    size, done, lines = _HEAD, 0, 0
    while True:
        data = read(size)
        if done == 0 and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{name} is UTF-16 text", f"convert it: iconv -f UTF-16 -t UTF-8 '{name}' > text.txt")
        if (at := data.find(b"\0")) >= 0:
            remedy = "name plain text (also .gz, .xz, .bz2, .jsonl); other formats have to be converted to text first"
            raise DataError(f"{name} is binary, not text: byte {done + at} is NUL", remedy)
        pending = len(decoder.getstate()[0])  # bytes of a character that the last block cut
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            raise DataError(
                f"{name} is not UTF-8: byte {done - pending + error.start} (line {lines + before.count(10) + 1}) "
                f"is 0x{error.object[error.start]:02x}",
                f"convert it from the encoding it is in, e.g. iconv -f ISO-8859-1 -t UTF-8 '{name}' > text.txt",
            ) from error
        yield text.removeprefix("\ufeff") if done == 0 else text
        if not data:
            return
        done, lines, size = done + len(data), lines + data.count(b"\n"), BLOCK


def lines(name: str, empty: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a text file, with their numbers from 1; ``empty``: those without text, too.

    Raises DataError for what is no text.
    """
    with opened(name) as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{name} line {number} is not UTF-8", "convert it, e.g. with iconv") from error
            if empty or text.strip():
                yield number, text
