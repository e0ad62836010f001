"""The table of initialisation rules is what is drawn, reproducibly, whatever else was drawn before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import specs
from torch import Tensor

from pellucid.nn.flops import count_parameters
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    BucketedBiasSpec,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    GatedFFNSpec,
    InitRule,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    RMSNormSpec,
    StackSpec,
)

RULES: tuple[InitRule, ...] = ("normal", "fan_in", "xavier")
few = settings(max_examples=15)
# one plain and one gated layer, with everything that has a row in the table; every matrix has >= 2048 entries
D, FF, VOCAB, CONTEXT = 64, 128, 100, 32
ATTENTION = AttentionSpec(4, 2, 16, bias=True, out_bias=True, qk_norm=RMSNormSpec(offset=1.0))
WIDE = DecoderSpec(
    VOCAB,
    CONTEXT,
    EmbedSpec(LearnedSpec(), norm=LayerNormSpec()),
    StackSpec(
        D,
        (BlockSpec(ATTENTION, FFNSpec(FF), LayerNormSpec()), BlockSpec(ATTENTION, GatedFFNSpec(FF), RMSNormSpec())),
        LayerNormSpec(),
        BucketedBiasSpec(),
    ),
    LMHeadSpec(tied=False, bias=True),
)


def weights(model: Decoder) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@given(specs(), st.sampled_from(RULES), st.integers(0, 2**31), st.integers(0, 99))
@few
def test_a_seed_says_everything(spec: DecoderSpec, rule: InitRule, seed: int, noise: int) -> None:
    torch.manual_seed(0)
    one = weights(initialise(Decoder(spec), rule, seed))
    torch.manual_seed(noise)
    model = Decoder(spec)
    before = torch.get_rng_state()
    assert initialise(model, rule, seed) is model
    assert torch.equal(torch.get_rng_state(), before)
    two = weights(model)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    again = weights(initialise(model, rule, seed))
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = weights(initialise(Decoder(spec), rule, seed + 1))
    assert not torch.equal(one["embed.tokens.weight"], other["embed.tokens.weight"])
    assert all(w.isfinite().all() for w in one.values())


@given(specs(), st.sampled_from(RULES))
@few
def test_parameters_are_counted_from_the_spec_alone(spec: DecoderSpec, rule: InitRule) -> None:
    model = initialise(Decoder(spec), rule)
    assert count_parameters(spec).total == model.n_parameters
    with torch.no_grad():
        assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


NAMES = {  # rows of the table, each by the names of its weights
    "embed": ["embed.tokens.weight"],
    "positions": ["embed.positions.weight"],
    "in": [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attn.q", "attn.k", "attn.v", "ffn.up")]
    + ["blocks.1.ffn.gate.weight"],
    "out": [f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attn.o", "ffn.down")],
    "head": ["head.weight"],
}
STD: dict[str, dict[str, Callable[[int, int], float]]] = {  # (fan_in, fan_out) -> standard deviation
    "normal": {"out": lambda i, o: 0.02 / math.sqrt(2 * 2)},
    "fan_in": {"in": lambda i, o: 1 / math.sqrt(i), "out": lambda i, o: 0.0},
    "xavier": {
        "in": lambda i, o: math.sqrt(2 / (i + o)),
        "out": lambda i, o: math.sqrt(2 / (i + o)),
        "embed": lambda i, o: 1 / math.sqrt(D),
        "head": lambda i, o: 1 / math.sqrt(D),
    },
}


@pytest.mark.parametrize("rule", RULES)
def test_the_table_holds(rule: InitRule) -> None:
    drawn = weights(initialise(Decoder(WIDE), rule, seed=3))
    for row, names in NAMES.items():
        for name in names:
            fan_out, fan_in = drawn[name].shape
            std = STD[rule].get(row, lambda i, o: 0.02)(fan_in, fan_out)
            n = drawn[name].numel()  # of n draws, std and mean are known to std / sqrt(2n) and std / sqrt(n)
            assert abs(drawn[name].std().item() - std) <= 4.5 * std / math.sqrt(2 * n), name
            assert abs(drawn[name].mean().item()) <= 4.5 * std / math.sqrt(n), name
    rest = set(drawn) - {name for names in NAMES.values() for name in names}
    for name in rest:
        if "norm" in name and name.endswith("weight"):
            offset = 1.0 if "q_norm" in name or "k_norm" in name else 0.0
            assert torch.equal(drawn[name] + offset, torch.ones_like(drawn[name])), name
        else:
            assert not drawn[name].any(), name
    assert {name for name in rest if "bias" in name} >= {"score_bias.weight", "head.bias", "blocks.0.attn.q.bias"}


def test_no_two_matrices_are_the_same_draw() -> None:
    drawn = weights(initialise(Decoder(WIDE), "normal"))
    q, k = drawn["blocks.0.attn.q.weight"], drawn["blocks.1.attn.q.weight"]
    assert not torch.equal(q, k) and abs((q * k).mean() / (q.std() * k.std())) < 0.1


def test_fan_in_starts_as_the_identity() -> None:
    """Zero residual branches: what enters the first block leaves the last."""
    model = initialise(Decoder(WIDE), "fan_in")
    with torch.no_grad(), model.taps(read=["embed", "blocks.1.resid_post"]) as acts:
        model(torch.arange(8)[None])
    assert torch.equal(acts["embed"], acts["blocks.1.resid_post"])


@pytest.mark.parametrize("rule", ["normal", "fan_in"])
def test_a_new_model_guesses_evenly(rule: InitRule) -> None:
    """At the start the loss is about ln(vocab). (Not by xavier, tied: with unit vectors a token guesses itself.)"""
    tied = replace(WIDE, head=LMHeadSpec(tied=True))
    with torch.no_grad():
        log_p = initialise(Decoder(tied), rule)(torch.arange(32)[None]).log_softmax(-1)
    labels = torch.arange(32).roll(-1)[None, :, None]
    assert -log_p.gather(-1, labels).mean().item() == pytest.approx(math.log(VOCAB), abs=0.2)


def test_control_a_generator_that_is_not_ours_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.nn.init._draw", lambda weight, std, generator: torch.randn(weight.shape) * std)
    one, two = (weights(initialise(Decoder(WIDE), "normal", seed=0)) for _ in range(2))
    assert not torch.equal(one["embed.tokens.weight"], two["embed.tokens.weight"])
