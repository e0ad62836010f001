"""The table of initialisation rules is what is drawn, reproducibly, whatever else was drawn before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import classifiers, encoder_decoder_specs, encoder_specs, masked_heads, masks, poolers, specs, taggers
from torch import Tensor

from pellucid.nn.flops import count_parameters
from pellucid.nn.init import initialise
from pellucid.nn.models import AnyModel, Decoder, build_model
from pellucid.spec import (
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    BucketedBiasSpec,
    ClassifierHeadSpec,
    DecoderSpec,
    DeltaRule,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    GatedDecayRule,
    GatedFFNSpec,
    InitRule,
    LayerNormSpec,
    LearnedSpec,
    LinearAttentionSpec,
    LMHeadSpec,
    ModelSpec,
    MoESpec,
    RecurrentSpec,
    ResidualSpec,
    RMSNormSpec,
    StackSpec,
)

RULES: tuple[InitRule, ...] = ("normal", "fan_in", "xavier")
few = settings(max_examples=examples(15))
any_head = st.one_of(masked_heads, poolers, classifiers, taggers, st.none())
anything = st.one_of(specs(), encoder_specs(masks, any_head), encoder_decoder_specs())
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


def weights(model: AnyModel) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@given(anything, st.sampled_from(RULES), st.integers(0, 2**31), st.integers(0, 99))
@few
def test_a_seed_says_everything(spec: ModelSpec, rule: InitRule, seed: int, noise: int) -> None:
    torch.manual_seed(0)
    one = weights(initialise(build_model(spec), rule, seed))
    torch.manual_seed(noise)
    model = build_model(spec)
    before = torch.get_rng_state()
    assert initialise(model, rule, seed) is model
    assert torch.equal(torch.get_rng_state(), before)
    two = weights(model)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    again = weights(initialise(model, rule, seed))
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = weights(initialise(build_model(spec), rule, seed + 1))
    tables = [name for name in one if name.endswith("embed.tokens.weight")]
    assert tables and not any(torch.equal(one[name], other[name]) for name in tables)
    assert all(w.isfinite().all() for w in one.values())


@given(anything, st.sampled_from(RULES))
@few
def test_a_new_model_is_finite_and_as_large_as_its_spec_says(spec: ModelSpec, rule: InitRule) -> None:
    model, text = initialise(build_model(spec), rule), torch.zeros(1, 3, dtype=torch.long)
    assert count_parameters(spec).total == model.n_parameters
    with torch.no_grad():
        assert model(*[text] * (2 if isinstance(spec, EncoderDecoderSpec) else 1)).isfinite().all()


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


# the mixers, experts and heads that WIDE lacks, in an encoder and a decoder
NORM, NEW_FF = LayerNormSpec(), MoESpec(GatedFFNSpec(FF, bias=True), 3, 2)
READS = EncoderSpec(
    VOCAB,
    CONTEXT,
    EmbedSpec(n_types=50),
    StackSpec(
        D,
        (
            BlockSpec(LinearAttentionSpec(4, 16, GatedDecayRule(32), out_gate=True, bias=True), NEW_FF, NORM),
            BlockSpec(LinearAttentionSpec(64, 1, DeltaRule()), None, NORM, residual=ResidualSpec(layer_scale=0.1)),
            BlockSpec(RecurrentSpec("lstm", 32, both_directions=True), None, NORM),
        ),
        NORM,
    ),
    ClassifierHeadSpec(40),
)
WRITES = replace(
    WIDE,
    stack=StackSpec(
        D,
        (
            BlockSpec(RecurrentSpec("gru", D, project=False), None, NORM, cross=AttentionSpec(4, 2, 16, Full())),
            BlockSpec(AttentiveRecurrentSpec("lstm", 32, AlignmentSpec("additive", 48)), None, NORM),
            BlockSpec(AttentionSpec(4, 4, 16), None, NORM, cross=AlignmentSpec("general")),
        ),
        NORM,
    ),
)
BOTH = EncoderDecoderSpec(replace(READS, head=None), WRITES, 0)
NEW_NAMES = {  # of READS, and of BOTH beyond
    "embed": ["embed.tokens.weight"],
    "positions": ["embed.types.weight"],
    "in": [
        *(f"blocks.0.attn.{name}.weight" for name in ("q", "k", "v", "gate", "decay.0", "decay.1")),
        *(f"blocks.0.ffn.{name}.weight" for name in ("router", "up", "gate")),
        *(f"blocks.1.attn.{name}.weight" for name in ("q", "k", "v", "beta")),
        *(f"blocks.2.rnn.{cell}.weight_{way}_l0" for cell in ("cell", "back") for way in ("ih", "hh")),
        "head.pooler.dense.weight",
    ],
    "out": ["blocks.0.attn.o.weight", "blocks.1.attn.o.weight", "blocks.2.rnn.o.weight", "blocks.0.ffn.down.weight"],
    "head": ["head.out.weight"],
}
DECODER_NAMES = {
    "positions": ["embed.positions.weight"],
    "in": [
        *("blocks.0.rnn.cell.weight_ih_l0", "blocks.0.rnn.cell.weight_hh_l0", "blocks.0.cross.q.weight"),
        *("blocks.1.rnn.cell.weight_ih", "blocks.1.rnn.cell.weight_hh", "blocks.1.rnn.score.q.weight"),
        *("blocks.1.rnn.score.k.weight", "blocks.1.rnn.score.v.weight", "blocks.2.cross.score.k.weight"),
        *(f"blocks.{i}.{name}.weight" for i, name in ((2, "attn.q"), (2, "attn.k"), (2, "attn.v"), (0, "cross.k"))),
        "blocks.0.cross.v.weight",
    ],
    "out": [f"blocks.{i}.{name}.o.weight" for i, name in ((0, "cross"), (1, "rnn"), (2, "attn"), (2, "cross"))],
    "head": ["head.weight"],
}


def check_rest(name: str, weight: Tensor) -> None:
    """What the table does not draw: gains, and biases, among them the forget gates' of an LSTM."""
    if ".gain." in name:
        assert torch.equal(weight, torch.full_like(weight, 0.1)), name
    elif "norm" in name and name.endswith("weight"):
        assert torch.equal(weight, torch.ones_like(weight)), name
    elif "bias_ih" in name and len(weight) == 4 * 32:  # i f g o
        forget = torch.zeros(4, 32)
        forget[1] = 1.0
        assert torch.equal(weight, forget.flatten()), name
    else:
        assert "bias" in name and not weight.any(), name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("both", [False, True])
