"""From a conversation to token ids: a chat template writes it as text, and only its own special tokens become ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pellucid.errors import DataError, UsageError
from pellucid.text.disguise import REASONING, Disguise
from pellucid.text.template import MAX_TEXT, render
from pellucid.text.tokenizer_roles import NAMES as ROLES

Message: TypeAlias = Mapping[str, Any]  # {"role": "user", "content": "Hello"}; what else a template reads is passed on


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
        return self.fill({**variables, "messages": check(messages)}, add_generation_prompt)

    def fill(
        self,
        given: Mapping[str, Any],
        add_generation_prompt: bool,
        sought: Mapping[str, str] | None = None,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        """``render`` of what is checked already; ``sought`` and ``marks`` as ``pellucid.text.template.render`` has."""
        nothing = {"tools": None, "documents": None}
        variables = {**nothing, **self.special, **given, "add_generation_prompt": add_generation_prompt}
        return render(self.source, variables, sought, marks)


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
    ids = {name: getattr(tokenizer, f"{name}_id", None) for name in ROLES}
    named = {f"{name}_token": written[number] for name, number in ids.items() if number in written}
    return named | dict(getattr(tokenizer, "names", {}))


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
    reasoning = next((given[name] for name in REASONING if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, REASONING[0]: reasoning}


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
    return compose(tokenizer, messages, add_generation_prompt, template, **variables).ids(tokenizer)


@dataclass(frozen=True, eq=False)
class Composed:
    """A conversation as its template wrote it.

    plain: the text. written: the same, with a disguise over what was typed. again: what the template writes with these
    marks before and behind what it marks as the model's (``{% generation %}``).
    """

    plain: str
    written: str
    disguise: Disguise
    again: Callable[[tuple[str, str]], str]

    def ids(self, tokenizer: Vocabulary, end: int | None = None) -> list[int]:
        """The tokens of all of it, or of the first ``end`` characters of ``written``."""
        written = self.written[:end]
        plain = self.plain if end is None else self.disguise.undo(written)
        between, own = self.disguise.words.split(written)
        if own == self.disguise.words.split(plain)[1]:  # nobody typed one: the text can be encoded as a whole
            return tokenizer.encode_marked(plain)
        return tokenizer.encode_between([self.disguise.undo(text) for text in between], own)

    def marked(self) -> list[tuple[int, int]]:
        """Where in ``written`` stands what the template marks as the model's: begin and end of each stretch.

        Empty where it marks nothing, or changes what it has marked so that places cannot be told.
        """
        begin, end = marks = self.disguise.spare(), self.disguise.spare()
        text, *parts = self.again(marks).split(begin)
        places: list[tuple[int, int]] = []
        for part in parts:
            inside, _, rest = part.partition(end)
            places.append((len(text), len(text) + len(inside)))
            text += inside + rest
        return places if text == self.written and self.disguise.undo(text) == self.plain else []


def compose(
    tokenizer: Vocabulary,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    template: ChatTemplate | None = None,
    **variables: Any,
) -> Composed:
    """The text that ``encode_chat`` encodes; raises as it does."""
    template = template_of(tokenizer) if template is None else template
    given = {**variables, "messages": check(messages)}
    try:
        used = template.source + json.dumps(given, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"what the template is given are not JSON values: {error}", "only JSON values") from error
    plain = template.fill(given, add_generation_prompt)
    disguise = Disguise(tokenizer.special, used)
    hidden = disguise.value(given)
    if hidden == given:
        return Composed(plain, plain, disguise, partial(template.fill, given, add_generation_prompt, None))
    failed: DataError | None = None
    found: list[Composed] = []
    # A template may look for a special token in a message, to take out earlier reasoning; then it has to look for it as
    # it is disguised.
    for sought in (disguise.sought(), {}):
        fill = partial(template.fill, hidden, add_generation_prompt, sought)
        try:
            found.append(Composed(plain, fill(), disguise, fill))
        except DataError as error:
            failed = error
            continue
        if disguise.undo(found[-1].written) == plain:
            break
    if not found and failed is not None:
        raise failed
    return found[-1]
