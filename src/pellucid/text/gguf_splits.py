"""How byte-level vocabularies cut a text into words, under llama.cpp's names for it: one table, read both ways.

``tokenizer_gguf`` reads a name and gets the steps of a tokenizer.json; ``gguf_vocabulary`` has the steps and asks for
the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pellucid.text.tokenizer_build import BYTE_LEVEL, Config

# Words, numbers, signs and gaps, as GPT-4 and most tokenizers since then tell them apart; they differ in how they treat
# short endings ('s and 't), digits and letter case.
_ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED = _ENDS.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_SHORT, _SAME_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"(?i:'(?:[sdmt]|ll|ve|re))"
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_THREE_DIGITS, _ONE_DIGIT = r"|\p{N}{1,3}", r"|\p{N}"


def _by(pattern: str) -> list[Config]:
    """The steps that cut a text by a pattern."""
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]


_OWN_PATTERN = BYTE_LEVEL | {"use_regex": True}  # the pattern of GPT-2, which the byte-level step has itself
_SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True)
class Split:
    """A way to cut a text. names: llama.cpp's; the first one is written. steps: those of a tokenizer.json.

    whole: a word that is a token is that token, whatever the merges would make of it.
    """

    names: tuple[str, ...]
    steps: list[Config]
    whole: bool = False


SPLITS = (
    Split(("gpt-2", "default", "gpt2", "phi-2", "roberta-bpe", "jina-v1-en", "mpt", "olmo"), [_OWN_PATTERN]),
    Split(("smollm", "starcoder", "refact", "command-r", "codeshell"), [_SINGLE_DIGITS, _OWN_PATTERN]),
    Split(("llama-bpe", "llama3", "llama-v3", "falcon3"), _by(_SHORT + _LETTERS + _THREE_DIGITS + _ENDS), whole=True),
    Split(("dbrx", "smaug-bpe"), _by(_SHORT + _LETTERS + _THREE_DIGITS + _ENDS)),
    Split(("qwen2", "deepseek-r1-qwen", "stablelm2"), _by(_SHORT + _LETTERS + _ONE_DIGIT + _ENDS)),
    Split(("gpt-4o", "llama4"), _by(f"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?{_THREE_DIGITS}{_SLASHED}")),
    Split(("tekken",), _by(f"{_CASED[0]}|{_CASED[1]}{_ONE_DIGIT}{_SLASHED}"), whole=True),
)
BY_NAME = {name: split for split in SPLITS for name in split.names}


def name_of(steps: Iterable[Config], whole: bool) -> str | None:
    """llama.cpp's name for a tokenizer.json's steps; None where it has none.

    Our own pattern counts as that of "dbrx", from which it differs in words, gaps and rows of signs of more than 64
    characters only.
    """
    asked = [_signature(step) for step in steps]
    return next(
        (split.names[0] for split in SPLITS if split.whole == whole and asked == list(map(_signature, split.steps))),
        None,
    )


def _signature(step: Config) -> tuple[Any, ...]:
    """What of a step decides where it cuts."""
    pattern: Any = step.get("pattern", {}).get("Regex")
    if isinstance(pattern, str):
        pattern = pattern.replace("{1,64}", "+").replace("{0,64}", "*").replace(_SAME_SHORT, _SHORT)
    own = step.get("use_regex", True) if step["type"] == "ByteLevel" else None
    return step["type"], pattern, own, step.get("individual_digits")