def test_the_table_holds_for_every_kind_of_layer(rule: InitRule, both: bool) -> None:
    spec = BOTH if both else READS
    drawn, depth = weights(initialise(build_model(spec), rule, seed=3)), 6 if both else 3
    rows = {row: [*map("encoder.".__add__, names)] if both else names for row, names in NEW_NAMES.items()}
    if both:
        rows["in"] = rows["in"][:-1]  # the head's
        rows = {row: names + ["decoder." + n for n in DECODER_NAMES.get(row, [])] for row, names in rows.items()}
        rows["head"] = rows["head"][1:]
    for row, names in rows.items():
        for name in names:
            fan_out, fan_in = drawn[name].shape[-2:]
            std = STD[rule].get(row, lambda i, o: 0.02)(fan_in, fan_out)
            if (rule, row) == ("normal", "out"):
                std = 0.02 / math.sqrt(2 * depth)
            n = drawn[name].numel()
            assert abs(drawn[name].std().item() - std) <= 4.5 * std / math.sqrt(2 * n), name
            assert abs(drawn[name].mean().item()) <= 4.5 * std / math.sqrt(n), name
    for name in set(drawn) - {name for names in rows.values() for name in names}:
        check_rest(name, drawn[name])


def test_no_two_experts_are_the_same_draw() -> None:
    up = weights(initialise(build_model(READS), "normal"))["blocks.0.ffn.up.weight"]
    one, two = up[0].flatten(), up[1].flatten()
    assert abs(torch.corrcoef(torch.stack((one, two)))[0, 1]) < 0.1


def test_no_two_matrices_are_the_same_draw() -> None:
    drawn = weights(initialise(Decoder(WIDE), "normal"))
    q, k = drawn["blocks.0.attn.q.weight"], drawn["blocks.1.attn.q.weight"]
    assert not torch.equal(q, k) and abs((q * k).mean() / (q.std() * k.std())) < 0.1


@pytest.mark.parametrize("spec", [WIDE, READS])
def test_fan_in_starts_as_the_identity(spec: DecoderSpec | EncoderSpec) -> None:
    """Zero residual branches, of every kind with a matrix into the stream: what enters the first leaves the last."""
    model, last = initialise(build_model(spec), "fan_in"), f"blocks.{spec.n_layers - 1}.resid_post"
    with torch.no_grad(), model.taps(read=["embed", last]) as acts:
        model(torch.arange(8)[None])
    assert torch.equal(acts["embed"], acts[last])


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
