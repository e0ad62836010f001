"""Conversations from files: OpenAI's messages, ShareGPT's turns and Alpaca's columns, recognised by their keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pellucid.data.text_files import lines
from pellucid.errors import DataError
from pellucid.text.chat import Message, check

KINDS = {
    "messages": "OpenAI's messages",
    "conversations": "ShareGPT's conversations",
    "instruction": "Alpaca's instruction, input and output",
}
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    **{"system": "system", "tool": "tool"},
}


@dataclass(frozen=True, eq=False)
class Conversations:
    """What files hold. kind: how it was recognised, in words; duplicates: how many conversations came before."""

    messages: list[list[Message]]
    kind: str
    duplicates: int


def read_conversations(files: Sequence[str]) -> Conversations:
    """All conversations of JSONL files, in their order, each once.

    Raises DataError, with file and line, for what is no conversation, has another form than the first one, begins with
    the assistant, or has no answer, or an empty one.
    """
    found: list[list[Message]] = []
    seen: set[str] = set()
    kind, duplicates = "", 0
    for file in files:
        for number, line in lines(file):
            where = f"{file} line {number}"
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is no JSON: {error}", "every line is one conversation") from error
            here = _kind(row, where)
            if kind and here != kind:
                raise DataError(f"{where} has {KINDS[here]}, but the first line {KINDS[kind]}", "give one form a run")
            kind = here
            try:
                messages = check(_messages(cast("Mapping[str, Any]", row), kind, where))
            except DataError as error:
                problem = error.problem if where in error.problem else f"{where}: {error.problem}"
                raise DataError(problem, error.remedy) from error
            _refuse_unanswered(messages, where)
            key = json.dumps(messages, sort_keys=True)
            if key in seen:
                duplicates += 1
            else:
                seen.add(key)
                found.append(messages)
    if not found:
        raise DataError(f"{', '.join(files[:3])} holds no conversation", "every line is one conversation, as JSON")
    return Conversations(found, KINDS[kind], duplicates)


def _kind(row: Any, where: str) -> str:
    keys = cast("Mapping[str, Any]", row) if isinstance(row, dict) else {}
    for kind in KINDS:
        if kind in keys:
            return kind
    has = f"the keys {', '.join(map(str, list(keys)[:6]))}" if keys else f"{json.dumps(row):.40}"
    raise DataError(f"{where} is no conversation: it has {has}", "give messages, conversations or instruction")


def _messages(row: Mapping[str, Any], kind: str, where: str) -> list[Any]:
    if kind == "instruction":
        given = {name: row.get(name) or "" for name in ("system", "instruction", "input", "output")}
        for name, value in given.items():
            if not isinstance(value, str):
                raise DataError(f"{where}: {name} is no text", "Alpaca's columns are texts")
        asked = "\n\n".join(part for part in (given["instruction"], given["input"]) if part)
        system = [{"role": "system", "content": given["system"]}] if given["system"] else []
        return [*system, {"role": "user", "content": asked}, {"role": "assistant", "content": given["output"]}]
    turns = row[kind]
    if not isinstance(turns, list):
        raise DataError(f"{where}: {kind} is no list", "it is a list of messages")
    if kind == "messages":
        return cast("list[Any]", turns)
    return [_turn(turn, where) for turn in cast("list[Any]", turns)]


def _turn(turn: Any, where: str) -> Any:
    """ShareGPT's {"from": "human", "value": …} as a message; some of its files have messages."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    said = cast("Mapping[str, Any]", turn)
    if said["from"] not in SPEAKERS:
        raise DataError(f"{where}: {said['from']!r:.40} speaks", f"known are {', '.join(SPEAKERS)}")
    return {"role": SPEAKERS[said["from"]], "content": said.get("value")}


def _refuse_unanswered(messages: Sequence[Message], where: str) -> None:
    roles = [message["role"] for message in messages]
    spoken = [role for role in roles if role != "system"]
    if spoken[:1] == ["assistant"]:
        raise DataError(f"{where} begins with the assistant", "begin a conversation with what it answers to")
    if "assistant" not in roles:
        raise DataError(f"{where} has no answer of the assistant", "there is nothing to learn in it: take it out")
    for place, message in enumerate(messages):
        content: Any = message.get("content")
        if message["role"] == "assistant" and "tool_calls" not in message and not (content and str(content).strip()):
            raise DataError(f"{where}: message {place}, an answer, is empty", "take it out")


def split_conversations(
    conversations: Sequence[list[Message]], fraction: float, seed: int
) -> tuple[list[list[Message]], list[list[Message]]]:
    """(training, validation): about ``fraction`` is held out, at least one, drawn by a hash of (seed, what is asked
    first), so that no question is on both sides. Raises DataError where nothing is left to train on."""
    parts: tuple[list[list[Message]], list[list[Message]]] = ([], [])
    by_share: list[tuple[int, list[Message]]] = []
    for messages in conversations:
        asked = next((message for message in messages if message["role"] == "user"), messages[0])
        digest = hashlib.sha256(f"{seed}:{json.dumps(asked, sort_keys=True)}".encode()).digest()
        by_share.append((int.from_bytes(digest[:8], "big"), messages))
    least = min(share for share, _ in by_share)
    for share, messages in by_share:
        parts[share < fraction * 2**64 or (fraction > 0 and share == least)].append(messages)
    if not parts[0]:
        raise DataError("every conversation is held out", "give more of them, or hold out fewer")
    return parts
