"""The questions about text: silent on clean tokenizers, and nothing is left out where all can be asked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from speakers import ROLES, TEMPLATE, ours, their_tokenizer, theirs, vocabulary
from subjects import bert, decoder
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

import pellucid
from pellucid.text import template as template_process
from pellucid.verify.checks.precision import apart
from pellucid.verify.hugging_face import HuggingFace
from pellucid.verify.run import verify
from pellucid.verify.text import folds, keeps_start, keeps_text

OF_TEXT = ("vocabulary", "round-trip", "special-text", "begin-end", "chat")


@pytest.mark.parametrize("make", [ours, theirs], ids=["ours", "theirs"])
def test_a_clean_chat_model_passes_every_check_of_text(make: object) -> None:
    report = verify(make(), OF_TEXT)  # type: ignore[operator]
    assert {finding.verdict for finding in report.findings} == {"pass"}, report.findings
    assert len(report.findings) == 8


def test_without_a_tokenizer_nothing_is_taken_for_kept() -> None:
    for subject in (decoder(), bert()):
        report = verify(subject, OF_TEXT)
        assert {finding.verdict for finding in report.findings} == {"not applicable"}
        assert all(finding.detail for finding in report.findings)


def test_without_a_chat_template_there_is_no_conversation() -> None:
    report = verify(ours(replace(ROLES, chat_template=None)), OF_TEXT)
    verdicts = {finding.check: finding.verdict for finding in report.findings}
    assert verdicts["round-trip"] == verdicts["begin-end"] == "pass"
    assert {verdict for check, verdict in verdicts.items() if "chat" in check} == {"not applicable"}


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('there is none') }}{% endif %}" + TEMPLATE,
        TEMPLATE.replace("<|start|>assistant\n{%", "<|start|>assistant\n<think>\n{%"),
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [A]"
        "{% elif m.role == 'assistant' %} {{ m.content }}<|end|>{% else %}{{ m.content }} {% endif %}{% endfor %}",
    ],
    ids=["the system is refused", "it thinks first", "no generation prompt is needed"],
)
def test_templates_that_are_otherwise_and_right(template: str) -> None:
    assert verify(ours(replace(ROLES, chat_template=template)), ["chat"]).broken == []
    assert verify(theirs(their_tokenizer(template=template)), ["chat"]).broken == []


def test_a_tokenizer_given_beside_an_object_is_asked_too() -> None:
    subject = theirs()
    report = verify(subject.model, ["round-trip"], tokenizer=subject.tokenizer.inner)
    assert report["round-trip"].verdict == "pass"
    assert isinstance(subject, HuggingFace)


def test_a_template_that_takes_too_long_ends_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs would render it in this process, for as long as it takes."""
    monkeypatch.setattr(template_process, "SECONDS", 0.1)
    loops = "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}"
    found = verify(theirs(their_tokenizer(template=loops)), ["chat-prompt"])["chat-prompt"]
    assert found.verdict == "error" and "did not finish" in found.detail


def test_who_owes_a_text_back() -> None:
    inner = vocabulary()
    assert keeps_text(inner.to_str())
    inner.normalizer = normalizers.Sequence([normalizers.NFC()])
    assert keeps_text(inner.to_str())
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    assert not keeps_text(inner.to_str())
    words = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    assert not keeps_text(words.to_str())


def test_letters_that_a_tokenizer_does_not_know_are_lost_but_no_special_token_was_typed() -> None:
    inner = vocabulary()
    plan = json.loads(inner.to_str())
    plan["model"]["vocab"] = {word: n for word, n in plan["model"]["vocab"].items() if "<" not in word}
    plan["model"]["merges"] = [pair for pair in plan["model"]["merges"] if not any("<" in word for word in pair)]
    report = verify(theirs(their_tokenizer(Tokenizer.from_str(json.dumps(plan)))), ["special-text"])
    assert report["special-text"].verdict == "pass"


def test_a_space_that_is_put_in_front_may_take_the_place_of_one() -> None:
    inner = vocabulary()
    assert keeps_start(inner.to_str())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not keeps_start(inner.to_str())
    assert verify(theirs(their_tokenizer(inner)), ["round-trip"])["round-trip"].verdict == "pass"


def test_model_that_only_reads_may_lower_case() -> None:
    inner = vocabulary()
    inner.normalizer = normalizers.Lowercase()
    assert folds(inner.to_str()) and not folds(vocabulary().to_str())
    model = bert()
    assert verify(HuggingFace(model, tokenizer=their_tokenizer(inner)), ["round-trip"])["round-trip"].verdict == "pass"
    assert verify(theirs(their_tokenizer(inner)), ["round-trip"])["round-trip"].verdict == "fail"


def test_turns_without_a_name_ask_nobody() -> None:
    template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    assert verify(ours(replace(ROLES, chat_template=template)), ["chat"]).broken == []


def test_distance_is_of_the_spread() -> None:
    outputs = torch.randn(3, 5, 400, generator=torch.Generator().manual_seed(0))
    assert apart(outputs, outputs) == 0.0
    assert apart(outputs + 7, outputs) == pytest.approx(0.0, abs=1e-6), "no probability has changed"
    noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    assert apart(outputs - 100 + 0.1 * noise, outputs - 100) == pytest.approx(0.1, rel=0.05)
    assert not apart(outputs * torch.nan, outputs) <= 1.0


def test_a_token_that_is_never_written_may_be_the_likeliest() -> None:
    """As Marian's padding is: that generation passes over it is no fault, and how likely others are is still seen."""
    plain = ours()
    likeliest = {n for one in pellucid.generate(plain, "a", max_new_tokens=8, ignore_eos=True) for n in one.ids}
    model = ours(replace(ROLES, never_ids=tuple(likeliest)))
    (written,) = pellucid.generate(model, "a", max_new_tokens=8, ignore_eos=True)
    assert likeliest.isdisjoint(written.ids)
    assert verify(model, ["greedy"]).broken == []
