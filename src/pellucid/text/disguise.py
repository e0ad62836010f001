"""What people typed, in a form that no part of can be taken for a special token while a chat template composes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from pellucid.errors import DataError

REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which it is passed; templates read the first
_WRITTEN = {"content", "text", *REASONING}  # keys of what people and models wrote, which templates compose
_MAX_WORK = 1 << 24  # characters of all beginnings and ends of special tokens; 65,536 speech tokens have 9 million
_OTHER = "use `pellucid generate`, or a copy of the vocabulary that its maker has published"
_PRIVATE = range(0xE000, 0xF900)  # characters that Unicode gives no meaning


class _Words:
    """The special tokens' written forms, and how each is found: whole, begun, ended."""

    def __init__(self, special: tuple[str, ...]):
        self.words = frozenset(word for word in special if word.strip())
        if sum(len(word) ** 2 for word in self.words) > _MAX_WORK:
            size = max(map(len, self.words))
            raise DataError(f"{len(self.words):,} special tokens of up to {size:,} characters are too many", _OTHER)
        self.folded = frozenset(word.casefold() for word in self.words)
        # some vocabularies have thousands: a text is looked at only where one may begin, once for each of their sizes
        self._sizes = sorted(set(map(len, self.words)), reverse=True)
        first = "".join(sorted({word[0] for word in self.words}))
        self._first = re.compile(f"[{re.escape(first)}]" if first else "(?!)", re.IGNORECASE)
        self.beginnings = tuple({word[:n].rstrip() for word in self.folded for n in range(1, len(word))} - {""})
        self.endings = tuple({word[n:].lstrip() for word in self.folded for n in range(1, len(word))} - {""})

    def spelled(self, text: str, exactly: bool = False) -> Iterator[tuple[int, str]]:
        """The longest word at each place of ``text``, overlaps too; cases are one, unless ``exactly``."""
        words, form = (self.words, str) if exactly else (self.folded, str.casefold)
        for place in (match.start() for match in self._first.finditer(text)):
            parts = (text[place : place + size] for size in self._sizes)
            if (word := next((part for part in parts if form(part) in words), None)) is not None:
                yield place, word

    def split(self, text: str) -> tuple[list[str], list[str]]:
        """What stands around the words of ``text``, one part more than words, and the words."""
        between, words, end = list[str](), list[str](), 0
        for place, word in self.spelled(text, exactly=True):
            if place >= end:
                between.append(text[end:place])
                words.append(word)
                end = place + len(word)
        return [*between, text[end:]], words


_words = lru_cache(maxsize=4)(_Words)


class Spoken(str):
    """What a model said, with the special tokens that it wrote itself spelled out, at the places ``own``."""

    own: frozenset[int] = frozenset()

    @staticmethod
    def of(parts: Iterable[tuple[bytes, bool]]) -> Spoken:
        """The text of its tokens, each with whether it is a special token that is to stay one."""
        data, own = b"", set[int]()
        for piece, special in parts:
            if special:
                own.add(len(data.decode("utf-8", "replace")))
            data += piece
        said = Spoken(data.decode("utf-8", "replace"))
        said.own = frozenset(own)
        return said


class Disguise:
    """What people wrote, in a form that no part of can be taken for a special token, and back.

    Wherever a special token is written out, or its beginning or end stands where a template may complete it, one
    character is replaced by a private one that nobody used. Spaces stay, so that templates can trim; upper and lower
    case count as one, so that they can change it.
    """

    def __init__(self, special: Iterable[str], used: str):
        self.words = _words(tuple(special))
        self._free = (chr(code) for code in _PRIVATE if chr(code) not in used and f"\\u{code:04x}" not in used)
        self._mask_of: dict[str, str] = {}
        self._typed: set[str] = set()

    def spare(self) -> str:
        """A private character that nobody used, another one at each call. Raises DataError when there is none left."""
        char = next(self._free, None)
        if char is None:
            raise DataError("the messages use every private character of Unicode", "remove some of them")
        return char

    def _mask(self, char: str) -> str:
        if char not in self._mask_of:
            self._mask_of[char] = self.spare()
        return self._mask_of[char]

    def text(self, text: str, edges: bool) -> str:
        """``text`` in disguise; ``edges``: also where it ends like the beginning of a special token, and so on."""
        chars = list(text)
        own = text.own if isinstance(text, Spoken) else ()
        for start, word in self.words.spelled(text):
            if start in own:
                continue
            self._typed.add(word)
            place = start + len(word) - len(word.lstrip())  # not a space: templates trim
            chars[place] = self._mask(text[place])
        bare = text.strip().casefold()
        if edges and bare:
            first, last = len(text) - len(text.lstrip()), len(text.rstrip()) - 1
            if bare.startswith(self.words.endings):
                chars[first] = self._mask(text[first])
            if bare.endswith(self.words.beginnings) or any(bare in word for word in self.words.folded):
                chars[last] = self._mask(text[last])
        return "".join(chars)

    def value(self, value: Any, edges: bool = False) -> Any:
        """The same for every text in a JSON value, names of fields included: in a tool's, somebody may have typed.

        edges: whether it is a text that a template composes. Where a message's content is a list of parts, the text of
        each is; a part's type is not.
        """
        if isinstance(value, str):
            return self.text(value, edges)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item, key in _WRITTEN) for key, item in value.items()}
        return [self.value(item, edges) for item in value] if isinstance(value, list | tuple) else value

    def sought(self) -> dict[str, str]:
        """The special tokens that were typed, the longest first, and how each looks in disguise."""
        return {word: self.text(word, edges=False) for word in sorted(self._typed, key=lambda word: (-len(word), word))}

    def undo(self, text: str) -> str:
        """The text as it was written, also where a template wrote it as ASCII JSON."""
        for char, mask in self._mask_of.items():
            text = text.replace(mask, char).replace(f"\\u{ord(mask):04x}", json.dumps(char)[1:-1])
        return text
