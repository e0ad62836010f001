"""Documents out of whatever a person has: files, folders, globs, JSONL, standard input, Hugging Face datasets."""

from __future__ import annotations

import bz2
import glob
import gzip
import itertools
import json
import lzma
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, urlsplit

from pellucid.errors import DataError, suggest
from pellucid.files import nearest

SEPARATOR = "<|endoftext|>"  # alone on a line of a text file, it ends one document and begins the next
_SEPARATOR_LINE = re.compile(r"^" + re.escape(SEPARATOR) + r"[ \t\r]*(?:\n|\Z)", re.MULTILINE)
_OPENERS: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_HEAD = 1 << 16  # bytes looked at before a file is read whole, so that a huge binary is refused at once


@dataclass(frozen=True)
class Document:
    """One text that begins and ends by itself: nothing in it may see, or be seen by, another document."""

    name: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes, the unit in which models of different vocabularies are compared."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


@dataclass(frozen=True)
class Skipped:
    """Something met in a folder, glob or dataset that is not usable text, and why."""

    name: str
    reason: str


def warn_skipped(skipped: Skipped) -> None:
    """The default of ``documents``: a Python warning for each thing that was not read."""
    warnings.warn(f"skipped {skipped.name}: {skipped.reason}", stacklevel=3)


def documents(
    inputs: str | Path | Sequence[str | Path], field: str = "text", on_skip: Callable[[Skipped], None] = warn_skipped
) -> Iterator[Document]:
    """Every document of ``inputs``, always in the same order.

    An input is a text file (also .gz, .xz, .bz2), a folder (all files below it but hidden ones, sorted), a glob, a
    .jsonl file (the text is in ``field``), ``-`` for standard input, or
    ``hf://org/name[/config][?split=train&field=text&revision=main&limit=1000]`` for a Hugging Face dataset.
    A line ``<|endoftext|>`` in a text file separates documents; that text anywhere else is ordinary text.
    What is named must be good text: DataError when it is missing, empty, unreadable, binary, damaged or not UTF-8.
    What is merely met in a folder or glob is then handed to ``on_skip`` instead; DataError when nothing is left.
    """
    items = [str(item) for item in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    if not items:
        raise DataError("no text was named", "name at least one file, folder, glob, '-' or hf://org/name")
    # Found before anything is read: a misspelt fifth name should not be reported after an hour of reading four.
    found: list[tuple[str, list[str], bool]] = []
    for item in items:
        try:
            found.append((item, *_find(item, on_skip)))
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise DataError(f"{item[:200]} cannot be read: {error.strerror}", "check the path") from error
    return itertools.chain.from_iterable(_read_input(*one, field, on_skip) for one in found)


def _find(item: str, on_skip: Callable[[Skipped], None]) -> tuple[list[str], bool]:
    """What one input stands for, and whether it was named itself (and so has to be good)."""
    path = Path(item)
    if item == "-" or item.startswith("hf://"):
        return [item], True
    if path.is_dir():
        return list(_walk(path, on_skip)), False
    if path.exists():
        return [str(path)], True
    if glob.has_magic(item):
        matches = [Path(match) for match in sorted(glob.glob(item, recursive=True))]
        if not matches:
            raise DataError(f"{item} matches no file", "check the pattern; quote it so that the shell leaves it alone")
        files = (list(_walk(match, on_skip)) if match.is_dir() else [str(match)] for match in matches)
        return list(dict.fromkeys(itertools.chain.from_iterable(files))), False  # ** matches a folder and its files
    raise DataError(f"{item} does not exist", _nearest(path))


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"neither does the folder {path.parent}: check the path"
    near = nearest(path)
    return f"check the name; looked in {path.parent.resolve()}" if near is None else f"did you mean {str(near)!r}?"


def _walk(folder: Path, on_skip: Callable[[Skipped], None]) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        on_skip(Skipped(str(error.filename), error.strerror or "unreadable"))

    def visible(names: list[str]) -> list[str]:
        return sorted(name for name in names if not name.startswith(".") and name != "__pycache__")

    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = visible(folders)
        yield from (str(Path(root, name)) for name in visible(files))


def _read_input(
    item: str, names: list[str], named: bool, field: str, on_skip: Callable[[Skipped], None]
) -> Iterator[Document]:
    skipped: list[Skipped] = []

    def skip(what: Skipped) -> None:
        skipped.append(what)
        on_skip(what)

    read = 0
    for name in names:
        for document in _read_one(name, field, skip) if named else _read_met(name, field, skip):
            read += 1
            yield document
    if read == 0:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        what = f"no text ({reasons}{more})" if skipped else "no files"
        raise DataError(f"{item} holds {what}", "name a file, folder or glob that holds plain text")


def _read_met(name: str, field: str, skip: Callable[[Skipped], None]) -> list[Document]:
    """All documents of a file that nobody named, or none of them and a reason."""
    try:
        if not Path(name).is_file():  # a pipe would be waited for, for ever
            raise DataError(f"{name} is not a regular file")
        return list(_read_one(name, field, skip))
    except DataError as error:
        skip(Skipped(name, error.problem.removeprefix(name).lstrip(": ")))
        return []


def _read_one(name: str, field: str, skip: Callable[[Skipped], None]) -> Iterator[Document]:
    if name.startswith("hf://"):
        return _nonempty(name, _dataset_rows(name, field), skip)
    path = Path(name)
    inner = Path(path.stem) if path.suffix in _OPENERS else path
    if inner.suffix in (".jsonl", ".ndjson"):
        return _nonempty(name, _jsonl_rows(name, field), skip)
    return _text_documents(name)


def _nonempty(name: str, rows: Iterator[Document], skip: Callable[[Skipped], None]) -> Iterator[Document]:
    """Rows without text are common in datasets: left out, counted, and told once."""
    empty = 0
    for document in rows:
        if document.text.strip():
            yield document
        else:
            empty += 1
    if empty:
        skip(Skipped(name, f"{empty} rows without text"))


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed by its suffix; what goes wrong while reading becomes a DataError."""
    opener = _OPENERS.get(Path(name).suffix)
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


def _text_documents(name: str) -> Iterator[Document]:
    with _opened(name) as stream:
        name = "standard input" if name == "-" else name
        data = stream.read(_HEAD)
        _refuse_binary(name, data)
        data += stream.read()
    _refuse_binary(name, data)
    text = _decode(name, data)
    del data
    shown = Path(name).as_posix()
    if not text.strip():
        raise DataError(f"{name} is empty", "name a file that holds text")
    parts = [part for part in _SEPARATOR_LINE.split(text) if part.strip()]
    if not parts:
        raise DataError(f"{name} holds nothing but separators", "name a file that holds text")
    if len(parts) == 1:
        return iter([Document(shown, parts[0])])
    return (Document(f"{shown}#{number}", part) for number, part in enumerate(parts, 1))


def _refuse_binary(name: str, data: bytes) -> None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name} is UTF-16 text", f"convert it: iconv -f UTF-16 -t UTF-8 '{name}' > text.txt")
    if (at := data.find(b"\0")) >= 0:
        remedy = "name plain text (also .gz, .xz, .bz2, .jsonl); other formats have to be converted to text first"
        raise DataError(f"{name} is binary, not text: byte {at} is NUL", remedy)


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}",
            f"convert it from the encoding it is in, e.g. iconv -f ISO-8859-1 -t UTF-8 '{name}' > text.txt",
        ) from error


def _jsonl_rows(name: str, field: str) -> Iterator[Document]:
    with _opened(name) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{name}#{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{name} line {number} is not JSON: {error}", "every line has to be one object"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{name} line {number} is a {type(row).__name__}", "every line has to be one object")
            yield Document(where, _field_of(row, field, where))


def _field_of(row: Mapping[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise DataError(f"{where} has no field {field!r}", suggest(field, row) if row else "the row is empty")
    text = "" if row[field] is None else row[field]
    if not isinstance(text, str):
        raise DataError(f"{where} field {field!r} holds {type(text).__name__}, not text", "choose another field")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} field {field!r} has an unpaired surrogate at {error.start}", "repair the row"
        ) from error
    return text


def _dataset_rows(url: str, field: str) -> Iterator[Document]:
    """Rows of ``hf://org/name[/config][?split=…&field=…&revision=…&limit=…]``, streamed, never downloaded whole."""
    parts = urlsplit(url)
    path = [part for part in (parts.netloc + parts.path).split("/") if part]
    options = {"split": "train", "field": field, "revision": "main", "limit": ""}
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for key in given:
        if key not in options:
            raise DataError(f"{url}: unknown option {key!r}", suggest(key, options))
    options |= given
    if len(path) not in (2, 3):
        raise DataError(f"{url} does not name a dataset", "write hf://org/name or hf://org/name/config")
    if options["limit"] and not options["limit"].isdecimal():
        raise DataError(f"{url}: limit={options['limit']!r} is not a number of rows", "e.g. limit=10000")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"{url} needs the 'datasets' library", "pip install 'pellucid[hf]'") from error
    where = "/".join(path)
    try:
        rows = load_dataset(
            "/".join(path[:2]), *path[2:], split=options["split"], revision=options["revision"], streaming=True
        )
        for number, row in enumerate(itertools.islice(rows, int(options["limit"]) if options["limit"] else None)):
            name = f"hf://{where}?split={options['split']}#{number}"
            yield Document(name, _field_of(row, options["field"], name))
    except DataError:
        raise
    except Exception as error:  # the library, the hub and the network raise dozens of kinds; all are the data's
        raise DataError(
            f"{url} cannot be read: {error}", "check name, config, split and network (and HF_TOKEN)"
        ) from error
