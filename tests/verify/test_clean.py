"""``verify`` is silent on clean models: nothing false is found in any kind or family, ours or theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from some import some_of
from subjects import CONTEXT, GROUPED, LONGER, OURS, SIZES, THEIRS, VOCAB, WIDTH, t5
from torch.nn import functional as F

import pellucid
from pellucid.designs import design
from pellucid.errors import UsageError
from pellucid.verify.checks import all_checks
from pellucid.verify.open import open_subject
from pellucid.verify.reading import Reading
from pellucid.verify.run import verify
from pellucid.verify.subject import Subject

FEW: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
HERE = [name for name in all_checks() if name != "compiled"]  # that: in tests/compile
# One model of each kind; `make test-all` tries them all.
OUR_KINDS = {"modern", "moe", "window", "hybrid", "gated", "lstm", "own-prefix", "encoder", "encoder and decoder"}
THEIR_KINDS = {"bert", "gemma3", "llama", "marian", "mixtral", "t5"}


def broken(subject: Any) -> list[Any]:
    return verify(subject, HERE).broken


@pytest.mark.parametrize("name", some_of(OURS, OUR_KINDS))
def test_models_of_pellucid_keep_every_promise(name: str) -> None:
    assert broken(OURS[name]()) == []


@pytest.mark.parametrize("name", some_of(THEIRS, THEIR_KINDS))
def test_models_of_transformers_keep_every_promise(name: str) -> None:
    assert broken(THEIRS[name]()) == []


@pytest.mark.parametrize("name", some_of(THEIRS, THEIR_KINDS))
def test_models_of_transformers_opened_by_pellucid_keep_every_promise(name: str, tmp_path: Path) -> None:
    THEIRS[name]().save_pretrained(tmp_path)
    report = verify(tmp_path, HERE, through="pellucid")
    assert report.broken == []
    assert report["padding-middle"].verdict == report["unknown-ids"].verdict == "pass", "it was ours that was asked"


RELATIVE: dict[str, Any] = SIZES | {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
}  # fmt: skip
TEN_TOKENS: dict[str, Any] = GROUPED | {"max_position_embeddings": 10}
HEADS: dict[str, Any] = {
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**FEW, ffn_dim=48, word_embed_proj_dim=WIDTH)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**FEW)),
    "xglm": lambda: hf.XGLMForCausalLM(
        hf.XGLMConfig(vocab_size=VOCAB, d_model=WIDTH, num_layers=2, attention_heads=4, ffn_dim=48)
    ),
    "gpt-neo, local": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            window_size=5, max_position_embeddings=CONTEXT,
        )
    ),
    "mpnet": lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**LONGER)),
    "deberta, relative": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**RELATIVE)),
    "xlnet": lambda: hf.XLNetLMHeadModel(
        hf.XLNetConfig(vocab_size=VOCAB, d_model=WIDTH, n_layer=2, n_head=4, d_inner=48)
    ),
    "bert, answers": lambda: hf.BertForQuestionAnswering(hf.BertConfig(**SIZES)),
    "bert, before training": lambda: hf.BertForPreTraining(hf.BertConfig(**SIZES)),
    "bert, next sentence": lambda: hf.BertForNextSentencePrediction(hf.BertConfig(**SIZES)),
    "electra, a number a token": lambda: hf.ElectraForPreTraining(hf.ElectraConfig(**SIZES, embedding_size=16)),
    "llama, ten tokens": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEN_TOKENS)),
    "llama, wide": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, initializer_range=1.0)),
    "t5, wide": lambda: t5(initializer_factor=3.0),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_unknown_models_of_transformers_keep_every_promise(name: str) -> None:
    torch.manual_seed(0)
    assert broken(HEADS[name]().eval()) == []


def test_checks_that_do_not_apply_to_transformers_say_so() -> None:
    for name, check, reason in (
        ("falcon", "packing", "does not tell documents of one row apart"),
        ("gpt-neo, local", "padding-middle", "counts its window in columns"),
        ("deberta, relative", "padding-middle", "counts distances in columns"),
        ("bert, before training", "labels", "no loss of these labels alone"),
        ("electra, a number a token", "labels", "one number a place"),
    ):
        found = verify(HEADS[name](), [check])[check]
        assert found.verdict == "not applicable" and reason in found.detail


def test_a_window_longer_than_the_rows_is_no_reason_to_ask_less() -> None:
    config = hf.MistralConfig(**GROUPED, sliding_window=4096)
    assert verify(hf.MistralForCausalLM(config).eval(), ["padding-middle"])["padding-middle"].verdict == "pass"


def test_one_text_of_several_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match="several texts a row"):
        open_subject(hf.BertForMultipleChoice(hf.BertConfig(**SIZES)))


def test_errors_within_rounding_are_neither_kept_nor_broken() -> None:
    """One rounding moves the outputs of a chaotic model far; a fault in it is still seen where it is larger."""
    x = torch.linspace(0.1, 0.9, VOCAB)

    class Chaotic(Subject):
        name, maker, kind, vocab, context = "chaos", "function", "decoder", VOCAB, CONTEXT
        turbulence = 0.01  # pyright: ignore[reportAssignmentType]
        apart = 0.02

        def run(self, reading: Reading) -> torch.Tensor:
            alone = reading.shape[0] == 1
            return x.expand(*reading.shape, -1) * (1 + self.apart * alone)

    subject = Chaotic()
    found = verify(subject, ["batch"])["batch"]
    assert found.verdict == "not applicable" and "rounding" in found.detail and found.error is not None
    subject.apart = 0.5
    assert verify(subject, ["batch"])["batch"].verdict == "fail"


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
    asked = verify(model, ["future", "cache", "greedy"])
    checks = ("future", "future-gradient", "cache", "cache-ragged", "greedy")
    assert [asked[check].verdict for check in checks] == ["pass"] * 5
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
