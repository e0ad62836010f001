"""Special tokens that objectives need, as published vocabularies spell them: sentinels, modes, a document's parts."""

from __future__ import annotations

import itertools

from pellucid.errors import DataError
from pellucid.text.tokenizer import Tokenizer

N_SENTINELS = 100  # as many as T5's vocabulary has
SENTINEL = "<extra_id_{}>"
MODES = ("[R]", "[S]", "[X]")
MIDDLES = (  # prefix, suffix, middle: as Qwen2.5 and we spell them, StarCoder, SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)


def sentinel_names(number: int = N_SENTINELS) -> list[str]:
    """How the first sentinels are written."""
    return [SENTINEL.format(i) for i in range(number)]


def sentinels_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the vocabulary's sentinels, in the order of their numbers. Raises DataError where it has none."""
    names = map(SENTINEL.format, itertools.count())
    found = tuple(itertools.takewhile(lambda number: number is not None, map(tokenizer.special.get, names)))
    if not found:
        raise DataError("the tokenizer has no sentinels to hide spans behind", f"begin with one that has {SENTINEL}")
    return found  # pyright: ignore[reportReturnType]  # the first that is None ends it


def modes_of(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Ids of the tokens for R-, S- and X-denoising. Raises DataError where one is missing."""
    return _all_of(tokenizer, MODES, "that say how a row is rewritten")


def middles_of(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Ids of the tokens before prefix, suffix and middle, in whichever spelling the vocabulary has them.

    Raises DataError where it has none.
    """
    known = next((names for names in MIDDLES if set(names) <= set(tokenizer.special)), MIDDLES[0])
    return _all_of(tokenizer, known, "that stand before the parts of a document")


def _all_of(tokenizer: Tokenizer, names: tuple[str, str, str], what: str) -> tuple[int, int, int]:
    for name in names:
        if name not in tokenizer.special:
            raise DataError(f"the tokenizer has no token {name}, one of those {what}", "begin with one that has them")
    first, second, third = (tokenizer.special[name] for name in names)
    return first, second, third
