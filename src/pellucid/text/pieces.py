"""A long text in pieces that are encoded one by one: where it may be cut without changing a single token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pellucid.errors import DataError

_PIECE = 1 << 15  # characters encoded at a time: bounds memory and lets the encoder's threads share a long text
_BETWEEN_WORDS = re.compile(
    r"(?<=\S)[ \t]|(?<=[^\W_])\s"
)  # no alternative of the tokenizer's words reaches across, or looks across, this place


def pieces(text: str) -> Iterator[str]:
    """``text`` in parts of at most ``2 * _PIECE`` characters, cut where words end whenever there is such a place.

    Encoding the parts is encoding the text, unless one word is longer than a part. Raises DataError for text that has
    no UTF-8 form (an unpaired surrogate).
    """
    return pieces_of([text])


def pieces_of(blocks: Iterable[str]) -> Iterator[str]:
    """The ``pieces`` of a text that comes in blocks of any length: the same as if it came at once."""
    text = ""
    for block in blocks:
        refuse_surrogates(block)
        text += block
        start = 0
        while len(text) - start > 2 * _PIECE:
            place = _BETWEEN_WORDS.search(text, start + _PIECE, start + 2 * _PIECE)
            stop = place.start() if place else start + 2 * _PIECE
            yield text[start:stop]
            start = stop
        text = text[start:]
    yield text


def refuse_surrogates(text: str) -> None:
    """Raise DataError for a text that has no UTF-8 form."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        problem = f"character {error.start} of the text is an unpaired surrogate, U+{ord(text[error.start]):04X}"
        raise DataError(problem, "it has no UTF-8 form: decode the text properly, or remove it") from error


def sample(parts: Iterable[str], total: int, characters: int) -> Iterator[str]:
    """Some of the ``parts`` of a text of ``total`` characters, spread evenly over it, about ``characters`` in all.

    They are enough to learn a vocabulary of a huge text.
    """
    seen = taken = 0
    for part in parts:
        if taken * total <= seen * characters:
            taken += len(part)
            yield part
        seen += len(part)
