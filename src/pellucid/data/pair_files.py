"""Files of pairs of texts, what is read and what is to be written: tab-separated, JSON lines, or a file a side."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pellucid.data.text_files import lines
from pellucid.errors import DataError
from pellucid.files import parse_json


class Pair(NamedTuple):
    """What is read, and what is to be written."""

    source: str
    target: str


def read_pairs(files: Sequence[str], told: Callable[[str], None] = lambda _: None) -> list[Pair]:
    """Pairs in their order, from files that may be compressed (.gz, .xz, .bz2):

    tab-separated ones, the last two columns of each line; .jsonl, the fields ``source`` and ``target``, or the two
    texts of ``translation``; or two files, line by line, where the first line of neither has a tab.
    Pairs with an empty side are left out, and ``told`` hears how many, and how many have the same text on both sides.
    Raises DataError for a line that holds no pair, two files of unequal length, and where no pair is left.
    """
    sides = list(files) if _are_sides(files) else None
    read = _aligned(sides[0], sides[1]) if sides else itertools.chain.from_iterable(map(_in_file, files))
    stripped = [Pair(pair.source.strip(), pair.target.strip()) for pair in read]
    found = [pair for pair in stripped if all(pair)]
    if not found:
        raise DataError(f"{', '.join(files[:3])} holds no pair", "every line is a source, a tab and a target")
    if len(found) < len(stripped):
        told(f"{len(stripped) - len(found):,} pairs with an empty side are left out")
    if same := sum(pair.source == pair.target for pair in found):
        told(f"{same:,} of {len(found):,} pairs have the same text on both sides")
    return found


def _are_sides(files: Sequence[str]) -> bool:
    """Whether these are the two sides of the pairs, a file each."""
    if len(files) != 2 or any(_is_jsonl(file) for file in files):
        return False
    return not any("\t" in line for file in files for _, line in itertools.islice(lines(file), 1))


def _is_jsonl(file: str) -> bool:
    return ".jsonl" in Path(file).suffixes[-2:]


def _aligned(source: str, target: str) -> Iterator[Pair]:
    for number, pair in enumerate(itertools.zip_longest(lines(source, empty=True), lines(target, empty=True)), start=1):
        if None in pair:
            short, long = (source, target) if pair[0] is None else (target, source)
            raise DataError(
                f"{short} ends before line {number}, but {long} goes on",
                "both need a line for each pair, also empty ones",
            )
        yield Pair(pair[0][1], pair[1][1])


def _in_file(file: str) -> Iterator[Pair]:
    for number, line in lines(file):
        where = f"{file} line {number}"
        if _is_jsonl(file):
            if line.strip():
                yield _of_json(line, where)
            continue
        columns = line.split("\t")
        if len(columns) < 2:
            raise DataError(f"{where} has no tab", "every line is a source, a tab and a target")
        yield Pair(columns[-2], columns[-1])


def _of_json(line: str, where: str) -> Pair:
    """{"source": …, "target": …}, or {"translation": {"en": …, "de": …}} as data sets have it, in this order."""
    value = parse_json(line, where, DataError)
    inner = value.get("translation", value) if isinstance(value, dict) else None
    if isinstance(inner, dict):
        texts = [inner.get("source"), inner.get("target")] if inner is value else list(inner.values())
        said = [text for text in texts if isinstance(text, str)]
        if len(said) == len(texts) == 2:
            return Pair(*said)
    raise DataError(f"{where} holds no pair", 'a line is {"source": "…", "target": "…"}')


def split_pairs(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, validation): about ``fraction`` is held out, drawn by a hash of (seed, source), so that no source of
    the validation pairs is trained on. Raises DataError where nothing is left to train on."""
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(f"{seed}:{pair.source}".encode()).digest()
        parts[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(pair)
    if not parts[0]:
        raise DataError("every pair is held out", "give more pairs, or hold out fewer of them")
    return parts
