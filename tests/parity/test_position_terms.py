"""Rotary scalings, ALiBi, buckets and sinusoids: against the formula written out as loops, and against transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from pellucid.batch import Tokens
from pellucid.nn.biases import ALiBi, BucketedBias, alibi_slopes
from pellucid.nn.positions import Sinusoidal
from pellucid.nn.rope import frequencies, rotate, rotation
from pellucid.spec import (
    BucketedBiasSpec,
    ByPartsScaling,
    LinearScaling,
    NTKScaling,
    RotaryScaling,
    RotarySpec,
    YaRNScaling,
)

HEAD_DIM, BASE, TRAINED, LONGEST = 16, 10_000.0, 1024, 4096


def by_loops(scaling: RotaryScaling | None, base: float = BASE, dims: int = HEAD_DIM) -> list[float]:
    """Radians a position for each pair, in float64, one pair at a time."""
    rates: list[float] = []
    for pair in range(dims // 2):
        rate = base ** (-2 * pair / dims)
        turns = TRAINED * rate / (2 * math.pi)  # within the length that was trained on
        if isinstance(scaling, LinearScaling):
            rate /= scaling.factor
        elif isinstance(scaling, NTKScaling):
            rate = (base * scaling.factor ** (dims / (dims - 2))) ** (-2 * pair / dims)
        elif isinstance(scaling, ByPartsScaling):
            if turns < scaling.low_freq_factor:
                rate /= scaling.factor
            elif turns <= scaling.high_freq_factor:
                share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
                rate *= share + (1 - share) / scaling.factor
        elif isinstance(scaling, YaRNScaling):

            def pair_of(turns: float) -> float:  # solves TRAINED · base^(-2 pair / dims) = 2π turns
                return math.log(TRAINED / (2 * math.pi * turns), base) * dims / 2

            first = max(math.floor(pair_of(scaling.beta_fast)), 0)
            last = min(math.ceil(pair_of(scaling.beta_slow)), dims - 1)
            slowed = min(max((pair - first) / (last - first or 1e-3), 0.0), 1.0)
            rate *= (1 - slowed) + slowed / scaling.factor
        rates.append(rate)
    return rates


CASES: dict[str, tuple[RotaryScaling | None, dict[str, Any]]] = {
    "linear": (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
    "ntk": (NTKScaling(4.0 * LONGEST / TRAINED - 3.0), {"rope_type": "dynamic", "factor": 4.0}),
    "by parts": (
        ByPartsScaling(4.0, TRAINED, 1.0, 4.0),
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "yarn": (YaRNScaling(4.0, TRAINED), {"rope_type": "yarn", "factor": 4.0}),
    "yarn, other turns": (
        YaRNScaling(4.0, TRAINED, beta_fast=4.0, beta_slow=0.5),
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5},
    ),
}


def published(parameters: dict[str, Any], base: float) -> tuple[torch.Tensor, float]:
    kind = parameters["rope_type"]
    if kind in ("llama3", "yarn"):
        parameters = {**parameters, "original_max_position_embeddings": TRAINED}
    config = LlamaConfig(
        hidden_size=HEAD_DIM * 2,
        num_attention_heads=2,
        max_position_embeddings=TRAINED,
        rope_parameters={**parameters, "rope_theta": base},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=LONGEST)


@pytest.mark.parametrize("base", [100.0, BASE, 500_000.0])
@pytest.mark.parametrize(("scaling", "parameters"), CASES.values(), ids=CASES.keys())
def test_rotary_scalings(scaling: RotaryScaling | None, parameters: dict[str, Any], base: float) -> None:
    rates, sharpen = frequencies(RotarySpec(base, scaling=scaling), HEAD_DIM)
    wanted = torch.tensor(by_loops(scaling, base), dtype=torch.float64)
    torch.testing.assert_close(rates.double(), wanted, rtol=1e-6, atol=0)
    their_rates, their_sharpen = published(parameters, base)
    torch.testing.assert_close(rates, their_rates, rtol=1e-6, atol=0)
    assert sharpen == pytest.approx(their_sharpen, rel=1e-7)
    plain, _ = frequencies(RotarySpec(base), HEAD_DIM)
    assert not torch.allclose(rates, plain, rtol=1e-2)  # control: the scaling does something


def test_scalings_differ_from_each_other() -> None:
    rates = [frequencies(RotarySpec(BASE, scaling=scaling), HEAD_DIM)[0] for scaling, _ in CASES.values()]
    for i, one in enumerate(rates):
        assert all(not torch.allclose(one, other, rtol=1e-2) for other in rates[i + 1 :])


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_rotation_is_multiplication_of_complex_numbers(fraction: float) -> None:
    spec, tokens = RotarySpec(BASE, fraction), Tokens.plain(1, 9, 3)
    x = torch.randn(1, 2, 9, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    turned, half = rotate(x, rotation(spec, HEAD_DIM, tokens)), spec.dims(HEAD_DIM) // 2
    for time in range(9):
        for pair, rate in enumerate(by_loops(None, dims=2 * half)):
            angle = (3 + time) * rate
            for head in range(2):
                number = complex(x[0, head, time, pair], x[0, head, time, pair + half])
                number *= complex(math.cos(angle), math.sin(angle))
                assert turned[0, head, time, pair].item() == pytest.approx(number.real, abs=2e-6)
                assert turned[0, head, time, pair + half].item() == pytest.approx(number.imag, abs=2e-6)
    assert torch.equal(turned[..., 2 * half :], x[..., 2 * half :])


def test_rotated_scores_depend_on_distance_alone() -> None:
    spec, generator = RotarySpec(BASE), torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, HEAD_DIM, generator=generator).expand(1, 1, 12, -1) for _ in range(2))
    by = rotation(spec, HEAD_DIM, Tokens.plain(1, 12))
    scores = (rotate(q, by) @ rotate(k, by).mT)[0, 0]
    for distance in range(-11, 12):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)
    assert (scores.diagonal(0)[0] - scores.diagonal(1)[0]).abs() > 1e-3  # control: and it does depend on it


@pytest.mark.parametrize("n_heads", [1, 2, 4, 6, 8, 12, 16, 20])
def test_alibi(n_heads: int) -> None:
    time = 10
    ours = ALiBi(n_heads)(Tokens.plain(1, time), Tokens.plain(1, time))[0]
    theirs = build_alibi_tensor(torch.ones(1, time, dtype=torch.long), n_heads, torch.float32)  # (heads, 1, key)
    # theirs counts from the first key, ours from the query: equal up to a constant a query, which softmax does not see
    hide = torch.ones(time, time, dtype=torch.bool).triu(1)
    pattern, wanted = (x.masked_fill(hide, -math.inf).softmax(-1) for x in (ours, theirs.expand(-1, time, -1)))
    torch.testing.assert_close(pattern, wanted, rtol=0, atol=1e-6)
    for head, slope in enumerate(alibi_slopes(n_heads)):
        for query in range(time):
            for key in range(time):
                assert ours[head, query, key].item() == pytest.approx(-slope * abs(query - key), abs=1e-6)
    if n_heads > 1:
        assert float((pattern - wanted.flip(0)).abs().max()) > 1e-3  # control: the order of heads matters


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("n_buckets", "far"), [(32, 128), (32, 64), (16, 50), (8, 20)])
def test_buckets(both: bool, n_buckets: int, far: int) -> None:
    bias = BucketedBias(BucketedBiasSpec(n_buckets, far, both), n_heads=2)
    distance = torch.arange(-300, 301)
    ours = bias.buckets(distance)
    theirs = T5Attention._relative_position_bucket(distance, both, n_buckets, far)
    assert torch.equal(ours, theirs)
    assert not torch.equal(bias.buckets(-distance), theirs)  # control: forwards is not backwards


def test_bucketed_bias_is_looked_up_by_key_minus_query() -> None:
    bias = BucketedBias(BucketedBiasSpec(8, 20), n_heads=3)
    with torch.no_grad():
        bias.weight.normal_(generator=torch.Generator().manual_seed(0))
    queries, keys = Tokens.plain(1, 3, 7), Tokens.plain(1, 10)
    term = bias(queries, keys)[0]
    for head in range(3):
        for i in range(3):
            for j in range(10):
                bucket = T5Attention._relative_position_bucket(torch.tensor(j - (7 + i)), False, 8, 20)
                assert term[head, i, j] == bias.weight[bucket, head]


def test_sinusoids() -> None:
    table = Sinusoidal(12)(Tokens.plain(1, 100, 20))[0]
    for i in range(100):
        for pair in range(6):
            angle = (20 + i) / 10_000 ** (2 * pair / 12)
            assert table[i, 2 * pair].item() == pytest.approx(math.sin(angle), abs=2e-5)
            assert table[i, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=2e-5)
