"""``verify`` on real checkpoints: silent, and it asks all that they can answer."""

from __future__ import annotations

import pytest
from checkpoints import minilm, smollm2

import pellucid
from pellucid.nn.models import AnyModel
from pellucid.verify.run import verify

OF_TEXT = ("vocabulary", "unknown-ids", "round-trip", "special-text", "begin-end", "labels", "tied", "chat")


@pytest.fixture(scope="module")
def smol() -> AnyModel:
    return pellucid.load(smollm2())


@pytest.mark.slow
def test_a_chat_model_keeps_every_promise_about_text(smol: AnyModel) -> None:
    report = verify(smol, OF_TEXT)
    assert {finding.verdict for finding in report.findings} == {"pass"}, report.broken


def test_a_chat_model_that_would_go_on_is_found(smol: AnyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = smol.tokenizer.special["<|endoftext|>"]
    monkeypatch.setattr(smol.tokenizer, "stop_ids", (begin,))
    finding = verify(smol, ["chat-end"])["chat-end"]
    assert finding.verdict == "fail"
    assert "<|im_end|>" in finding.detail


@pytest.mark.parametrize("through", ["pellucid", pytest.param("transformers", marks=pytest.mark.slow)])
def test_an_encoder_keeps_every_promise(through: str) -> None:
    forward = ("padding", "batch", "deterministic", "bf16", "saved", "vocabulary", "unknown-ids", "round-trip")
    report = verify(minilm(), (*forward, "special-text", "begin-end"), through=through)
    assert report.broken == []
    left_out = {finding.check for finding in report.findings if finding.verdict == "not applicable"}
    assert left_out <= {"padding-left", "padding-middle"}, "BERT of transformers counts columns"
