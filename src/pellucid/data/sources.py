"""Documents out of whatever a person has: files, folders, globs, JSONL, standard input, Hugging Face datasets."""

from __future__ import annotations

import glob
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pellucid.data.corpus import Corpus
from pellucid.data.text_files import OPENERS, opened, read_text
from pellucid.errors import DataError, suggest
from pellucid.files import nearest


@dataclass(frozen=True)
class Skipped:
    """Something met in a folder, glob or dataset that is not usable text, and why."""

    name: str
    reason: str


def warn_skipped(skipped: Skipped) -> None:
    """The default of ``documents``: a Python warning for each thing that was not read."""
    warnings.warn(f"skipped {skipped.name}: {skipped.reason}", stacklevel=3)


def documents(
    inputs: str | Path | Sequence[str | Path],
    field: str = "text",
    on_skip: Callable[[Skipped], None] = warn_skipped,
    *,
    folder: Path | None = None,
    keep: bool = True,
) -> Corpus:
    """Every document of ``inputs``, always in the same order, copied to the disk in ``folder`` (see ``Corpus``).

    An input is a text file (also .gz, .xz, .bz2), a folder (all files below it but hidden ones, sorted), a glob, a
    .jsonl file (the text is in ``field``), ``-`` for standard input, or
    ``hf://org/name[/config][?split=train&field=text&revision=main&limit=1000]`` for a Hugging Face dataset.
    A line ``<|endoftext|>`` in a text file separates documents; that text anywhere else is ordinary text.
    What is named must be good text: DataError when it is missing, empty, unreadable, binary, damaged or not UTF-8.
    What is merely met in a folder or glob is then handed to ``on_skip`` instead; DataError when nothing is left.
    RunError when the disk cannot take the copy. With ``keep=False`` there is none: the documents are only described.
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
    corpus = Corpus(folder, keep=keep)
    for one in found:
        _read_input(corpus, *one, field, on_skip)
        corpus.inputs.append(len(corpus))
    return corpus


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
    corpus: Corpus, item: str, names: list[str], named: bool, field: str, on_skip: Callable[[Skipped], None]
) -> None:
    skipped: list[Skipped] = []

    def skip(what: Skipped) -> None:
        skipped.append(what)
        on_skip(what)

    before = len(corpus)
    for name in names:
        if named:
            _read_one(corpus, name, field, skip)
        else:
            _read_met(corpus, name, field, skip)
    if len(corpus) == before:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        what = f"no text ({reasons}{more})" if skipped else "no files"
        raise DataError(f"{item} holds {what}", "name a file, folder or glob that holds plain text")


def _read_met(corpus: Corpus, name: str, field: str, skip: Callable[[Skipped], None]) -> None:
    """All documents of a file that nobody named, or none of them and a reason."""
    mark = corpus.mark()
    try:
        if not Path(name).is_file():  # a pipe would be waited for, for ever
            raise DataError(f"{name} is not a regular file")
        _read_one(corpus, name, field, skip)
    except DataError as error:
        corpus.rollback(mark)
        skip(Skipped(name, error.problem.removeprefix(name).lstrip(": ")))


def _read_one(corpus: Corpus, name: str, field: str, skip: Callable[[Skipped], None]) -> None:
    path = Path(name)
    inner = Path(path.stem) if path.suffix in OPENERS else path
    if name.startswith("hf://"):
        _read_rows(corpus, name, _dataset_rows(name, field), skip)
    elif inner.suffix in (".jsonl", ".ndjson"):
        _read_rows(corpus, name, _jsonl_rows(name, field), skip)
    else:
        read_text(corpus, name)


def _read_rows(
    corpus: Corpus, name: str, rows: Iterator[tuple[str, int, str]], skip: Callable[[Skipped], None]
) -> None:
    """Rows (source, number, text), one document each. Rows without text are common: left out, counted, told once."""
    empty = 0
    for source, number, text in rows:
        corpus.begin(source, number)
        corpus.write(text)
        empty += not corpus.end()
    if empty:
        skip(Skipped(name, f"{empty} rows without text"))


def _jsonl_rows(name: str, field: str) -> Iterator[tuple[str, int, str]]:
    with opened(name) as stream:
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
            yield name, number, _field_of(row, field, where)


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


def _dataset_rows(url: str, field: str) -> Iterator[tuple[str, int, str]]:
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
            source = f"hf://{where}?split={options['split']}"
            yield source, number, _field_of(row, options["field"], f"{source}#{number}")
    except DataError:
        raise
    except Exception as error:  # the library, the hub and the network raise dozens of kinds; all are the data's
        raise DataError(
            f"{url} cannot be read: {error}", "check name, config, split and network (and HF_TOKEN)"
        ) from error
