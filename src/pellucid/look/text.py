"""How one token is written for a reader: whitespace visible, invisible and broken characters spelled out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from pellucid.text.tokenizer import Tokenizer

_MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
# Control, format (zero-width, right-to-left override), private, surrogate, unassigned; line, paragraph and odd spaces:
# drawn as they are, they hide, reorder or break the text around them.
_SPELLED = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp", "Zs"}


def _spell(char: str) -> str:
    category = unicodedata.category(char)
    if category in _SPELLED:
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char


def label(text: str) -> str:
    """``text`` for a table cell or an axis: one line, every space and line break visible."""
    shown = "".join(_MARKS.get(char) or _spell(char) for char in text)
    # a combining accent alone would sit on its neighbour: the dotted circle carries it
    return "◌" + shown if shown and unicodedata.combining(shown[0]) else shown


def prose(text: str) -> str:
    """``text`` inside the running text: words keep their spaces; tokens of whitespace alone show dots; lines break."""
    marks = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍", " ": " " if text.strip() else "·"}
    return "".join(marks.get(char) or _spell(char) for char in text)


def reader(tokenizer: Tokenizer | None) -> Callable[[int], str]:
    """id -> its raw text; an id that has none (no tokenizer, or a vocabulary padded beyond it) as ``#17``."""

    def read(token: int) -> str:
        if tokenizer is None or token >= tokenizer.vocab_size:
            return f"#{token}"
        return tokenizer.tokens_as_text([token])[0]

    return read


def is_special(tokenizer: Tokenizer | None, token: int) -> bool:
    """Whether it stands for no text: a beginning, an end, a mask."""
    return tokenizer is not None and token < tokenizer.vocab_size and token in tokenizer.special.values()
