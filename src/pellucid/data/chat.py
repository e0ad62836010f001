"""From a conversation to token ids: a chat template writes it as text, and only its own special tokens become ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pellucid.data.template import MAX_TEXT, render
from pellucid.errors import DataError, UsageError

Message: TypeAlias = Mapping[str, Any]  # {"role": "user", "content": "Hello"}; what else a template reads is passed on
_WRITTEN = {"content", "text", "reasoning_content"}  # keys of what people and models wrote, which templates compose
_PRIVATE = range(0xE000, 0xF900)  # characters that Unicode gives no meaning


@runtime_checkable
class Vocabulary(Protocol):
    """What this file needs of a tokenizer (``pellucid.data.tokenizer.Tokenizer``)."""

    @property
    def special(self) -> dict[str, int]: ...
    @property
    def chat_template(self) -> str | None: ...
    def encode_between(self, texts: Sequence[str], special: Sequence[str]) -> list[int]: ...
    def encode_marked(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template that writes a conversation as its model was taught to read it.

    special: what it may call the vocabulary's tokens, by name: {"bos_token": "<s>", "eos_token": "</s>"}.
    """

    source: str
    special: Mapping[str, str] = field(default_factory=dict[str, str])

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as text; ``add_generation_prompt`` ends it where the model is to begin its answer.

        variables: what else the template may read (``tools``, ``enable_thinking``, …), as JSON values. The text is that
        of ``transformers``' ``apply_chat_template``. Raises DataError for messages without role or content, and as
        ``pellucid.data.template.render`` does.
        """
        return self._fill({**variables, "messages": check(messages)}, add_generation_prompt)

    def _fill(self, given: Mapping[str, Any], add_generation_prompt: bool) -> str:
        nothing = {"tools": None, "documents": None}
        return render(self.source, {**nothing, **self.special, **given, "add_generation_prompt": add_generation_prompt})


def template_of(tokenizer: Vocabulary) -> ChatTemplate:
    """The tokenizer's own chat template. Raises UsageError where it has none."""
    if not tokenizer.chat_template:
        raise UsageError(
            "this model has no chat template: it continues texts, and was not taught to answer",
            "use `pellucid generate`, or give the template it was trained with (--template FILE)",
        )
    return ChatTemplate(tokenizer.chat_template, special_names(tokenizer))


def special_names(tokenizer: Vocabulary) -> dict[str, str]:
    """What templates call the tokenizer's special tokens: {"bos_token": "<s>", …}, those that it has."""
    written = {number: text for text, number in tokenizer.special.items()}
    ids = {name: getattr(tokenizer, f"{name}_id", None) for name in ("bos", "eos", "pad", "unk", "mask")}
    return {f"{name}_token": written[number] for name, number in ids.items() if number in written}


