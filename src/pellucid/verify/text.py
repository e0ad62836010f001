"""What a check may ask of a tokenizer, whoever made it; ``OurSpeller`` asks one of pellucid's."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from pellucid.text.chat import encode_chat, template_of
from pellucid.text.tokenizer import Tokenizer
from pellucid.verify.subject import NotApplicable, Subject

Messages = Sequence[Mapping[str, Any]]  # {"role": "user", "content": "Hello"}
FOLDERS = {"Lowercase", "StripAccents", "BertNormalizer"}  # one letter for several: what was meant is lost
REWRITERS = FOLDERS | {"NFD", "NFKD", "NFKC", "Precompiled", "Nmt"}


@runtime_checkable  # for the tests, which check annotations as they run
class Speller(Protocol):
    """Text to ids and back.

    special: the written form of each special token, and its id. stop_ids: any of them ends what a model writes.
    keeps_text: it can spell every byte and is not made to change letters, so it owes every text back. keeps_start: it
    puts no space in front of a text, so it owes spaces back that stand there. folds: it could spell every text, but
    makes capitals small or takes accents away. chat_template: its source, None where
    there is none. Ids that do not exist are None.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    stop_ids: Collection[int]
    special: Mapping[str, int]
    keeps_text: bool
    keeps_start: bool
    folds: bool
    chat_template: str | None

    def encode(self, text: str) -> list[int]:
        """Text alone: a special token written out in it stays text."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text, begun as the model expects one to begin."""
        ...

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a rendered template: special tokens written out become their ids, and no BOS is added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out."""
        ...

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The chat template, filled in. It may refuse a conversation by raising whatever its maker raises."""
        ...

    def conversation(self, messages: Messages, add_generation_prompt: bool) -> list[int]:
        """Ids of a conversation of which users wrote a part. Raises NotApplicable where that cannot be kept apart."""
        ...


class OurSpeller:
    """A tokenizer of ours."""

    def __init__(self, tokenizer: Tokenizer):
        self.inner = tokenizer
        self.vocab_size, self.special = tokenizer.vocab_size, tokenizer.special
        self.bos_id, self.eos_id, self.unk_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id
        self.stop_ids, self.chat_template = tokenizer.stop_ids, tokenizer.chat_template
        description = json.dumps(tokenizer.as_json())
        self.keeps_text, self.keeps_start = keeps_text(description), keeps_start(description)
        self.folds = folds(description)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        return self.inner.encode_prompt(text)

    def encode_marked(self, text: str) -> list[int]:
        return self.inner.encode_marked(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids)

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        return template_of(self.inner).render(messages, add_generation_prompt)

    def conversation(self, messages: Messages, add_generation_prompt: bool) -> list[int]:
        return encode_chat(self.inner, messages, add_generation_prompt)


def keeps_text(description: str) -> bool:
    """Whether the JSON of a ``tokenizers.Tokenizer`` has a token for every byte, and no rule that changes letters."""
    plan = json.loads(description)
    return _spells_bytes(plan) and not REWRITERS & _kinds(plan.get("normalizer"))


def folds(description: str) -> bool:
    """Whether it has a token for every byte, and a rule that makes one letter of several."""
    plan = json.loads(description)
    return _spells_bytes(plan) and bool(FOLDERS & _kinds(plan.get("normalizer")))


def _spells_bytes(plan: Any) -> bool:
    return "ByteLevel" in _kinds(plan.get("decoder")) or plan["model"].get("byte_fallback") is True


def keeps_start(description: str) -> bool:
    """Whether it puts no space in front of a text, which cannot be told from one that stood there."""
    plan = json.loads(description)
    parts = [*_parts(plan.get("normalizer")), *_parts(plan.get("pre_tokenizer"))]
    adds = {"Prepend": "prepend", "Metaspace": "prepend_scheme", "ByteLevel": "add_prefix_space"}
    return not any(part.get(adds.get(part.get("type", ""), "")) not in (None, False, "never") for part in parts)


def _kinds(part: Any) -> set[str]:
    """The type of a part of a tokenizer, and of the parts in it."""
    return {inside.get("type", "") for inside in _parts(part)}


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer, and the parts in it."""
    if isinstance(part, dict):
        yield part
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for each in inside:
        yield from _parts(each)


def speller_of(subject: Subject) -> Speller:
    """Raises NotApplicable where it has no tokenizer."""
    if subject.tokenizer is None:
        raise NotApplicable(f"{subject.name} has no tokenizer")
    return subject.tokenizer


def talker_of(subject: Subject) -> Speller:
    """Raises NotApplicable where it has no chat template."""
    speller = speller_of(subject)
    if not speller.chat_template:
        raise NotApplicable(f"{subject.name} has no chat template")
    return speller
