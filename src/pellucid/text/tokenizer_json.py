"""A tokenizer.json read and taken apart; what one from a stranger may hold is in ``tokenizer_limits``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pellucid.errors import CheckpointError, DataError
from pellucid.files import parse_json
from pellucid.text.token_bytes import steps_of
from pellucid.text.tokenizer_limits import (
    check_added,
    check_config,
    check_ends,
    check_speed,
    guarded,
    is_panic,
)

if TYPE_CHECKING:
    import tokenizers

_REMEDY = "restore the file from a copy, or get it from another source"


def parse(text: str, where: str) -> tokenizers.Tokenizer:
    """The tokenizer that ``text``, a tokenizer.json, describes.

    Raises CheckpointError, naming ``where``, for what is not one, contradicts itself, or could take a text unbounded
    time or memory. No truncation, no padding.
    """
    return build(parse_json(text, where, CheckpointError), where, text)


def build(config: Any, where: str, text: str | None = None) -> tokenizers.Tokenizer:
    """``parse`` of JSON that is read already; ``text`` is its written form where there is one."""
    import tokenizers

    try:
        check_config(config)
        inner = guarded(tokenizers.Tokenizer.from_str, json.dumps(config) if text is None else text)
        inner.no_padding()
        inner.no_truncation()
        check_added(config, inner)
        check_ends(inner)
        check_speed(config, inner)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error.problem}", error.remedy or _REMEDY) from error
    except RecursionError as error:
        raise CheckpointError(f"{where} is not a tokenizer: its parts are nested too deeply", _REMEDY) from error
    return inner


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the library raises while it reads a text, bare or worse, into a DataError."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"the tokenizer cannot read this text: {error}", "change the text, or the tokenizer") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise DataError(f"the tokenizer gave up on this text: {error}", "change the text, or the tokenizer") from error


# --- parts of it that others need -------------------------------------------------------------------------------------

# What a step does to the beginning of a text only, switched off.
_INSIDE = {"prepend": "", "strip_left": False, "prepend_scheme": "never", "add_prefix_space": False}
# Spaces that a text begins with. (Strip takes more than spaces.)
LEADING, _NOWHERE = {"Regex": r"\A +"}, {"Regex": r"\A(?!)"}


def decoder_of(inner: tokenizers.Tokenizer) -> dict[str, Any] | None:
    """The decoder as a tokenizer.json has it."""
    return None if inner.decoder is None else json.loads(inner.decoder.__getstate__())


def without_beginning(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer for what stands inside a text: some put a space before the first word. Often the very same."""

    def change(step: dict[str, Any]) -> dict[str, Any]:
        pattern = {"pattern": _NOWHERE} if step.get("pattern") == LEADING else {}
        return pattern | {key: value for key, value in _INSIDE.items() if key in step}

    return _changed(inner, change)


def after_special(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer for what stands behind a special token, where most begin anew and some do not. Often the same."""
    return _changed(inner, lambda step: {"prepend_scheme": "never"} if step.get("prepend_scheme") == "first" else {})


def _changed(inner: tokenizers.Tokenizer, change: Callable[[dict[str, Any]], dict[str, Any]]) -> tokenizers.Tokenizer:
    """The tokenizer with fields of its steps changed; itself where none is."""
    import tokenizers

    config = json.loads(inner.to_str())
    before = json.dumps(config)
    for step in (*steps_of(config["normalizer"]), *steps_of(config["pre_tokenizer"])):
        step |= change(step)
    if json.dumps(config) == before:
        return inner
    changed = tokenizers.Tokenizer.from_str(json.dumps(config))
    changed.encode_special_tokens = True
    return changed


def around(before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A post_processor that puts tokens, each its written form and id, before and after a text (or each of two)."""

    def single(sequence: str, kind: int) -> list[dict[str, Any]]:
        ends = [[{"SpecialToken": {"id": written, "type_id": kind}} for written, _ in end] for end in (before, after)]
        return [*ends[0], {"Sequence": {"id": sequence, "type_id": kind}}, *ends[1]]

    return {
        "type": "TemplateProcessing",
        "single": single("A", 0),
        "pair": [*single("A", 0), *single("B", 1)],
        "special_tokens": {
            written: {"id": written, "ids": [number], "tokens": [written]} for written, number in (*before, *after)
        },
    }


def set_post_processor(inner: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Give ``inner`` the post_processor that a tokenizer.json would have as ``config``."""
    from tokenizers.processors import TemplateProcessing

    processor = TemplateProcessing()
    processor.__setstate__(json.dumps(config).encode())
    inner.post_processor = processor  # pyright: ignore[reportAttributeAccessIssue]
