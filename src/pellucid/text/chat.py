"""From a conversation to token ids: a chat template writes it as text, and only its own special tokens become ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pellucid.errors import DataError, UsageError
from pellucid.text.template import MAX_TEXT, render

Message: TypeAlias = Mapping[str, Any]  # {"role": "user", "content": "Hello"}; what else a template reads is passed on
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which it is passed; templates read the first
_WRITTEN = {"content", "text", *_REASONING}  # keys of what people and models wrote, which templates compose
_MAX_WORK = 1 << 24  # characters of all beginnings and ends of special tokens; 65,536 speech tokens have 9 million
_OTHER = "use `pellucid generate`, or a copy of the vocabulary that its maker has published"
_PRIVATE = range(0xE000, 0xF900)  # characters that Unicode gives no meaning


@runtime_checkable
class Vocabulary(Protocol):
    """What this file needs of a tokenizer (``pellucid.text.tokenizer.Tokenizer``)."""

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
        ``pellucid.text.template.render`` does.
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
    """The messages as templates read them, if each has a role and a content, as JSON values.

    A field that is null is left out, since templates would write it as "None"; reasoning stands under the name that
    they read. Raises DataError naming the message that is none.
    """
    if not messages:
        raise DataError("there are no messages", 'give at least one: {"role": "user", "content": "Hello"}')
    checked = [_checked(message, i) for i, message in enumerate(messages)]
    try:
        size = len(json.dumps(checked, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the messages are not JSON values: {error}", "only texts, numbers, lists and dicts") from error
    if size > MAX_TEXT:
        raise DataError(f"the messages are {size:,} characters long; at most {MAX_TEXT:,}", "shorten them")
    return checked


def _checked(message: Any, place: int) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"message {place} is {message!r:.80}", 'a message is {"role": "user", "content": "Hello"}')
    given = {key: value for key, value in message.items() if value is not None}
    if not isinstance(given.get("role"), str):
        raise DataError(f"message {place} has no role", 'its role is "system", "user" or "assistant"')
    if "content" not in given and "tool_calls" not in given:
        raise DataError(f"message {place} has no content", 'give it a text: {"role": "user", "content": "Hello"}')
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, _REASONING[0]: reasoning}


class _Words:
    """The special tokens' written forms, and how each is found: whole, begun, ended."""

    def __init__(self, special: tuple[str, ...]):
        self.words = frozenset(word for word in special if word.strip())
        if sum(len(word) ** 2 for word in self.words) > _MAX_WORK:
            size = max(map(len, self.words))
            raise DataError(f"{len(self.words):,} special tokens of up to {size:,} characters are too many", _OTHER)
        self.folded = frozenset(word.casefold() for word in self.words)
        # some vocabularies have thousands: a text is looked at only where one may begin, once for each of their sizes
        self._sizes = sorted(set(map(len, self.words)), reverse=True)
        first = "".join(sorted({word[0] for word in self.words}))
        self._first = re.compile(f"[{re.escape(first)}]" if first else "(?!)", re.IGNORECASE)
        self.beginnings = tuple({word[:n].rstrip() for word in self.folded for n in range(1, len(word))} - {""})
        self.endings = tuple({word[n:].lstrip() for word in self.folded for n in range(1, len(word))} - {""})

    def spelled(self, text: str, exactly: bool = False) -> Iterator[tuple[int, str]]:
        """The longest word at each place of ``text``, overlaps too; cases are one, unless ``exactly``."""
        words, form = (self.words, str) if exactly else (self.folded, str.casefold)
        for place in (match.start() for match in self._first.finditer(text)):
            parts = (text[place : place + size] for size in self._sizes)
            if (word := next((part for part in parts if form(part) in words), None)) is not None:
                yield place, word

    def split(self, text: str) -> tuple[list[str], list[str]]:
        """What stands around the words of ``text``, one part more than words, and the words."""
        between, words, end = list[str](), list[str](), 0
        for place, word in self.spelled(text, exactly=True):
            if place >= end:
                between.append(text[end:place])
                words.append(word)
                end = place + len(word)
        return [*between, text[end:]], words


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
        for start, word in self.words.spelled(text):
            place = start + len(word) - len(word.lstrip())  # not a space: templates trim
            chars[place] = self._mask(text[place])
        bare = text.strip().casefold()
        if edges and bare:
            first, last = len(text) - len(text.lstrip()), len(text.rstrip()) - 1
            if bare.startswith(self.words.endings):
                chars[first] = self._mask(text[first])
            if bare.endswith(self.words.beginnings) or any(bare in word for word in self.words.folded):
                chars[last] = self._mask(text[last])
        return "".join(chars)

    def value(self, value: Any, edges: bool = False) -> Any:
        """The same for every text in a JSON value, names of fields included: in a tool's, somebody may have typed."""
        if isinstance(value, str):
            return self.text(value, edges)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item, edges or key in _WRITTEN) for key, item in value.items()}
        return [self.value(item, edges) for item in value] if isinstance(value, list | tuple) else value

    def undo(self, text: str) -> str:
        """The text as it was written, also where a template wrote it as ASCII JSON."""
        for char, mask in self._mask_of.items():
            text = text.replace(mask, char).replace(f"\\u{ord(mask):04x}", json.dumps(char)[1:-1])
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
    plain = disguise.undo(written)
    between, own = disguise.words.split(written)
    if own == disguise.words.split(plain)[1]:  # nobody typed one: the text can be encoded as a whole
        return tokenizer.encode_marked(plain)
    return tokenizer.encode_between([disguise.undo(text) for text in between], own)
