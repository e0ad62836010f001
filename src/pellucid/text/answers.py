"""Which tokens of a conversation are the model's to write, found by rendering its beginnings with the chat template.

Before an answer, the template writes what the model reads, up to where it is to begin; with the answer, what it should
have written. Both are beginnings of the whole conversation, token by token, so the answer is what lies between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.errors import DataError
from pellucid.text.chat import ChatTemplate, Message, Vocabulary, encode_chat

ASSISTANT = "assistant"


@dataclass(frozen=True, eq=False)
class Answered:
    """A conversation as ids, and for each of them whether the model is taught to write it.

    ended: how many of the answers have a token that ends them; left_out: how many answers are read only, as the
    template writes them in another way when others follow.
    """

    ids: list[int]
    scored: list[bool]
    answers: int
    ended: int
    left_out: int


def mark_answers(
    tokenizer: Vocabulary,
    messages: Sequence[Message],
    stop_ids: Sequence[int],
    template: ChatTemplate | None = None,
) -> Answered:
    """The conversation with its answers marked, each up to the token that ends it, that one included.

    What the template writes after that token is not the model's. stop_ids: the tokens that end an answer. Raises
    DataError where the conversation has no answer, or the template writes none so that it can be told apart.
    """
    ids = encode_chat(tokenizer, messages, False, template)
    scored, answers, ended, left_out = [False] * len(ids), 0, 0, 0
    for place, message in enumerate(messages):
        if message.get("role") != ASSISTANT:
            continue
        if place == 0:
            raise DataError("a conversation begins with the assistant", "begin it with what it answers to")
        before = encode_chat(tokenizer, messages[:place], True, template)
        until = encode_chat(tokenizer, messages[: place + 1], False, template)
        if ids[: len(before)] != before or ids[: len(until)] != until or len(until) <= len(before):
            left_out += 1
            continue
        ends = [at for at in range(len(before), len(until)) if ids[at] in stop_ids]
        end = ends[-1] + 1 if ends else len(until)
        scored[len(before) : end] = [True] * (end - len(before))
        answers, ended = answers + 1, ended + bool(ends)
    if not answers:
        said = "no answer of the assistant" if not left_out else "no answer that the chat template writes by itself"
        raise DataError(f"a conversation has {said}", "give it a message of the role 'assistant'")
    return Answered(ids, scored, answers, ended, left_out)
