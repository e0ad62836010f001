"""Flags of tokenizer_config.json that count beside a tokenizer.json: those that the class it names obeys.

Which these are differs from class to class, and what happens where nothing is said does, too. It was measured: the
table tokenizer_flags.json is what ``tests/peers/tokenizer_flags.py`` saw ``transformers`` do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import CheckpointError
from pellucid.text.token_bytes import is_byte_level
from pellucid.text.tokenizer_json import decoder_of

if TYPE_CHECKING:
    import tokenizers

GENERATION = "5"  # of the library: what we follow where its generations differ
_BERT = {  # and what the normalizer of BERT's vocabularies calls them
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


@cache
def table() -> dict[str, Any]:
    """generation -> "kinds" -> kind of vocabulary -> class -> flag -> what happens, and "classes": model -> class."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def obey(inner: tokenizers.Tokenizer, config: Mapping[str, Any], model: Mapping[str, Any], where: str) -> None:
    """Change ``inner``, which a tokenizer.json describes, as its class does.

    config, model: tokenizer_config.json and config.json. Raises CheckpointError for a flag that is not true or false.
    """
    if obeyed := _obeyed(inner, config, model, where):
        from tokenizers import normalizers, pre_tokenizers

        bert = {name: obeyed[flag] for flag, name in _BERT.items() if flag in obeyed}
        _change(inner, "normalizer", normalizers.BertNormalizer, bert)
        prefix = {flag: obeyed[flag] for flag in ("add_prefix_space",) if flag in obeyed}
        _change(inner, "pre_tokenizer", pre_tokenizers.ByteLevel, prefix)


def _change(inner: tokenizers.Tokenizer, step: str, kind: type, fields: Mapping[str, Any]) -> None:
    """Give the step other values in these fields, where it is of this kind."""
    made = getattr(inner, step)
    if fields and isinstance(made, kind):
        now = json.loads(made.__getstate__())
        if (wanted := now | fields) != now:
            del wanted["type"]
            setattr(inner, step, kind(**wanted))


def _obeyed(
    inner: tokenizers.Tokenizer, config: Mapping[str, Any], model: Mapping[str, Any], where: str
) -> dict[str, bool | None]:
    """flag -> what the class makes of it, for the flags that it does not leave to tokenizer.json."""
    of = table()[GENERATION]
    named = config.get("tokenizer_class") or of["classes"].get(str(model.get("model_type")))
    row: dict[str, str] = of["kinds"].get(_kind(inner), {}).get(str(named).removesuffix("Fast"), {})
    found: dict[str, bool | None] = {}
    for flag, happens in row.items():
        if happens == "file":
            continue
        said = config.get(flag)
        if not isinstance(said, bool | None):
            raise CheckpointError(f"{where}: {flag} is {str(said)[:80]!r}", "true or false")
        if said is not None or happens != "said":
            found[flag] = json.loads(happens.removeprefix("said or ")) if said is None else said
    return found


def _kind(inner: tokenizers.Tokenizer) -> str:
    """The kind of vocabulary, by the names of the table."""
    model = type(inner.model).__name__
    if model != "BPE":
        return model
    return "byte-level BPE" if is_byte_level(decoder_of(inner)) else "SentencePiece BPE"
