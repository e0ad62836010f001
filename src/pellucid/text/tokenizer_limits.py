"""What a tokenizer.json from a stranger may hold, before and after the ``tokenizers`` library believes it."""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pellucid.errors import CheckpointError
from pellucid.text.token_bytes import reader_of, steps_of

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENS = 1 << 21
MAX_TOKEN = 4096  # characters
_MAX_PIECE = 128  # characters of a unigram's piece: the search for the best pieces takes as many steps a character
_MAX_WORD = 512  # characters of a WordPiece word: the search takes their square
_MAX_STEPS = 64  # of a normalizer, pre-tokenizer or decoder
_MAX_CONTENT = 64  # characters that one step may put in the place of one: it multiplies texts
_MAX_ADDED = 16  # tokens put around a text
_MAX_PATTERN = 1 << 14  # characters; the longest published ones have some 1,000
PATIENCE = 0.25  # seconds that splitting _PROBE characters may take: it takes less than a thousandth of that
PATIENCE_IN_ALL = 1.0  # seconds for all probes
_PROBE = 1024


def guarded(call: Any, *arguments: Any) -> Any:
    """A call of the library, whose errors are bare ``Exception`` or, where its own code gave up, not even that."""
    try:
        return call(*arguments)
    except Exception as error:
        raise CheckpointError(f"not a tokenizer: {error}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise CheckpointError(f"not a tokenizer: {error}") from error


def is_panic(error: BaseException) -> bool:
    """Whether the library's compiled code gave up: an exception that derives from BaseException alone."""
    return type(error).__name__ == "PanicException"


def check_config(config: Any) -> None:
    """Raises CheckpointError where a parsed tokenizer.json would do harm, or more work than its text is worth."""
    if not isinstance(config, dict):
        raise CheckpointError(f"not a tokenizer: a JSON {type(config).__name__}, not an object")
    model = config.get("model")
    if not isinstance(model, dict):
        raise CheckpointError("not a tokenizer: it has no object 'model'")
    _check_model(model)
    if not isinstance(decoder := config.get("decoder"), dict | None):
        raise CheckpointError(f"its decoder is a JSON {type(decoder).__name__}, not an object")
    reader_of(decoder)  # refuses what is not known
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for number, step in enumerate(steps_of(config.get(part))):
            if number >= _MAX_STEPS:
                raise CheckpointError(f"its {part} has more than {_MAX_STEPS} steps")
            _check_step(part, step)
    if not isinstance(config.get("added_tokens") or [], list):
        raise CheckpointError("its added_tokens are not a list")


def kind_of(model: Mapping[str, Any]) -> str:
    """BPE, WordPiece, Unigram or WordLevel; old files leave it to be seen."""
    if isinstance(kind := model.get("type"), str):
        return kind
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _check_model(model: dict[str, Any]) -> None:
    kind = kind_of(model)
    vocab: Any = model.get("vocab")
    if kind not in ("BPE", "WordPiece", "Unigram", "WordLevel"):
        raise CheckpointError(f"a model of type {kind!r}", "known: BPE, WordPiece, Unigram, WordLevel")
    expected: Any = list if kind == "Unigram" else dict
    if not isinstance(vocab, expected) or not vocab:
        raise CheckpointError(f"the vocabulary of its {kind} model is missing or of a wrong type")
    if len(vocab) > MAX_TOKENS:
        raise CheckpointError(f"{len(vocab):,} tokens", f"at most {MAX_TOKENS:,}")
    if model.get("dropout"):
        raise CheckpointError(f"dropout {model['dropout']!r}: the same text would have other tokens each time", "null")
    if kind == "Unigram":
        _check_unigram(vocab)
    else:
        _check_ids(vocab)
    longest = model.get("max_input_chars_per_word", 100)
    if kind == "WordPiece" and not (type(longest) is int and 0 <= longest <= _MAX_WORD):
        raise CheckpointError(f"max_input_chars_per_word is {longest!r}", f"a whole number up to {_MAX_WORD}")
    if kind == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        if not isinstance(prefix, str):
            raise CheckpointError(f"continuing_subword_prefix is {str(prefix)[:80]}", "a text")
        _check_merges(model.get("merges", []), vocab, prefix)


def _check_ids(vocab: dict[str, Any]) -> None:
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise CheckpointError(f"the token {token[:80]!r} has the id {number!r}", f"0…{MAX_TOKENS - 1}")
        if len(token) > MAX_TOKEN:
            raise CheckpointError(f"token {number} has {len(token):,} characters", f"at most {MAX_TOKEN:,}")
    if len(set(vocab.values())) < len(vocab):
        seen: dict[int, str] = {}
        for token, number in vocab.items():
            if number in seen:
                raise CheckpointError(f"the tokens {seen[number]!r} and {token!r} have the same id {number}")
            seen[number] = token


def _check_unigram(vocab: list[Any]) -> None:
    for number, entry in enumerate(vocab):
        match entry:
            case [str(piece), float() | int() as score] if math.isfinite(score) and len(piece) <= _MAX_PIECE:
                pass
            case _:
                raise CheckpointError(
                    f"entry {number} of its vocabulary is {str(entry)[:80]}",
                    f"a pair of a piece, at most {_MAX_PIECE} characters, and a finite score",
                )


def _check_merges(merges: Any, vocab: dict[str, int], prefix: str) -> None:
    """Each merge joins two tokens of the vocabulary to a third, without the ``prefix`` that the second begins with."""
    if not isinstance(merges, list):
        raise CheckpointError("its merges are not a list")
    for number, merge in enumerate(merges):
        try:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            lost = next((token for token in (left, right, left + right[len(prefix) :]) if token not in vocab), None)
            begins = right.startswith(prefix)
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"merge {number} is {str(merge)[:80]!r}", "two tokens, that become one") from error
        if lost is not None:
            raise CheckpointError(f"merge {number} needs the token {str(lost)[:80]!r}, which is not there")
        if not begins:
            raise CheckpointError(f"merge {number} joins {right[:80]!r}, which does not begin with {prefix[:80]!r}")


