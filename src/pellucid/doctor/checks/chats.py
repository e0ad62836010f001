"""Conversations and the template that writes them: nothing lost, nothing smuggled in, an end, the same beginning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.doctor.checks import Check
from pellucid.doctor.report import Complaint, number_of
from pellucid.doctor.subject import Chat, Subject, Template, Vocabulary
from pellucid.errors import PellucidError

FAILURES = (PellucidError, ValueError, TypeError, KeyError)  # what a template raises of a conversation
HARMLESS = "x"


def smuggled(subject: Subject) -> Complaint | None:
    """What somebody typed became a special token."""
    assert subject.vocabulary is not None and subject.template is not None
    typed: list[str] = []
    for chat in subject.chats:
        words = [word for word in subject.vocabulary.special if any(word in text for text in _contents(chat.messages))]
        if not words:
            continue
        try:
            plain = Counter(subject.template.ids([_with(message, HARMLESS) for message in chat.messages], False))
        except FAILURES:
            continue
        counts = Counter(chat.ids)
        typed += [word for word in words if counts[(number := subject.vocabulary.special[word])] > plain[number]][:1]
    if not typed:
        return None
    said = f"in {number_of(len(typed), len(subject.chats), 'conversations')} somebody typed {typed[0]}"
    said += ", and it is read as that token"
    return Complaint("refuse", said, "encode what people typed apart from the template, without special tokens")


def lost(subject: Subject) -> Complaint | None:
    """A message that the template does not write."""
    assert subject.template is not None
    missing: Counter[str] = Counter()
    for chat in subject.chats:
        try:
            written = _plain(subject.template.text(chat.messages, False))
        except FAILURES:
            continue
        missing.update(
            {str(m["role"]) for m in chat.messages if m.get("role") in ("system", "user") and not _said(m, written)}
        )
    if not missing:
        return None
    role, n = missing.most_common(1)[0]
    said = f"in {number_of(n, len(subject.chats), 'conversations')} the template leaves out a message of the {role}"
    return Complaint("refuse", said, "give messages in the form that the template reads, or another template")


def refused(subject: Subject) -> Complaint | None:
    """Conversations that the template does not take."""
    assert subject.template is not None
    said: list[str] = []
    for chat in subject.chats:
        try:
            subject.template.text(chat.messages, False)
        except FAILURES as error:
            said.append(str(error).splitlines()[0])
    if not said:
        return None
    problem = f"the template refuses {number_of(len(said), len(subject.chats), 'conversations')}: {said[0]}"
    return Complaint("refuse", problem, "give conversations in the form that it wants")


def no_end(subject: Subject) -> Complaint | None:
    """The template ends an answer without a token that stops the model."""
    assert subject.vocabulary is not None and subject.template is not None
    found = _skeleton(subject.chats, subject.template)
    if found is None or not subject.vocabulary.ends:
        return None
    messages, before, until = found
    rest = until[len(before) :]
    if any(number in subject.vocabulary.ends for number in rest):
        return None
    written = subject.template.text(messages, False).rpartition(str(messages[-1]["content"]))[2].strip()
    ends = ", ".join(_name(subject.vocabulary, number) for number in sorted(subject.vocabulary.ends)[:3])
    said = f"the template ends an answer with {written!r:.40}, which is not the token that stops the model ({ends})"
    return Complaint("warn", said, "name that token as the end (eos_token), or use the tokenizer of the template")


def other_beginning(subject: Subject) -> Complaint | None:
    """An answer begins otherwise when the model is to write it than it does in training."""
    assert subject.template is not None
    looked, other = 0, 0
    for chat in subject.chats:
        if not (answers := [i for i, m in enumerate(chat.messages) if m.get("role") == "assistant" and i]):
            continue
        place = answers[-1]
        try:
            asked = subject.template.ids(chat.messages[:place], True)
            whole = subject.template.ids(chat.messages[: place + 1], False)
        except FAILURES:
            continue
        looked += 1
        other += whole[: len(asked)] != asked
    if other <= looked / 2:
        return None
    said = (
        f"in {number_of(other, looked, 'conversations')} the answer begins otherwise than where the model is to write"
    )
    return Complaint("warn", said, "use one template for both, which knows add_generation_prompt")


def _skeleton(chats: Sequence[Chat], template: Template) -> tuple[list[dict[str, Any]], list[int], list[int]] | None:
    """A question and an answer, the tokens up to the answer, and with it."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        return messages, template.ids(messages[:1], True), template.ids(messages, False)
    except FAILURES:
        return None


def _contents(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [content for message in messages if isinstance(content := message.get("content"), str)]


def _with(message: Mapping[str, Any], content: str) -> dict[str, Any]:
    return {**message, "content": content} if isinstance(message.get("content"), str) else dict(message)


def _said(message: Mapping[str, Any], written: str) -> bool:
    content = message.get("content")
    return not isinstance(content, str) or _plain(content) in written


def _plain(text: str) -> str:
    return "".join(text.split())


def _name(vocabulary: Vocabulary, number: int) -> str:
    return {each: text for text, each in vocabulary.special.items()}.get(number, str(number))


CHECKS: Sequence[Check] = (
    Check("template-refuses", "does the template take every conversation?", refused, ("chats", "template")),
    Check("template-loses", "does the template write every message?", lost, ("chats", "template")),
    Check("typed-special", "does what people type stay text?", smuggled, ("chats", "template", "vocabulary")),
    Check("template-end", "does an answer end with a token that stops?", no_end, ("chats", "template", "vocabulary")),
    Check("template-beginning", "do answers begin as they are asked for?", other_beginning, ("chats", "template")),
)
