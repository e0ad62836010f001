"""What single tokens are for, as published folders say it: special tokens, what ends a text, the chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pellucid.errors import CheckpointError
from pellucid.text.tokenizer_limits import MAX_TOKENS, guarded

if TYPE_CHECKING:
    import tokenizers

NAMES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
EXTRA = "extra_special_tokens"  # more of them: a list, or names that a chat template may use
NEVER = "bad_words_ids"  # as generation_config.json has them; those of one token are kept
STOPS = "stop_tokens"  # our own key in tokenizer_config.json: what generation_config.json says elsewhere
# How such tokens are mostly written: for folders that name none.
_USUAL = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
_BRACKETED = re.compile(r"<.+>|\[.+\]")


@dataclass(frozen=True)
class Roles:
    """Ids of special tokens, None where a vocabulary has no such token.

    stop_ids: every token that ends what a model writes, ``eos_id`` among them.
    never_ids: those that it must not write, such as Marian's padding, whose logit is always 0 and may be the greatest.
    names: what chat templates call other special tokens, written out: {"image_token": "<image>"}.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    mask_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    never_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    names: Mapping[str, str] = field(default_factory=dict[str, str])


def roles_of(
    inner: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    model: Mapping[str, Any],
    where: str,
) -> Roles:
    """The roles that a folder's tokenizer_config.json, generation_config.json and config.json give, in this order.

    The tokens so named are special from then on: ``inner`` is told. Raises CheckpointError for a value of a wrong type,
    and for a bos or eos token that is not in the vocabulary.
    """
    size = inner.get_vocab_size(with_added_tokens=True)
    ids: dict[str, int | None] = {}
    for name in NAMES:
        written = written_form(config.get(f"{name}_token"), f"{where}: {name}_token")
        ids[name] = None if written is None else inner.token_to_id(written)
        if written is not None and ids[name] is None and name in ("bos", "eos"):
            raise CheckpointError(f"{where}: the {name}_token {written!r} is not in the vocabulary", "name one that is")
        if written is None and f"{name}_token" not in config:
            ids[name] = _numbered(inner, (model, generation), name, where)
    if not any(f"{name}_token" in config for name in NAMES):
        for name in NAMES:
            found = (inner.token_to_id(written) for written in _USUAL[name])
            ids[name] = (
                next((number for number in found if number is not None), None) if ids[name] is None else ids[name]
            )
    listed = [written_form(entry, f"{where}: {STOPS}") for entry in _items(config.get(STOPS), f"{where}: {STOPS}")]
    stops = [inner.token_to_id(written) for written in listed if written is not None]
    stops += _numbers(generation.get("eos_token_id", model.get("eos_token_id")), where) if not listed else []
    names = _names(config, where)
    extra = _extra(config, where)
    written = [w for w in (written_form(entry, f"{where}: {EXTRA}") for entry in extra) if w]
    found = (inner.token_to_id(w) for w in (*names.values(), *written))
    objects = [entry for entry in (*config.values(), *extra) if isinstance(entry, dict)]
    make_special(inner, {n for n in (*ids.values(), *found) if n is not None}, objects)
    stop_ids = {number for number in (ids["eos"], *stops) if number is not None and number < size}
    return Roles(
        **{f"{name}_id": number for name, number in ids.items()},
        stop_ids=tuple(sorted(stop_ids)),
        never_ids=_never((config, generation, model), size, where),
        chat_template=_template(config.get("chat_template"), where),
        names=names,
    )


def _names(config: Mapping[str, Any], where: str) -> dict[str, str]:
    """Names of special tokens beside the usual ones: ``transformers`` hands them to chat templates, too."""
    named = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)}
    for key in ("model_specific_special_tokens", EXTRA):
        named |= value if isinstance(value := config.get(key), dict) else {}
    usual = {f"{name}_token" for name in NAMES}
    found = {name: written_form(value, f"{where}: {name}") for name, value in named.items() if name not in usual}
    return {name: written for name, written in found.items() if written}


def _extra(config: Mapping[str, Any], where: str) -> list[Any]:
    """Special tokens without a name, under the names that the library's generations gave the list."""
    lists = {key: config.get(key) for key in ("additional_special_tokens", EXTRA)}
    lists |= {EXTRA: None} if isinstance(lists[EXTRA], dict) else {}
    return [entry for key, value in lists.items() for entry in _items(value, f"{where}: {key}")]


def make_special(inner: tokenizers.Tokenizer, ids: set[int], objects: Sequence[Mapping[str, Any]] = ()) -> None:
    """From now on ``decode`` leaves these tokens out, and text in which they are written does not become them.

    objects: what else is said of some of them, as configs write a token: {"content": "<mask>", "lstrip": true}. A token
    of which the vocabulary itself says this is left as it is.
    """
    from tokenizers import AddedToken

    said = {entry.get("content"): entry for entry in objects if isinstance(entry.get("content"), str)}
    known = inner.get_added_tokens_decoder()
    plain = [inner.id_to_token(n) for n in sorted(ids) if n not in known or not known[n].special]
    tokens: list[AddedToken] = []
    for written in filter(None, plain):
        flags = {name: said.get(written, {}).get(name) is True for name in ("lstrip", "rstrip", "single_word")}
        tokens.append(AddedToken(written, special=True, normalized=False, **flags))
    if tokens:
        guarded(inner.add_special_tokens, tokens)


def written_form(value: Any, what: str) -> str | None:
    """A token as configs write it: its text, or an object with that text as ``content``."""
    content = value.get("content") if isinstance(value, dict) else value
    if content is not None and not isinstance(content, str):
        raise CheckpointError(f"{what} is {str(value)[:80]}", "it must be a token's written form")
    return content or None


def _items(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise CheckpointError(f"{what} is {str(value)[:80]}", "it must be a list of tokens")
    return value or []


def _numbers(value: Any, where: str) -> list[int]:
    """``eos_token_id`` is one number, a list of them, or null; some converters wrote -1 for none."""
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            raise CheckpointError(
                f"{where}: the token id {str(number)[:80]!r} is not a whole number", "correct the file"
            )
    return [number for number in numbers if number >= 0]


def _numbered(inner: tokenizers.Tokenizer, configs: Sequence[Mapping[str, Any]], name: str, where: str) -> int | None:
    """The role's id in a model's config, the first of several; None for one that is an ordinary token's.

    Some configs keep a default there, such as 0 for padding, which is "!" in GPT-2's vocabulary.
    """
    for config in configs:
        for number in _numbers(config.get(f"{name}_token_id"), where)[:1]:
            written = inner.id_to_token(number) if number < MAX_TOKENS else None
            known = inner.get_added_tokens_decoder().get(number)
            if written and (_BRACKETED.fullmatch(written) or (known is not None and known.special)):
                return number
    return None


def _never(configs: Sequence[Mapping[str, Any]], size: int, where: str) -> tuple[int, ...]:
    """Tokens that are not to be written, as the first config lists them that does."""
    listed = next((config[NEVER] for config in configs if config.get(NEVER) is not None), None)
    words = [_numbers(entry, f"{where}: {NEVER}") for entry in _items(listed, f"{where}: {NEVER}")]
    return tuple(sorted({word[0] for word in words if len(word) == 1 and word[0] < size}))


def _template(value: Any, where: str) -> str | None:
    """The chat template; of several, the one named default."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{where}: chat_template is {str(value)[:80]}", "it must be a text")
    return value