def check(messages: Sequence[Any]) -> list[Message]:
    """The messages, if each has a role and a content, as JSON values; raises DataError naming the one that has not."""
    if not messages:
        raise DataError("there are no messages", 'give at least one: {"role": "user", "content": "Hello"}')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"message {i} is {message!r:.80}", 'a message is {"role": "user", "content": "Hello"}')
        if not isinstance(message.get("role"), str):
            raise DataError(f"message {i} has no role", 'its role is "system", "user" or "assistant"')
        if "content" not in message and "tool_calls" not in message:
            raise DataError(f"message {i} has no content", 'give it a text: {"role": "user", "content": "Hello"}')
    try:
        size = len(json.dumps(messages, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the messages are not JSON values: {error}", "only texts, numbers, lists and dicts") from error
    if size > MAX_TEXT:
        raise DataError(f"the messages are {size:,} characters long; at most {MAX_TEXT:,}", "shorten them")
    return list(messages)


class _Words:
    """The special tokens' written forms, and how each is found: whole, begun, ended."""

    def __init__(self, special: tuple[str, ...]):
        words = sorted((word for word in special if word.strip()), key=len, reverse=True)
        self.found = re.compile("|".join(map(re.escape, words)) or r"(?!)")
        self.starts = re.compile(f"(?=({self.found.pattern}))", re.IGNORECASE)  # also of one inside another
        folded = [word.lower() for word in words]
        self.beginnings = tuple({word[:n].rstrip() for word in folded for n in range(1, len(word))} - {""})
        self.endings = tuple({word[n:].lstrip() for word in folded for n in range(1, len(word))} - {""})
        self.inside = "\0".join(folded)


_words = lru_cache(maxsize=4)(_Words)


class Disguise:
    """What people wrote, in a form that no part of can be taken for a special token, and back.

    Wherever a special token is written out, or its beginning or end stands where a template may complete it, one
    character is replaced by a private one that nobody used. Spaces stay, so that templates can trim; upper and lower
    case count as one, so that they can change it.
    """

    def __init__(self, special: Iterable[str], used: str):
        self.words = _words(tuple(special))
        self._free = (chr(code) for code in _PRIVATE if chr(code) not in used and f"\\u{code:04x}" not in used)
        self._mask_of: dict[str, str] = {}

    def _mask(self, char: str) -> str:
        if char not in self._mask_of:
            mask = next(self._free, None)
            if mask is None:
                raise DataError("the messages use every private character of Unicode", "remove some of them")
            self._mask_of[char] = mask
        return self._mask_of[char]

    def text(self, text: str, edges: bool) -> str:
        """``text`` in disguise; ``edges``: also where it ends like the beginning of a special token, and so on."""
        chars = list(text)
        for match in self.words.starts.finditer(text):
            word = match[1]
            place = match.start() + len(word) - len(word.lstrip())  # not a space: templates trim
            chars[place] = self._mask(text[place])
        bare = text.strip().lower()
        if edges and bare:
            first, last = len(text) - len(text.lstrip()), len(text.rstrip()) - 1
            if bare.startswith(self.words.endings):
                chars[first] = self._mask(text[first])
            if bare.endswith(self.words.beginnings) or bare in self.words.inside:
                chars[last] = self._mask(text[last])
        return "".join(chars)

    def value(self, value: Any, edges: bool = False) -> Any:
        """The same for every text in a JSON value; names of fields stay."""
        if isinstance(value, str):
            return self.text(value, edges)
        if isinstance(value, Mapping):
            return {key: self.value(item, edges or key in _WRITTEN) for key, item in value.items()}
        return [self.value(item, edges) for item in value] if isinstance(value, list | tuple) else value

    def undo(self, text: str) -> str:
        """The text as it was written, also where a template wrote it as ASCII JSON."""
        for char, mask in self._mask_of.items():
            text = text.replace(mask, char).replace(f"\\u{ord(mask):04x}", char)
        return text


def encode_chat(
    tokenizer: Vocabulary,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    template: ChatTemplate | None = None,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation, as ``template`` (default: the tokenizer's own) writes it.

    Special tokens that the template writes become their ids; those that somebody typed into a message stay text, so
    that nobody can end a turn or speak for the other side by typing. Nothing else is put around it: whether a
    begin-of-text token stands first is for the template to say, as for ``transformers``' ``apply_chat_template``, with
    which chat models are tuned. Raises UsageError without a template, and DataError as ``ChatTemplate.render`` does.
    """
    template = template_of(tokenizer) if template is None else template
    given = {**variables, "messages": check(messages)}
    try:
        used = template.source + json.dumps(given, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"what the template is given are not JSON values: {error}", "only JSON values") from error
    disguise = Disguise(tokenizer.special, used)
    written = template._fill(disguise.value(given), add_generation_prompt)  # pyright: ignore[reportPrivateUsage]
    return _encode(tokenizer, disguise, written)


def _encode(tokenizer: Vocabulary, disguise: Disguise, written: str) -> list[int]:
    plain, found = disguise.undo(written), disguise.words.found
    own = found.findall(written)
    if own == found.findall(plain):  # nobody typed one: the text can be encoded as a whole
        return tokenizer.encode_marked(plain)
    return tokenizer.encode_between([disguise.undo(text) for text in found.split(written)], own)
