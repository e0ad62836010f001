"""A vocabulary as llama.cpp keeps it: tokens, their types, merges or scores, and how a text is split before."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from typing import Any

from pellucid.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's types of tokens

# Words, numbers, signs and gaps as GPT-4 and most since tell them apart, after how each writes 's and 't, and digits.
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS, _SAME_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"(?i:'(?:[sdmt]|ll|ve|re))"
_THREE_DIGITS, _ONE_DIGIT = _WORDS % r"\p{N}{1,3}", _WORDS % r"\p{N}"
# pattern, and whether a word that is a token is taken whole -> llama.cpp's name for both
SPLITS = {
    (_ENDINGS + _THREE_DIGITS, True): "llama-bpe",
    (_ENDINGS + _THREE_DIGITS, False): "dbrx",
    (_SAME_ENDINGS + _THREE_DIGITS, False): "dbrx",  # ours, but for words, gaps and rows of signs of more than 64
    (_ENDINGS + _ONE_DIGIT, False): "qwen2",
}
GPT_2, GPT_2_ONE_DIGIT = "gpt-2", "smollm"  # the pattern that the byte-level step has itself


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other, however they are nested."""
    step = step or {"type": "Sequence", "normalizers": []}
    inner = step.get("normalizers", step.get("pretokenizers"))
    if inner is None:
        yield step
    for each in inner or []:
        yield from _steps(each)


def _split(config: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level vocabulary splits a text. Raises CheckpointError where it has none."""
    before, whole = list(_steps(config["pre_tokenizer"])), bool(config["model"].get("ignore_merges"))
    written = [(step["type"], step.get("pattern", {}).get("Regex")) for step in before]
    own_pattern = before[-1].get("use_regex", True)
    digits = before[0]["type"] == "Digits" and before[0]["individual_digits"]
    if own_pattern and not whole and len(before) == 1 + digits:
        return GPT_2_ONE_DIGIT if digits else GPT_2
    bounded = str(written[0][1]).replace("{1,64}", "+").replace("{0,64}", "*")
    if own_pattern or [kind for kind, _ in written] != ["Split", "ByteLevel"] or (bounded, whole) not in SPLITS:
        raise CheckpointError(f"llama.cpp has no name for this way of splitting texts: {written}")
    return SPLITS[bounded, whole]


def _refuse_changes(config: dict[str, Any], allowed: Container[str]) -> None:
    """llama.cpp reads texts as they are: raise CheckpointError for a step that changes them before."""
    for step in _steps(config["normalizer"]):
        if step["type"] not in allowed or "Regex" in step.get("pattern", {}):
            raise CheckpointError(f"llama.cpp has no {step['type']} for texts, which this tokenizer begins with")
    if any(step["type"] == "ByteLevel" and step["add_prefix_space"] for step in _steps(config["pre_tokenizer"])):
        raise CheckpointError("llama.cpp puts no space before the first word, as this tokenizer does")


def _types(config: dict[str, Any], tokens: list[str | None]) -> list[int]:
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in config["added_tokens"]}
    unknown, bytes_too = config["model"].get("unk_token"), bool(config["model"].get("byte_fallback"))

    def kind(number: int, token: str | None) -> int:
        if token is None:
            return UNUSED
        if bytes_too and len(token) == 6 and token.startswith("<0x"):
            return BYTE
        return UNKNOWN if token == unknown else added.get(number, NORMAL)

    return [kind(number, token) for number, token in enumerate(tokens)]


def _tokens(config: dict[str, Any], vocab_size: int) -> list[str | None]:
    """Every row's token; None where the model has rows that the vocabulary does not use."""
    numbers = {**config["model"]["vocab"], **{token["content"]: token["id"] for token in config["added_tokens"]}}
    if max(numbers.values()) >= vocab_size:
        raise CheckpointError(f"the tokenizer has the id {max(numbers.values())}, the model {vocab_size} rows")
    tokens: list[str | None] = [None] * vocab_size
    for token, number in numbers.items():
        tokens[number] = token
    return tokens


def _scores(merges: list[str], tokens: list[str | None]) -> list[float]:
    """SentencePiece merges what scores highest; so the earlier a merge makes a token, the higher its score."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    return [-float(rank.get(token or "", len(merges))) for token in tokens]


def vocabulary(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """The metadata that let llama.cpp read and write texts as ``tokenizer`` does; None: a vocabulary of numbers only.

    Raises CheckpointError for what it has no word for: a vocabulary that is no BPE, or an unknown way of splitting.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    config = json.loads(tokenizer.inner.to_str())
    if config["model"]["type"] != "BPE":
        raise CheckpointError(f"a {config['model']['type']} vocabulary is not written to GGUF", "only BPE is")
    merges = [" ".join(merge) if isinstance(merge, list) else str(merge) for merge in config["model"]["merges"]]
    tokens = _tokens(config, vocab_size)
    said: dict[str, Any] = {
        "tokens": [f"[PAD{number}]" if token is None else token for number, token in enumerate(tokens)],
        "token_type": _types(config, tokens),
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": tokenizer.adds_eos,
    }
    if any(step["type"] == "ByteLevel" for step in _steps(config["pre_tokenizer"])):
        _refuse_changes(config, {"NFC"})  # most texts are written so
        said |= {"model": "gpt2", "pre": _split(config), "merges": merges}
    else:
        _refuse_changes(config, {"Prepend", "Replace"})
        said |= {"model": "llama", "pre": "default", "scores": _scores(merges, tokens)}
        said["add_space_prefix"] = any(
            step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
            for step in (*_steps(config["normalizer"]), *_steps(config["pre_tokenizer"]))
        )
    roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    roles["unknown"] = tokenizer.unk_id
    said |= {f"{role}_token_id": number for role, number in roles.items() if number is not None}
    if others := [number for number in tokenizer.stop_ids if number != tokenizer.eos_id]:
        said["eot_token_id"] = others[0]  # of a turn; llama.cpp knows further ones by how they are written
    template = {"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    return {f"tokenizer.ggml.{key}": value for key, value in said.items()} | template
