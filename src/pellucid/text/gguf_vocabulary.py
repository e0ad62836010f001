"""A vocabulary as llama.cpp keeps it: tokens, their types, merges or scores, and how a text is split before."""

from __future__ import annotations

import warnings
from collections.abc import Container
from typing import Any

from pellucid.errors import CheckpointError
from pellucid.text.gguf_splits import name_of
from pellucid.text.token_bytes import steps_of
from pellucid.text.tokenizer_build import Kind
from pellucid.text.tokenizer_gguf import ROLES, TURN_ENDS


def _split(config: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level vocabulary splits a text. Raises CheckpointError where it has none."""
    steps = list(steps_of(config["pre_tokenizer"]))
    name = name_of(steps, bool(config["model"].get("ignore_merges")))
    if name is None:
        written = [(step["type"], step.get("pattern", {}).get("Regex")) for step in steps]
        raise CheckpointError(f"llama.cpp has no name for this way of splitting texts: {written}")
    return name


def _refuse_changes(config: dict[str, Any], allowed: Container[str]) -> None:
    """llama.cpp reads texts as they are: raise CheckpointError for a step that changes them before."""
    for step in steps_of(config["normalizer"]):
        if step["type"] not in allowed or "Regex" in step.get("pattern", {}):
            raise CheckpointError(f"llama.cpp has no {step['type']} for texts, which this tokenizer begins with")
    if any(step["type"] == "ByteLevel" and step["add_prefix_space"] for step in steps_of(config["pre_tokenizer"])):
        raise CheckpointError("llama.cpp puts no space before the first word, as this tokenizer does")


def _types(config: dict[str, Any], tokens: list[str | None]) -> list[int]:
    added = {token["id"]: Kind.CONTROL if token["special"] else Kind.USER_DEFINED for token in config["added_tokens"]}
    unknown, bytes_too = config["model"].get("unk_token"), bool(config["model"].get("byte_fallback"))

    def kind(number: int, token: str | None) -> int:
        if token is None:
            return Kind.UNUSED
        if bytes_too and len(token) == 6 and token.startswith("<0x"):
            return Kind.BYTE
        return Kind.UNKNOWN if token == unknown else added.get(number, Kind.NORMAL)

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


def _further_ends(tokenizer: Any, tokens: list[str | None]) -> dict[str, int]:
    """The tokens beside ``eos_id`` that end a text or a turn: there are keys for two.

    Those that are known by how they are written need none; a warning names the others for which no key is left.
    """
    others = [number for number in tokenizer.stop_ids if number != tokenizer.eos_id]
    kept = sorted(others, key=lambda number: tokens[number] in TURN_ENDS)[:2]
    if lost := [tokens[number] for number in others if number not in kept and tokens[number] not in TURN_ENDS]:
        warnings.warn(
            f"a GGUF has keys for three tokens that end a text, and this model has {len(tokenizer.stop_ids)}: from the"
            f" file, it will not end at {', '.join(map(repr, lost))}",
            stacklevel=4,
        )
    return dict(zip(("eot_token_id", "eom_token_id"), sorted(kept), strict=False))


def _warn_of_symbols(tokenizer: Any) -> None:
    normal = tokenizer.normal
    if normal is not None and normal.prefix and normal.symbols:
        listed = ", ".join(map(repr, normal.symbols[:4]))
        warnings.warn(f"llama.cpp begins a text anew behind each symbol ({listed}), with a space", stacklevel=4)


def vocabulary(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """The metadata that let llama.cpp read and write texts as ``tokenizer`` does; None: a vocabulary of numbers only.

    Raises CheckpointError for what it has no word for: a vocabulary that is no BPE, or an unknown way of splitting.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    config = tokenizer.as_json()
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
    if any(step["type"] == "ByteLevel" for step in steps_of(config["pre_tokenizer"])):
        _refuse_changes(config, {"NFC"})  # most texts are written so
        if not merges:
            raise CheckpointError("llama.cpp opens no vocabulary without merges", "train one of more than 257 tokens")
        said |= {"model": "gpt2", "pre": _split(config), "merges": merges}
    else:
        _refuse_changes(config, {"Prepend", "Replace"})
        said |= {"model": "llama", "pre": "default", "scores": _scores(merges, tokens)}
        _warn_of_symbols(tokenizer)
        said["add_space_prefix"] = any(
            step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
            for step in (*steps_of(config["normalizer"]), *steps_of(config["pre_tokenizer"]))
        )
    roles = {name: getattr(tokenizer.roles, f"{role}_id") for name, role in ROLES.items()}
    said |= {f"{name}_token_id": number for name, number in roles.items() if number is not None}
    said |= {"suppress_tokens": list(tokenizer.never_ids)} if tokenizer.never_ids else {}
    said |= _further_ends(tokenizer, tokens)
    template = {"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    return {f"tokenizer.ggml.{key}": value for key, value in said.items()} | template