# --- the steps around the model -----------------------------------------------------------------------------------


def _check_step(part: str, step: dict[str, Any]) -> None:
    kind = step.get("type")
    for key in ("content", "prepend", "replacement", "prefix", "suffix"):
        if isinstance(value := step.get(key), str) and len(value) > _MAX_CONTENT:
            raise CheckpointError(f"{part} {kind}: {key} has {len(value):,} characters", f"at most {_MAX_CONTENT}")
    if kind == "Precompiled":
        _check_charsmap(step.get("precompiled_charsmap"))
    match step.get("pattern", {"String": "-"}):
        case {"String": ""} | {"Regex": ""}:
            raise CheckpointError(f"{part} {kind}: its pattern is empty, so that it is everywhere")
        case {"String": str(pattern)} | {"Regex": str(pattern)} if len(pattern) > _MAX_PATTERN:
            raise CheckpointError(
                f"{part} {kind}: its pattern has {len(pattern):,} characters", f"at most {_MAX_PATTERN:,}"
            )
        case {"Regex": str(pattern)}:
            if nested(pattern):
                raise CheckpointError(f"{part} {kind}: the pattern {pattern[:200]!r} repeats what it repeats")
        case {"String": str()}:
            pass
        case other:
            raise CheckpointError(f"{part} {kind}: its pattern is {str(other)[:80]}", "a String or a Regex")


