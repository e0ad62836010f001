"""Filters on logits keep what they promise, and a draw follows the distribution that they leave."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.generate.sample import (
    Sampling,
    draw,
    generator_for,
    greedy,
    min_p,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
)

many = settings(max_examples=examples(100))
shapes = st.tuples(st.integers(1, 3), st.integers(1, 12))
rough = st.integers(-6, 6).map(lambda n: n / 2)  # few values, so that many are equal
fine = st.integers(-30_000, 30_000).map(lambda n: n / 1000)


@st.composite
def logits_of(draw: st.DrawFn) -> Tensor:
    values = draw(st.sampled_from([rough, fine]))
    return torch.from_numpy(draw(hnp.arrays(np.float32, draw(shapes), elements=values)))


def by_rank(row: Tensor) -> list[int]:
    """Token ids, likeliest first; of equal ones the lowest id first."""
    values = row.tolist()
    return sorted(range(len(values)), key=lambda token: (-values[token], token))


def kept(row: Tensor) -> set[int]:
    return set(torch.isfinite(row).nonzero().flatten().tolist())


def check_filter(before: Tensor, after: Tensor) -> None:
    """What every filter must keep: the likeliest token, and the odds between those that are left."""
    for b, a in zip(before, after, strict=True):
        left = kept(a)
        assert by_rank(b)[0] in left
        assert all(a[token] == b[token] for token in left)
        assert all(a[token] == -math.inf for token in set(range(len(a))) - left)
        torch.testing.assert_close(a.softmax(-1).sum(), torch.tensor(1.0))


@many
@given(logits_of(), st.integers(1, 15))
def test_top_k_keeps_exactly_the_k_likeliest(logits: Tensor, k: int) -> None:
    filtered = top_k(logits, k)
    check_filter(logits, filtered)
    for before, after in zip(logits, filtered, strict=True):
        assert kept(after) == set(by_rank(before)[:k])


@many
@given(logits_of(), st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_of_that_mass(logits: Tensor, p: float) -> None:
    filtered = top_p(logits, p)
    check_filter(logits, filtered)
    for before, after in zip(logits, filtered, strict=True):
        left, order = kept(after), by_rank(before)
        assert left == set(order[: len(left)])  # likeliest first, lowest id first
        mass = before.double().softmax(-1)
        rounding = 1e-5
        assert float(mass[sorted(left)].sum()) >= p - rounding
        assert len(left) == 1 or float(mass[order[: len(left) - 1]].sum()) < p + rounding


@pytest.mark.parametrize(("scale", "large"), [(3.0, False), (0.5, True)])
def test_top_p_of_a_large_vocabulary(scale: float, large: bool) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * scale
    filtered = top_p(logits, 0.9)
    check_filter(logits, filtered)
    for before, after in zip(logits, filtered, strict=True):
        left, mass = kept(after), before.double().softmax(-1)
        assert (len(left) > 2000) == large
        least = min(left, key=lambda token: mass[token].item())
        assert float(mass[sorted(left)].sum()) >= 0.9 - 1e-5
        assert float(mass[sorted(left - {least})].sum()) < 0.9 + 1e-5


@pytest.mark.parametrize(("vocab", "scale"), [(300, 3.0), (32_000, 4.0), (151_936, 4.0)])
def test_top_p_near_one_keeps_what_a_wide_sum_keeps(vocab: int, scale: float) -> None:
    """The tail that is cut is a millionth of the mass: a narrow sum that begins with the greatest is off by more."""
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0)) * scale
    mass = torch.sort(logits.double().softmax(-1), descending=True).values.cumsum(-1)
    for p in (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.9999999):
        assert int(top_p(logits, p).isfinite().sum()) == int((mass < p).sum()) + 1, p


def test_top_p_on_exact_halves() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    sizes = {0.5: 1, 0.51: 2, 0.75: 2, 0.76: 3, 0.875: 3, 0.9: 4, 1.0: 4}
    assert {p: len(kept(top_p(logits, p)[0])) for p in sizes} == sizes


@many
@given(logits_of(), st.floats(0.0, 1.0))
def test_min_p_keeps_all_that_are_likely_enough(logits: Tensor, p: float) -> None:
    filtered = min_p(logits, p)
    check_filter(logits, filtered)
    for before, after in zip(logits, filtered, strict=True):
        ratio = before.double().softmax(-1) / before.double().softmax(-1).max()
        rounding = 1e-5
        assert kept(after) >= set((ratio >= p * (1 + rounding)).nonzero().flatten().tolist())
        assert kept(after) <= set((ratio >= p * (1 - rounding)).nonzero().flatten().tolist())


@many
@given(logits_of(), st.floats(0.05, 20.0))
def test_temperature_is_a_power_of_the_probabilities(logits: Tensor, t: float) -> None:
    expected = (logits.double() / t).softmax(-1)
    torch.testing.assert_close(temperature(logits, t).double().softmax(-1), expected, atol=1e-5, rtol=1e-4)


@many
@given(logits_of(), st.sampled_from([0.0, 5e-324, 1e-40, 2e-38, 1e-30]))
def test_no_temperature_is_too_small(logits: Tensor, t: float) -> None:
    cold = temperature(logits, t).softmax(-1)
    likeliest = logits == logits.amax(-1, keepdim=True)
    assert bool(torch.isfinite(cold).all())
    assert float(cold.masked_fill(likeliest, 0).sum()) == 0
    assert torch.equal(cold.argmax(-1), greedy(logits))


@many
@given(logits_of(), st.floats(0.1, 10.0), st.randoms())
def test_repetition_penalty_is_the_plain_loop(logits: Tensor, penalty: float, random: Random) -> None:
    seen = torch.tensor([[random.random() < 0.5 for _ in row] for row in logits])
    expected = logits.tolist()
    for row, row_seen in zip(expected, seen.tolist(), strict=True):
        for token, was_seen in enumerate(row_seen):
            if was_seen:
                row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    torch.testing.assert_close(repetition_penalty(logits, seen, penalty), torch.tensor(expected))


@many
@given(logits_of())
def test_greedy_takes_the_lowest_id_of_equals(logits: Tensor) -> None:
    assert greedy(logits).tolist() == [by_rank(row)[0] for row in logits]


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 5),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
)


@many
@given(logits_of(), samplings, st.integers(0, 2**40))
def test_pick_takes_what_the_filters_left(logits: Tensor, sampling: Sampling, seed: int) -> None:
    seen = logits > 0
    left = sampling.filtered(logits, seen)
    picked = sampling.pick(logits, seen, [generator_for(seed, row) for row in range(len(logits))])
    assert bool(left.gather(-1, picked[:, None]).isfinite().all())
    if sampling.temperature == 0:
        assert torch.equal(picked, greedy(left))


@many
@given(logits_of(), samplings)
def test_the_filters_run_in_the_documented_order(logits: Tensor, sampling: Sampling) -> None:
    seen = logits > 0
    x = temperature(repetition_penalty(logits, seen, sampling.repetition_penalty), sampling.temperature)
    x = x if sampling.top_k is None else top_k(x, sampling.top_k)
    torch.testing.assert_close(sampling.filtered(logits, seen), min_p(top_p(x, sampling.top_p), sampling.min_p))


def chi_squared(tokens: Tensor, probability: Tensor) -> float:
    expected = probability * len(tokens)
    return float(((torch.bincount(tokens, minlength=len(probability)) - expected) ** 2 / expected).sum())


def test_a_draw_follows_the_distribution() -> None:
    n, logits = 4000, torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0])
    tokens = draw(logits.expand(n, -1), [generator_for(0, row) for row in range(n)])
    limit = 18.5  # 4 degrees of freedom: exceeded once in a thousand
    assert chi_squared(tokens, logits.softmax(-1)) < limit
    assert chi_squared(tokens, (logits / 1.3).softmax(-1)) > limit  # control: this many draws tell them apart


def test_a_draw_never_takes_an_excluded_token() -> None:
    logits = torch.full((1, 50), -torch.inf)
    logits[0, 17] = 0.0
    assert all(draw(logits, [generator_for(seed)]).item() == 17 for seed in range(200))


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    together = draw(logits, [generator_for(3, row) for row in range(6)])
    alone = [draw(logits[row : row + 1], [generator_for(3, row)]).item() for row in range(6)]
    other_seed = draw(logits, [generator_for(4, row) for row in range(6)])
    assert together.tolist() == alone
    assert together.tolist() != other_seed.tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        Sampling(**{field: value})


def test_a_penalty_without_what_was_seen_is_refused() -> None:
    with pytest.raises(UsageError, match="seen"):
        Sampling(repetition_penalty=1.2).pick(torch.zeros(1, 3), None, [generator_for(0)])
