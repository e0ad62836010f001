"""Faults of tokenizers and chat templates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from faults_base import Fault, of
from speakers import BEGIN, END, ROLES, TEMPLATE, TURNS, ours, their_tokenizer, theirs, vocabulary
from tokenizers import normalizers, pre_tokenizers, processors

from pellucid.text.chat import template_of
from pellucid.text.tokenizer import Tokenizer
from pellucid.verify import text
from pellucid.verify.hugging_face import HuggingFace

Patch = pytest.MonkeyPatch
Plant = Callable[[Any, Patch], Any]

# --- what is lost, and what is typed ---------------------------------------------------------------------------------


def eats_spaces(tokenizer: Any) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def strips(tokenizer: Any) -> None:
    tokenizer.normalizer = normalizers.Strip()


def lowers(tokenizer: Any) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def inside(change: Callable[[Any], None]) -> Plant:
    """A rule of the vocabulary is another."""

    def plant(model: Any, monkeypatch: Patch) -> Any:
        if isinstance(model, HuggingFace):
            inner = vocabulary()
            change(inner)
            return theirs(their_tokenizer(inner))
        change(model.tokenizer.inner)
        return None

    return plant


def decodes_tidily(model: Any, monkeypatch: Patch) -> None:
    """What is decoded is cleaned up."""
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: " ".join(decode(self, ids).split()))


def specials_in_text(model: Any, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Tokenizer, "encode", Tokenizer.encode_marked)


def their_specials_in_text(subject: HuggingFace, monkeypatch: Patch) -> None:
    """The library's own default."""
    inner = subject.tokenizer.inner
    encode = inner.encode
    monkeypatch.setattr(inner, "encode", lambda text, split_special_tokens=None, **how: encode(text, **how))


# --- what begins and ends --------------------------------------------------------------------------------------------


def begins_twice(model: Any, monkeypatch: Patch) -> None:
    monkeypatch.setattr(model.tokenizer, "_before", [0, 0])


def ends_before_the_answer(model: Any, monkeypatch: Patch) -> None:
    monkeypatch.setattr(model.tokenizer, "_after", [2])


def their_form(form: str) -> Plant:
    """What is put around a text is another."""

    def plant(subject: Any, monkeypatch: Patch) -> HuggingFace:
        inner = vocabulary()
        inner.post_processor = processors.TemplateProcessing(single=form, special_tokens=[(BEGIN, 0), (END, 2)])
        return theirs(their_tokenizer(inner))

    return plant


# --- conversations ---------------------------------------------------------------------------------------------------


def template(source: str) -> Plant:
    """Another chat template."""

    def plant(model: Any, monkeypatch: Patch) -> Any:
        if isinstance(model, HuggingFace):
            return theirs(their_tokenizer(template=source))
        return ours(replace(ROLES, chat_template=source))

    return plant


NO_PROMPT = "{{ bos_token }}" + TURNS
NO_SYSTEM = TEMPLATE.replace("in messages %}", "in messages if m['role'] != 'system' %}")
ALWAYS = "{{ bos_token }}" + TURNS + "<|start|>assistant\n"
LAST_ONLY = TEMPLATE.replace("in messages %}", "in messages[-1:] %}")
TWICE = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] }} {{ m['content'] }}")


def goes_on(model: Any, monkeypatch: Patch) -> Any:
    """Another token than the template's ends a text."""
    return ours(replace(ROLES, eos_id=0, stop_ids=(0,)))


def theirs_goes_on(subject: Any, monkeypatch: Patch) -> HuggingFace:
    tokenizer = their_tokenizer()
    tokenizer.eos_token = BEGIN
    broken = theirs(tokenizer)
    broken.model.generation_config.eos_token_id = 0
    return HuggingFace(broken.model, tokenizer=tokenizer)


def theirs_has_no_end(subject: Any, monkeypatch: Patch) -> HuggingFace:
    """The tokenizer's end of a text, but none in the generation config, which alone ``generate`` reads."""
    subject.model.generation_config.eos_token_id = None
    return HuggingFace(subject.model, tokenizer=their_tokenizer())


def begins_talks_twice(model: Any, monkeypatch: Patch) -> None:
    encode = text.encode_chat
    monkeypatch.setattr(text, "encode_chat", lambda tokenizer, *rest: [0, *encode(tokenizer, *rest)])


def written_then_read(model: Any, monkeypatch: Patch) -> None:
    """The whole conversation is encoded as a template's own words."""

    def naive(tokenizer: Any, messages: Any, add_generation_prompt: bool) -> list[int]:
        return tokenizer.encode_marked(template_of(tokenizer).render(messages, add_generation_prompt))

    monkeypatch.setattr(text, "encode_chat", naive)


def their_default(subject: HuggingFace, monkeypatch: Patch) -> None:
    apply = subject.tokenizer.inner.apply_chat_template

    def unclean(messages: Any, sanitize_control_tokens: bool = True, **how: Any) -> Any:
        return apply(messages, **how)

    monkeypatch.setattr(subject.tokenizer.inner, "apply_chat_template", unclean)


FAULTS: list[Fault] = [
    *of(
        "round-trip",
        ("spaces are eaten", ours, inside(eats_spaces)),
        ("the ends of a text are cut", ours, inside(strips)),
        ("capitals become small", ours, inside(lowers)),
        ("theirs makes capitals small", theirs, inside(lowers)),
        ("what is decoded is tidied", ours, decodes_tidily),
        ("theirs eats spaces", theirs, inside(eats_spaces)),
        ("theirs cuts the ends", theirs, inside(strips)),
    ),
    *of(
        "special-text",
        ("special tokens are read in text", ours, specials_in_text),
        ("theirs reads special tokens in text", theirs, their_specials_in_text),
    ),
    *of(
        "begin-end",
        ("a text begins twice", ours, begins_twice),
        ("a prompt ends", ours, ends_before_the_answer),
        ("a conversation begins twice", ours, begins_talks_twice),
        ("the template begins a text twice", ours, template("{{ bos_token }}" + TEMPLATE)),
        ("theirs begins a text twice", theirs, their_form(f"{BEGIN} {BEGIN} $A")),
        ("theirs ends a prompt", theirs, their_form(f"{BEGIN} $A {END}")),
        ("their template begins a text twice", theirs, template("{{ bos_token }}" + TEMPLATE)),
    ),
    *of(
        "chat-prompt",
        ("no generation prompt", ours, template(NO_PROMPT)),
        ("theirs, no generation prompt", theirs, template(NO_PROMPT)),
        ("an answer is asked for after an answer", ours, template(ALWAYS)),
        ("theirs asks for an answer after an answer", theirs, template(ALWAYS)),
    ),
    *of(
        "chat-messages",
        ("the system is not heard", ours, template(NO_SYSTEM)),
        ("only the last message is read", ours, template(LAST_ONLY)),
        ("every message is read twice", ours, template(TWICE)),
        ("theirs does not hear the system", theirs, template(NO_SYSTEM)),
    ),
    *of(
        "chat-end",
        ("an answer goes on", ours, goes_on),
        ("theirs goes on", theirs, theirs_goes_on),
        ("theirs has no end in its generation config", theirs, theirs_has_no_end),
    ),
    *of(
        "chat-typed",
        ("the conversation is read as a template", ours, written_then_read),
        ("theirs, by default", theirs, their_default),
    ),
]
