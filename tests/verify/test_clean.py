"""``verify`` is silent on clean models: nothing false is found in any kind or family, ours or theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import OURS, THEIRS, VOCAB
from torch.nn import functional as F

import pellucid
from pellucid.designs import design
from pellucid.verify.checks import all_checks
from pellucid.verify.open import open_subject
from pellucid.verify.reading import Reading
from pellucid.verify.run import verify

HERE = [name for name in all_checks() if name != "compiled"]  # that: in tests/compile


def broken(subject: Any) -> list[Any]:
    return verify(subject, HERE).broken


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_every_promise(name: str) -> None:
    assert broken(OURS[name]()) == []


@pytest.mark.parametrize("name", THEIRS)
def test_theirs_keep_every_promise(name: str) -> None:
    assert broken(THEIRS[name]()) == []


@pytest.mark.parametrize("name", THEIRS)
def test_so_do_theirs_opened_by_us(name: str, tmp_path: Path) -> None:
    THEIRS[name]().save_pretrained(tmp_path)
    report = verify(tmp_path, HERE, through="pellucid")
    assert report.broken == []
    assert report["padding-middle"].verdict == report["unknown-ids"].verdict == "pass", "it was ours that was asked"


def test_a_decoder_of_ours_is_asked_everything_that_needs_no_tokenizer() -> None:
    report = verify(OURS["modern"](), HERE)
    left_out = {finding.check for finding in report.findings if finding.verdict == "not applicable"}
    asked = ("future", "future-gradient", "padding-left", "padding-right", "padding-middle", "batch", "cache")
    asked = (*asked, "cache-ragged", "packing", "empty-rows", "greedy", "deterministic", "seeded")
    assert not left_out & set(asked)


def test_a_function_is_asked_what_it_can_answer_and_no_more() -> None:
    report = verify(lambda ids: F.one_hot(ids, VOCAB).float(), HERE)
    assert report.ok
    assert report["future"].verdict == report["batch"].verdict == "pass"
    for check in ("future-gradient", "padding-left", "cache", "packing", "greedy", "empty-rows"):
        assert report[check].verdict == "not applicable"
        assert report[check].detail, "with the reason"


def test_a_prefix_may_look_ahead_and_the_rest_may_not() -> None:
    model = OURS["prefix"]()
    asked = verify(model, ["future", "cache"])
    assert [asked[check].verdict for check in ("future", "future-gradient", "cache")] == ["pass"] * 3
    subject = open_subject(model)
    subject.prefix = 0  # a control: taken for an ordinary decoder, it is seen to look ahead
    control = verify(subject, ["future", "cache"])
    assert [control[check].verdict for check in ("future", "future-gradient", "cache")] == ["fail"] * 3


def test_a_context_too_short_to_try_is_said_and_not_called_kept() -> None:
    report = verify(pellucid.build(design("classic")(VOCAB, 8, 1, 16, 8)), ["future", "cache", "padding"])
    assert {finding.verdict for finding in report.findings} == {"not applicable"}
    assert "too few" in report["future"].detail


def test_the_model_is_left_as_it_was() -> None:
    model = OURS["modern"]()
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    verify(model, HERE)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_weights_that_are_bfloat16_already_excuse_as_much_rounding_as_others(name: str) -> None:
    model = OURS["modern"]() if name == "ours" else THEIRS["llama"]()
    whole = verify(model, ["bf16"])["bf16"]
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    stored = verify(model, ["bf16"])["bf16"]
    assert stored.verdict == "pass" and stored.tolerance is not None and whole.tolerance is not None
    assert 0.5 < stored.tolerance / whole.tolerance < 2


def test_the_token_of_padding_is_not_drawn_where_the_export_counts_no_position_at_it(tmp_path: Path) -> None:
    THEIRS["roberta"]().save_pretrained(tmp_path)
    subject = open_subject(tmp_path, through="pellucid")
    assert subject.pad_id == 1
    ids = torch.full((1, 6), 5)
    for pad, same in ((5, True), (1, False)):
        ids[0, 2] = pad
        there = subject.exports()["transformers"](tmp_path / str(pad))
        gap = (subject.run(Reading(ids)) - there.run(Reading(ids))).abs().max()
        assert (gap < 1e-4) == same, "a control: its positions move"
