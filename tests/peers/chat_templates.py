"""llama.cpp's real chat templates × conversations: our text against that of transformers' renderer; and nothing is lost
where every marker of a template is a special token that people may type.

Refused: we raise where the reference does not. Where both refuse a conversation, it counts as right.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _counts import Counts
from _llama_cpp import unpacked
from transformers.utils.chat_template_utils import render_jinja_template

from pellucid.errors import DataError
from pellucid.text.chat import ChatTemplate, encode_chat

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
BASE = 1 << 21  # ids of special tokens; below, those of single characters


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "Be brief.\n"}
HI, ANSWER, MORE = user("Who wrote <Faust>? & 'why'"), assistant("Goethe."), user("  naïve 漢字 {{ messages }}\n")
PARTS = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
PICTURE = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
CALL = {"type": "function", "id": "call12345", "function": {"name": "now", "arguments": {"zone": "UTC", "n": 2}}}
WRITTEN = {**CALL, "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
RESULT = {"role": "tool", "name": "now", "tool_call_id": "call12345", "content": '{"time": "12:00"}'}
PROPERTIES = {
    "zone": {"type": "string", "description": "where", "enum": ["UTC", "CET"]},
    "n": {"type": "integer"},
    "text": {"type": "object", "properties": {"content": {"type": "array", "items": {"type": "number"}}}},
}
PARAMETERS = {"type": "object", "required": ["zone"], "properties": PROPERTIES}
TOOL = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": PARAMETERS}}
THOUGHT = assistant("<think>\na secret\n</think>\n\nAn answer.")
TOOLS = {"tools": [TOOL]}
TALKS: dict[str, tuple[Sequence[dict[str, Any]], dict[str, Any]]] = {
    "a question": ([HI], {}),
    "no prompt": ([HI, ANSWER], {"add_generation_prompt": False}),
    "a system": ([SYSTEM, HI], {}),
    "turns": ([HI, ANSWER, MORE], {}),
    "a system and turns": ([SYSTEM, HI, ANSWER, MORE, ANSWER, HI], {}),
    "empty": ([user("")], {}),
    "spaces": ([user(" \n "), assistant("\n"), user("\t")], {}),
    "a system alone": ([SYSTEM], {}),
    "two users": ([HI, MORE], {}),
    "two answers": ([HI, ANSWER, ANSWER, MORE], {}),
    "an answer first": ([ANSWER, HI], {}),
    "a developer": ([{"role": "developer", "content": "Be brief."}, HI], {}),
    "a stranger": ([{"role": "narrator", "content": "It rains."}, HI], {}),
    "parts": ([user(PARTS)], {}),
    "parts everywhere": ([{"role": "system", "content": PARTS}, user(PARTS), assistant(PARTS), user(PARTS)], {}),
    "a picture": ([user(PICTURE)], {}),
    "reasoning beside": ([HI, assistant("Goethe.", reasoning_content="Marlowe? No."), MORE], {}),
    "reasoning called thinking": ([HI, assistant("Goethe.", thinking="Marlowe? No."), MORE], {}),
    "reasoning inside": ([HI, THOUGHT, MORE], {}),
    "reasoning last": ([HI, THOUGHT], {"add_generation_prompt": False}),
    "no thinking": ([HI], {"enable_thinking": False}),
    "thinking": ([HI, THOUGHT, MORE], {"enable_thinking": True, "thinking": True}),
    "effort": ([HI], {"reasoning_effort": "high"}),
    "tools": ([HI], TOOLS),
    "tools and a system": ([SYSTEM, HI, ANSWER, MORE], TOOLS),
    "a call": ([HI, assistant(None, tool_calls=[CALL])], {**TOOLS, "add_generation_prompt": False}),
    "a call and its result": ([HI, assistant("", tool_calls=[CALL]), RESULT], TOOLS),
    "a call of text": ([HI, assistant("", tool_calls=[WRITTEN]), RESULT, ANSWER, MORE], TOOLS),
    "two calls": ([HI, assistant("Wait.", tool_calls=[CALL, CALL]), RESULT, RESULT], TOOLS),
    "a call while thinking": ([HI, assistant("", reasoning_content="Hm.", tool_calls=[CALL]), RESULT], TOOLS),
    "documents": ([HI], {"documents": [{"title": "Faust", "text": "A play."}]}),
    "a date": ([HI], {"date_string": "26 Jul 2024"}),
}


def text_of(source: str, messages: Sequence[dict[str, Any]], given: dict[str, Any]) -> str | None:
    """What transformers writes; None where it refuses."""
    known = [{key: value for key, value in message.items() if value is not None} for message in messages]
    rest = {"add_generation_prompt": True, **NAMES, **given}
    try:
        return str(render_jinja_template([known], chat_template=source, **rest)[0][0])  # pyright: ignore[reportArgumentType]
    except Exception:
        return None


@dataclass(frozen=True)
class Letters:
    """A vocabulary of single characters, and of special tokens."""

    special: dict[str, int]
    chat_template: str | None = None

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def encode_marked(self, text: str) -> list[int]:
        words = sorted(self.special, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, words)) + ")", text)
        return [n for part in parts for n in ([self.special[part]] if part in self.special else self.encode(part))]

    def encode_between(self, texts: Sequence[str], special: Sequence[str]) -> list[int]:
        after = [
            n for word, text in zip(special, texts[1:], strict=True) for n in (self.special[word], *self.encode(text))
        ]
        return [*self.encode(texts[0]), *after]

    def written(self, ids: Sequence[int]) -> str:
        names = {number: word for word, number in self.special.items()}
        return "".join(names[n] if n in names else chr(n) for n in ids)


def marked(source: str) -> Letters:
    """Every marker that the template mentions is special, and <|endoftext|>, which holds "text"."""
    words = set(re.findall(r"<[|｜]?[\w/ ▁:.-]+[|｜]?>|\[/?[A-Z_]+\]", source)) - {"<Faust>"}
    return Letters(
        {word: BASE + n for n, word in enumerate(sorted({*words, *NAMES.values(), "<|endoftext|>", "<|image|>"}))}
    )


def main() -> int:
    texts, ids = Counts(), Counts()
    with tempfile.TemporaryDirectory() as folder:
        for path in unpacked("models/templates/", Path(folder)):
            if path.suffix == ".jinja":
                one_template(path.stem, path.read_text(), texts, ids)
    failed = texts.report(f"{len(texts.rows)} chat templates x {len(TALKS)} conversations, the text")
    return failed | ids.report("the same with every marker special, the text of the ids")


def one_template(name: str, source: str, texts: Counts, ids: Counts) -> None:
    template, vocabulary = ChatTemplate(source, NAMES), marked(source)
    for talk, (messages, given) in TALKS.items():
        right, got, read = text_of(source, messages, given), None, None
        try:
            got = template.render(messages, **given)
            read = vocabulary.written(encode_chat(vocabulary, messages, template=template, **given))
        except DataError as error:
            problem = str(error).splitlines()[0]
            if right is not None:
                (texts if got is None else ids).add(name, "refused", f"{talk}: {problem}")
                continue
        texts.add(name, "right" if got == right else "wrong", "" if got == right else f"{talk}: {right!r}, {got!r}")
        ids.add(name, "right" if read == right else "wrong", "" if read == right else f"{talk}: {right!r}, {read!r}")


if __name__ == "__main__":
    raise SystemExit(main())
