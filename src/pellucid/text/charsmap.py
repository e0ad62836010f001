"""SentencePiece's table of normal forms: a trie of characters in bytes, and what is written in the place of each."""

from __future__ import annotations

import re
import struct
from array import array
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import CheckpointError

_LONGEST_FORM = 256  # bytes that may stand in the place of one character: they multiply texts
_LONGEST_KEY = 64  # characters; a letter in parts has at most four
_MOST_PAIRS = 1 << 16  # of which is remembered whether they begin an entry
_REMEDY = "restore the file from a copy, or get it from another source"


class NormalForms:
    """What a table makes of a text: from left to right, always the longest entry that fits, once.

    Entries of several characters are mostly letters in parts (Unicode's NFD), which become one: 220,267 of them in the
    usual table, where common ends are kept once. So entries are looked up where a text may have them, and never listed.

    The trie is a double array (Aoe 1989, as darts-clone lays it out): the child of a node for a byte lies at the node's
    base xor that byte, and bears the byte as its label. Where a key ends, the unit at the base holds the place of the
    form. Raises CheckpointError for a table that is damaged.
    """

    def __init__(self, table: bytes):
        try:
            (size,) = struct.unpack_from("<I", table)
            units, self._forms = np.frombuffer(table, "<u4", size // 4, 4).astype(np.int64), table[4 + size :]
        except (struct.error, ValueError) as error:
            raise CheckpointError(f"its precompiled_charsmap is damaged: {error}", _REMEDY) from error
        if not self._forms.endswith(b"\0") or max(map(len, self._forms.split(b"\0"))) > _LONGEST_FORM:
            raise CheckpointError("its precompiled_charsmap is damaged: a form has no end", _REMEDY)
        self._units = array("I", units.tolist())
        self._singles = _Singles(self)
        self._pairs: dict[str, bool] = {}

    def __call__(self, text: str) -> str:
        if text.isascii() and not self._joins_ascii:
            return text.translate(self._singles)
        parts, done = list[str](), 0
        for found in self._inside.finditer(text):  # places where a longer entry may have its second character
            start = found.start() - 1
            if start < done or not self._begins(text[start : start + 2]):
                continue
            form, n = self.longest(text[start : start + _LONGEST_KEY])
            if n > 1:
                parts += [text[done:start].translate(self._singles), form]
                done = start + n
        return "".join([*parts, text[done:].translate(self._singles)])

    def longest(self, text: str) -> tuple[str, int]:
        """The form of the longest entry that ``text`` begins with, and of how many characters it is: 0 if of none."""
        base, place, length = self._root, 0, 0
        for n, char in enumerate(text, 1):
            base, ends = self._walk(base, char)
            if base < 0:
                break
            if ends:
                place, length = self._units[base] & 0x7FFFFFFF, n
        return (self._form(place), length) if length else ("", 0)

    @cached_property
    def _inside(self) -> re.Pattern[str]:
        """What may be the second character of an entry."""
        seconds = _second_characters(np.array(self._units, np.int64))
        return re.compile(f"[{seconds}]" if seconds else "(?!)")

    @cached_property
    def _joins_ascii(self) -> bool:
        return self._inside.search("".join(map(chr, range(128)))) is not None

    @property
    def _root(self) -> int:
        return _offset(self._units[0]) if self._units else -1

    def _begins(self, pair: str) -> bool:
        """Whether an entry begins with these two characters."""
        if (known := self._pairs.get(pair)) is None:
            if len(self._pairs) >= _MOST_PAIRS:
                self._pairs.clear()
            base, _ = self._walk(self._root, pair)
            known = self._pairs[pair] = base >= 0
        return known

    def _walk(self, base: int, text: str) -> tuple[int, bool]:
        """The base of the node behind ``text``, -1 where there is none, and whether a key ends there."""
        unit = 0
        for byte in text.encode():
            node = base ^ byte
            if not 0 <= node < len(self._units) or self._units[node] & 0x800000FF != byte:
                return -1, False
            unit = self._units[node]
            base = node ^ _offset(unit)
        return (base, bool(unit & 0x100)) if base < len(self._units) else (-1, False)

    def _form(self, place: int) -> str:
        try:
            return self._forms[place : self._forms.index(b"\0", place)].decode("utf-8")
        except ValueError as error:
            raise CheckpointError(f"its precompiled_charsmap is damaged: no form at {place}", _REMEDY) from error


class _Singles(dict[int, "str | int"]):
    """What single characters become, found out when one is met."""

    def __init__(self, forms: NormalForms):
        super().__init__()
        self._table = forms

    def __missing__(self, code: int) -> str | int:
        form, n = self._table.longest(chr(code))
        self[code] = form if n else code
        return self[code]


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _second_characters(units: NDArray[np.int64]) -> str:
    """Ranges of a regular expression that hold every second character of an entry, by its first byte alone."""
    bases = np.arange(len(units)) ^ ((units >> 10) << ((units & 0x200) >> 6))  # of each node's children
    labels = np.where(units >> 31, 0, units & 0xFF)
    nodes = np.flatnonzero(labels)
    above = nodes ^ labels[nodes]  # the base of each one's parent
    reached, bytes_next = bases[:1], list[NDArray[np.int64]]()
    for _ in range(4):  # a first character has at most so many bytes
        reached = np.unique(bases[nodes[np.isin(above, reached)]])
        bytes_next.append(labels[nodes[np.isin(above, reached)]])
    leads = {byte for byte in np.unique(np.concatenate(bytes_next)).tolist() if byte < 0x80 or byte >= 0xC0}
    return "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in map(_range_of, sorted(leads)))


def _range_of(lead: int) -> tuple[int, int]:
    """The first and last character whose UTF-8 begins with this byte."""
    if lead < 0x80:
        return lead, lead
    bits = 6 if lead < 0xE0 else 12 if lead < 0xF0 else 18
    low = (lead & (0x1F if bits == 6 else 0x0F if bits == 12 else 0x07)) << bits
    return min(low, 0x10FFFF), min(low + (1 << bits) - 1, 0x10FFFF)
