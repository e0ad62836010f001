"""Which tokens of a conversation are the model's to write.

A chat template says so itself where it has ``{% generation %}``. Of any other template, beginnings of the conversation
are rendered: before an answer, the template writes what the model reads, up to where it is to begin; with the answer,
what it should have written. Either way both are beginnings of the whole conversation, which is verified token by token,
so the answer is what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pellucid.errors import DataError
from pellucid.text.chat import ChatTemplate, Composed, Message, Vocabulary, compose, encode_chat

ASSISTANT = "assistant"


@dataclass(frozen=True, eq=False)
class Answered:
    """A conversation as ids, and for each of them whether the model is taught to write it.

    ended: how many of the answers have a token that ends them; left_out: how many answers are read only, as the
    template writes them in another way when others follow; marked: whether the template itself marks them.
    """

    ids: list[int]
    scored: list[bool]
    answers: int
    ended: int
    left_out: int
    marked: bool


def mark_answers(
    tokenizer: Vocabulary,
    messages: Sequence[Message],
    stop_ids: Sequence[int],
    template: ChatTemplate | None = None,
) -> Answered:
    """The conversation with its answers marked, each up to the token that ends it, that one included.

    What the template writes after that token is not the model's, unless it marks it so (``{% generation %}``).
    stop_ids: the tokens that end an answer. Raises DataError where the conversation has no answer, or the template
    writes none so that it can be told apart.
    """
    places = [place for place, message in enumerate(messages) if message.get("role") == ASSISTANT]
    if places[:1] == [0]:
        raise DataError("a conversation begins with the assistant", "begin it with what it answers to")
    whole = compose(tokenizer, messages, False, template)
    ids, stretches = whole.ids(tokenizer), dict(whole.marked())
    marked = any(end > begin for begin, end in stretches.items())
    bounds = _marked(whole, stretches, tokenizer) if marked else _rendered(tokenizer, messages, places, template)
    scored, answers, ended, left_out = [False] * len(ids), 0, 0, 0
    for before, until in bounds:
        if ids[: len(before)] != before or ids[: len(until)] != until or len(until) <= len(before):
            left_out += 1
            continue
        ends = [at for at in range(len(before), len(until)) if ids[at] in stop_ids]
        end = ends[-1] + 1 if ends and not marked else len(until)
        scored[len(before) : end] = [True] * (end - len(before))
        answers, ended = answers + 1, ended + bool(ends)
    if not answers:
        said = "no answer of the assistant" if not left_out else "no answer that the chat template writes by itself"
        raise DataError(f"a conversation has {said}", "give it a message of the role 'assistant'")
    return Answered(ids, scored, answers, ended, left_out, marked)


def _marked(
    whole: Composed, stretches: Mapping[int, int], tokenizer: Vocabulary
) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens before and until the end of each stretch that the template marks; those that touch are one."""
    ends = {begin: end for begin, end in stretches.items() if end > begin}
    for begin in sorted(ends.keys() - ends.values()):
        end = ends[begin]
        while end in ends:
            end = ends[end]
        yield whole.ids(tokenizer, begin), whole.ids(tokenizer, end)


def _rendered(
    tokenizer: Vocabulary, messages: Sequence[Message], places: Sequence[int], template: ChatTemplate | None
) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens before and until the end of each answer, of the beginnings of the conversation."""
    for place in places:
        before = encode_chat(tokenizer, messages[:place], True, template)
        yield before, encode_chat(tokenizer, messages[: place + 1], False, template)