def nested(pattern: str) -> bool:
    """Whether a group that repeats holds something that repeats: such a pattern can take for ever.

    Backtracking tries every way of sharing the text between the two (Weideman et al. 2016).
    """
    inside = [False]  # for each open group: does it hold a repetition, of no fixed number?
    tokens = re.finditer(r"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\(\??|\)|[*+]|\{\d*,\d*\}|.", pattern, re.DOTALL)
    closed = False  # does the unit just read hold one?
    for token in tokens:
        written = token[0]
        if written[0] == "(":
            inside.append(False)
            closed = False
        elif written == ")":
            closed = inside.pop() if len(inside) > 1 else False
            inside[-1] |= closed
        elif written in ("*", "+") or (written[0] == "{" and len(written) > 1):
            if closed:
                return True
            inside[-1] = True
        else:
            closed = False
    return False


def _check_charsmap(written: Any) -> None:
    """SentencePiece's table of normal forms: a trie, and the forms, each ended by a zero byte."""
    if not isinstance(written, str):
        raise CheckpointError("its precompiled_charsmap is no text")
    try:
        blob = base64.b64decode(written, validate=True)
        (size,) = struct.unpack_from("<I", blob)
    except (binascii.Error, struct.error, ValueError) as error:
        raise CheckpointError(f"its precompiled_charsmap is damaged: {error}") from error
    if 4 + size > len(blob):
        raise CheckpointError(f"its precompiled_charsmap has {len(blob):,} bytes and announces {size:,}")
    longest = max(map(len, blob[4 + size :].split(b"\0")))
    if longest > 4 * _MAX_CONTENT:
        raise CheckpointError(f"its precompiled_charsmap turns a character into {longest:,} bytes")


# --- what the library made of it --------------------------------------------------------------------------------------


def check_added(config: Mapping[str, Any], inner: tokenizers.Tokenizer) -> None:
    """The library numbers added tokens itself, and says nothing where the file has another number."""
    for token in config.get("added_tokens") or []:
        content, number = token["content"], token["id"]
        if not content or inner.token_to_id(content) != number:
            raise CheckpointError(
                f"the added token {content[:80]!r} has the id {number}",
                f"{inner.token_to_id(content)} is the number that it can have",
            )
        if len(content) > MAX_TOKEN:
            raise CheckpointError(f"the added token {number} has {len(content):,} characters", f"at most {MAX_TOKEN:,}")


def check_ends(inner: tokenizers.Tokenizer) -> None:
    """Raises CheckpointError where a tokenizer puts too many tokens around a text, or some that it does not have."""
    encoding = guarded(inner.encode, "a é")
    ends = [n for n, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if added]
    if len(ends) > _MAX_ADDED:
        raise CheckpointError(f"its post_processor puts {len(ends)} tokens around a text", f"at most {_MAX_ADDED}")
    for number in ends:
        if inner.id_to_token(number) is None:
            raise CheckpointError(f"its post_processor adds the id {number}, which no token has")


def check_speed(config: Mapping[str, Any], inner: tokenizers.Tokenizer) -> None:
    """Patterns are tried on texts that make bad ones slow: short ones first, until patience ends."""
    steps = [step for part in ("normalizer", "pre_tokenizer") for step in steps_of(config.get(part))]
    patterns = [step["pattern"]["Regex"] for step in steps if "Regex" in step.get("pattern", {})]
    letters = {letter for pattern in patterns for letter in pattern if letter.isalnum()} | set("aA1 \n!é中")
    begun = time.thread_time()  # what this thread works: a busy machine makes no pattern a bad one
    for letter in sorted(letters)[:100] if patterns else ():
        size = 16
        while size <= _PROBE:
            if time.thread_time() - begun > PATIENCE_IN_ALL:
                raise CheckpointError(
                    f"its patterns take longer than {PATIENCE_IN_ALL} s for a few thousand characters"
                )
            start = time.thread_time()
            if inner.normalizer:
                guarded(inner.normalizer.normalize_str, letter * size + "\x00")
            if inner.pre_tokenizer:
                guarded(inner.pre_tokenizer.pre_tokenize_str, letter * size + "\x00")
            if time.thread_time() - start > PATIENCE:
                raise CheckpointError(f"splitting {size} times {letter!r} takes longer than {PATIENCE} s")
            size *= 4
