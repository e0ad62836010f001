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
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _by(*patterns: str) -> list[Config]:
    """The steps that cut a text by one pattern, then its parts by the next."""
    cut = {"type": "Split", "behavior": "Isolated", "invert": False}
    return [*({**cut, "pattern": {"Regex": pattern}} for pattern in patterns), BYTE_LEVEL]


_OWN_PATTERN = BYTE_LEVEL | {"use_regex": True}  # the pattern of GPT-2, which the byte-level step has itself
_SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA_3 = _by(_SHORT + _LETTERS + _THREE_DIGITS + _ENDS)
_GPT_4O = _by(f"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?{_THREE_DIGITS}{_SLASHED}")
# letters that have two cases, as the makers of DeepSeek LLM list them
_TWO_CASES = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ"
    "-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰"
    "-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥\u0800-一가-\ud7ff]+"
_MARKED = r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+" + _ONE_DIGIT + _ENDS.replace(r"\p{L}", r"\p{L}\p{M}")


@dataclass(frozen=True)
class Split:
    """A way to cut a text. names: llama.cpp's; the first one is written. steps: those of a tokenizer.json.

    whole: a word that is a token is that token, whatever the merges would make of it. begins: texts begin with a token
    where the file does not say whether they do.
    """

    names: tuple[str, ...]
    steps: list[Config]
    whole: bool = False
    begins: bool = False

    @classmethod
    def of(cls, names: str, steps: list[Config], whole: bool = False, begins: bool = False) -> Split:
        """``names`` with spaces between them."""
        return cls(tuple(names.split()), steps, whole, begins)


SPLITS = (
    Split.of(
        """gpt-2 gpt2 phi-2 roberta-bpe mpt olmo jina-v1-en jina-v2-code jina-es jina-de jina-v2-es jina-v2-de gigachat
        a.x-4.0 mellum modern-bert exaone4 jais trillion granite-docling""",
        [_OWN_PATTERN],
    ),
    Split.of("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", [_SINGLE_DIGITS, _OWN_PATTERN]),
    Split.of(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _LLAMA_3,
        whole=True,
        begins=True,
    ),
    Split.of("glm4 glm5", _LLAMA_3, whole=True),
    Split.of("dbrx smaug-bpe chatglm-bpe", _LLAMA_3),
    Split.of(
        "qwen2 deepseek-r1-qwen stablelm2 kormo f2llmv2 megrez hunyuan solar-open grok-2",
        _by(_SHORT + _LETTERS + _ONE_DIGIT + _ENDS),
    ),
    Split.of("qwen35", _by(_SHORT + _MARKED)),
    Split.of("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT_4O),
    Split.of("granite-embed-multi-97m", _GPT_4O, whole=True),
    Split.of("tekken", _by(f"{_CASED[0]}|{_CASED[1]}{_ONE_DIGIT}{_SLASHED}"), whole=True, begins=True),
    Split.of("falcon", _by(r"[\p{P}$+<=>^~|`]+", _GPT_2, "[0-9][0-9][0-9]")),
    Split.of("deepseek-coder", _by(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    Split.of(
        "deepseek-llm",
        _by(r"[\r\n]", rf"\s?[{_TWO_CASES}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+"),
    ),
    Split.of("default", _by(r"[\p{P}$+<=>^~|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")),
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
