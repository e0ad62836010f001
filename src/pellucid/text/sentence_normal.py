"""What SentencePiece does to a text before it is cut into pieces, done as SentencePiece does it.

The tokenizers library has steps with the same names, and two differ: its table of normal forms loses marks of letters
that come in parts, and each symbol ends one text and begins another. Where a vocabulary has either, ``Normal`` is what
runs, and its tokenizer.json names the library's steps for other readers only.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from pellucid.errors import CheckpointError
from pellucid.files import parse_json
from pellucid.text.charsmap import NormalForms
from pellucid.text.token_bytes import steps_of
from pellucid.text.tokenizer_json import LEADING, build, parse

if TYPE_CHECKING:
    import tokenizers

Config: TypeAlias = dict[str, Any]
SYMBOLS = "sentencepiece_symbols"  # our own key in tokenizer_config.json, where ``Normal`` is what runs
MARK = "▁"  # U+2581: how SentencePiece writes a space
MARKED: Config = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}  # what the library still does
_SQUEEZED: list[Config] = [
    {"type": "Replace", "pattern": LEADING, "content": ""},
    {"type": "Replace", "pattern": {"Regex": rf"[ {MARK}]+\z"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
]
_PREFIXED: Config = {"type": "Prepend", "prepend": MARK}


@dataclass(frozen=True)
class Normal:
    """From a text to what the model cuts into pieces, where spaces are still spaces.

    charsmap: SentencePiece's precompiled table of normal forms. prefix: a space goes before the first word. squeeze:
    spaces at the ends go, of several only one stays. before: steps of a tokenizer.json that come first. symbols: what
    has no normal form, as a text has it. Raises CheckpointError for a damaged table.
    """

    charsmap: bytes = b""
    prefix: bool = True
    squeeze: bool = False
    before: tuple[Config, ...] = ()
    symbols: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.charsmap:
            self._forms  # noqa: B018  (refuses a damaged table)

    def __call__(self, text: str) -> str:
        if self._first is not None:
            text = self._first.normalize_str(text)
        if not text:
            return ""
        if self.charsmap:
            parts = self._symbols.split(text) if self._symbols else [text]
            text = "".join(part if i % 2 else self._forms(part) for i, part in enumerate(parts))
        if self.squeeze:
            text = re.sub(" {2,}", " ", text.strip(" "))
        text = (" " * self.prefix + text).replace(MARK, " ")
        return text.rstrip(" ") if self.squeeze else text

    def steps(self) -> list[Config]:
        """The same as a tokenizer.json says it, as near as its steps come, in the order in which they run."""
        table = base64.b64encode(self.charsmap).decode("ascii")
        return [
            *self.before,
            *([{"type": "Precompiled", "precompiled_charsmap": table}] if self.charsmap else []),
            *(_SQUEEZED if self.squeeze else []),
            *([_PREFIXED] if self.prefix else []),
            MARKED,
        ]

    @cached_property
    def _forms(self) -> NormalForms:
        return NormalForms(self.charsmap)

    @cached_property
    def _first(self) -> Any:
        """The library's steps that come first; None where there are none."""
        if not self.before:
            return None
        from tokenizers import Tokenizer, models

        plan = json.loads(Tokenizer(models.BPE()).to_str()) | {"normalizer": _sequence(self.before)}
        return Tokenizer.from_str(json.dumps(plan)).normalizer

    @cached_property
    def _symbols(self) -> re.Pattern[str] | None:
        return one_of(symbol.replace(" ", MARK) for symbol in self.symbols)


def one_of(words: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that cuts a text at ``words``, the longest first, and keeps them; None where there are none."""
    listed = "|".join(map(re.escape, sorted(filter(None, words), key=len, reverse=True)))
    return re.compile(f"({listed})") if listed else None


def _sequence(steps: Sequence[Config]) -> Config:
    return {"type": "Sequence", "normalizers": list(steps)}


def built(config: Config, normal: Normal, where: str) -> tuple[tokenizers.Tokenizer, Normal | None]:
    """The tokenizer of a config, and ``normal`` where the steps of the config do not do the same."""
    if not normal.charsmap and not (normal.symbols and (normal.prefix or normal.squeeze)):
        return build(config, where), None
    return build(config | {"normalizer": _sequence([MARKED])}, where), normal


def with_steps(config: Config, normal: Normal) -> Config:
    """A tokenizer.json with what ``normal`` does among its steps."""
    return config | {"normalizer": _sequence(normal.steps())}


def opened(text: str, where: str, said: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, Normal | None]:
    """The tokenizer of a tokenizer.json, and what is done to texts before it sees them.

    said: the tokenizer_config.json beside it. Raises CheckpointError as ``parse`` does, and where the two contradict
    each other.
    """
    if SYMBOLS not in said:
        return parse(text, where), None
    config, symbols = parse_json(text, where, CheckpointError), said[SYMBOLS]
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise CheckpointError(f"{where}: {SYMBOLS} beside it is {str(symbols)[:80]}", "it must be a list of texts")
    steps = list(steps_of(config.get("normalizer"))) if isinstance(config, dict) else []
    try:
        normal = _found(steps, tuple(symbols))
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error.problem}", error.remedy) from error
    if normal is None:
        raise CheckpointError(f"{where}: its steps are not SentencePiece's, as {SYMBOLS} says", "restore both files")
    return built(config, normal, where)


def _found(steps: Sequence[Config], symbols: tuple[str, ...]) -> Normal | None:
    """What the steps say; None where they are not those of any ``Normal``."""
    table = next((step.get("precompiled_charsmap") for step in steps if step.get("type") == "Precompiled"), "")
    try:
        charsmap = base64.b64decode(str(table), validate=True)
    except ValueError:
        return None
    prefix, squeeze = _PREFIXED in steps, _SQUEEZED[0] in steps
    n_before = len(steps) - (bool(charsmap) + len(_SQUEEZED) * squeeze + prefix + 1)
    normal = Normal(charsmap, prefix, squeeze, tuple(steps[: max(0, n_before)]), symbols)
    return normal if normal.steps() == list(steps) else None
