"""What the benchmarks conclude is right: fits, intervals, choices, tasks. How fast anything is, no test says."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from _equal import NAMES, STEP, equal, widened
from _fits import exponent, exponent_over_rounds, mean_interval, t_quantile
from _mixer_memory import predicted
from _mixers import Contestant, contestants, filled
from _pictures import short, spread
from _recall import KEYS, VALUES, recall_batch
from _scaling import Measured, at_least, at_most, fastest_peer, ratios
from attention_scaling import largest_difference, timed
from hypothesis import given
from hypothesis import strategies as st

from pellucid.api import build
from pellucid.batch import IGNORE
from pellucid.designs import DESIGNS
from pellucid.nn.flops import count_parameters
from pellucid.nn.stores import LayerCache
from pellucid.spec import CAUSAL, DecoderSpec, RecurrentSpec, Window

SIZES = [1024, 2048, 4096, 8192]
CONTESTANTS = {f"{who.group}/{who.name}": who for who in contestants()}
positive = st.floats(0.01, 100.0)


# --- fits -------------------------------------------------------------------------------------------------------------


@given(st.floats(-1.0, 3.0), positive)
def test_a_power_law_gives_its_exponent(power: float, factor: float) -> None:
    found = exponent(SIZES, [factor * n**power for n in SIZES])
    assert found.middle == pytest.approx(power, abs=1e-9)
    assert found.high - found.low < 1e-6


def test_data_without_a_power_law_has_a_wide_interval() -> None:
    found = exponent(SIZES, [n + n * n / 2000 for n in SIZES])
    assert found.low < found.middle < found.high and found.high - found.low > 0.1
    assert math.isnan(exponent(SIZES[:2], [1.0, 2.0]).low) and math.isnan(exponent(SIZES[:1], [1.0]).middle)
    assert exponent(SIZES[:1], [1.0]).record() == {"middle": None, "low": None, "high": None}


def test_the_slope_is_numpys() -> None:
    costs = np.random.default_rng(0).uniform(1.0, 2.0, len(SIZES))
    expected = np.polyfit(np.log(SIZES), np.log(costs), 1)[0]
    assert exponent(SIZES, costs.tolist()).middle == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_an_interval_holds_the_truth_19_times_of_20(n: int) -> None:
    draws = np.random.default_rng(n).normal(3.0, 2.0, (4000, n))
    found = [mean_interval(row.tolist()) for row in draws]
    assert np.mean([one.low <= 3.0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.012)


def test_a_slow_round_changes_the_constant_but_not_the_slope() -> None:
    rounds = [[slow * n**1.5 for n in SIZES] for slow in (1.0, 1.1, 4.0)]
    found = exponent_over_rounds(SIZES, rounds)
    assert found.middle == pytest.approx(1.5) and found.high - found.low < 1e-6


def test_t_falls_towards_the_normal_distribution() -> None:
    values = [t_quantile(n) for n in range(1, 200)]
    assert values == sorted(values, reverse=True) and 1.96 < values[-1] < 1.975 and math.isnan(t_quantile(0))


# --- attention_scaling ------------------------------------------------------------------------------------------------


def test_cost_of_a_longer_row_is_foreseen() -> None:
    assert predicted({}, 64) == 0.0 and predicted({32: 2.0}, 64) == pytest.approx(8.0)
    assert predicted({1: 9.0, 16: 1.0, 32: 3.0}, 64) == pytest.approx(9.0)  # grew threefold lately, will again
    assert predicted({16: 1.0, 64: 4.0}, 128) == pytest.approx(8.0)
    assert predicted({16: 2.0, 32: 1.0}, 64) == pytest.approx(2.0)  # noise
    assert predicted({16: 1.0, 32: 50.0}, 64) == pytest.approx(50 * 2**2.2)


def measured(name: str, peer: str | None, seconds: list[float]) -> Measured:
    who = replace(CONTESTANTS["kernel/window: blocked"], name=name, peer=peer)
    return Measured(who, times={"forward": {1024: seconds}, "both": {}})


def test_targets_and_the_fastest_peer() -> None:
    ours, slow = measured("ours", None, [1.0, 2.0, 1.0]), measured("slow", "p", [9.0, 9.0, 9.0])
    fast, torchs = measured("fast", "p", [3.0, 4.0, 2.0]), measured("t", "torch", [0.1, 0.1, 0.1])
    blind = measured("x, blind 64", "p", [0.2, 0.2, 0.2])
    everyone = [ours, slow, fast, torchs, blind]
    assert fastest_peer(everyone, "kernel", "window", "forward", 1024) is fast
    assert fastest_peer(everyone, "kernel", "window", "forward", 2048) is None
    assert ratios(fast, ours, "forward", 1024) == [3.0, 2.0, 2.0] and ratios(None, ours, "forward", 1024) == []
    assert at_least("x", 2.0, [3.0, 2.0, 2.0]).met and not at_least("x", 2.1, [3.0, 2.0, 2.0]).met
    assert at_least("x", 2.0, []).met is None
    slope = exponent(SIZES, [float(n) for n in SIZES])
    assert at_most("x", 1.1, slope).met and not at_most("x", 0.9, slope).met
    assert at_most("x", 1.1, exponent([1], [1])).met is None


OURS = ["kernel/window: blocked", "kernel/BigBird: blocked", "kernel/window: SDPA + mask", "kernel/full: SDPA"]


@pytest.mark.parametrize("name", OURS)
def test_kernels_compute_what_the_table_says(name: str) -> None:
    assert (largest_difference(CONTESTANTS[name], 1024) or 0.0) < 1e-5


def test_a_window_that_is_one_off_is_seen() -> None:
    wrong = replace(CONTESTANTS["kernel/window: blocked"], mask=CAUSAL & Window(257))
    assert (largest_difference(wrong, 1024) or 0.0) > 1e-2


@pytest.mark.parametrize("name", [name for name in CONTESTANTS if "local" in name])
def test_peers_compute_what_the_table_says(name: str) -> None:
    pytest.importorskip("local_attention", reason="a peer: `make bench` installs it")
    assert (largest_difference(CONTESTANTS[name], 1024) or 0.0) < 1e-5


@pytest.mark.parametrize("name", [name for name, who in CONTESTANTS.items() if who.group != "kernel" and not who.peer])
def test_mixers_and_decoders_run(name: str) -> None:
    who: Contestant = CONTESTANTS[name]
    case = who.build(64)
    made = case.prepare()
    assert timed(case.work("forward"), made, 0.0, 0.0) > 0.0
    if who.group == "mixer":
        assert timed(case.work("both"), made, 0.0, 0.0) > 0.0


def test_a_filled_cache_is_as_after_reading() -> None:
    model = build(DESIGNS["modern"](11, 64, 1, 512, 64))
    for cache in (filled(model, 24), model.new_cache(1, 40)):
        if cache.length == 0:
            model(torch.zeros(1, 24, dtype=torch.long), cache=cache)
        (layer,) = cache.layers
        assert cache.length == 24 and cache.next_positions().tolist() == [24]
        assert isinstance(layer, LayerCache)
        kept = layer.k[0, 0].abs().sum(-1) > 0
        assert bool(kept[:24].all()) and not bool(kept[24:].any())


# --- parallel_training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sizes", "near"), [((192, 192, 2, 64, 16), 0.02), ((2048, 256, 4, 256, 64), 0.003)])
def test_designs_are_of_equal_size(name: str, sizes: tuple[int, int, int, int, int], near: float) -> None:
    target, spec = count_parameters(equal("modern")(*sizes)).total, equal(name)(*sizes)
    assert count_parameters(equal("modern")(*sizes)).total == count_parameters(DESIGNS["modern"](*sizes)).total
    assert build(spec).n_parameters == count_parameters(spec).total == pytest.approx(target, rel=near)


def test_widening_stops_where_nothing_is_left() -> None:
    spec: DecoderSpec = DESIGNS["lstm"](11, 16, 2, 64, 16)
    cell = spec.stack.blocks[0].mixer
    assert isinstance(cell, RecurrentSpec)
    steps = 2 * cell.d_hidden // STEP  # of both blocks, to nothing
    assert widened(spec, 0) == spec and widened(spec, 1) != spec
    assert widened(spec, 2 - steps) is not None and widened(spec, 1 - steps) is None


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
def test_the_value_asked_for_is_the_one_that_stood_behind_the_key(rows: int, pairs: int, seed: int) -> None:
    batch = recall_batch(rows, pairs, torch.Generator().manual_seed(seed))
    for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        told = dict(zip(ids[: 2 * pairs : 2], ids[1 : 2 * pairs : 2], strict=True))
        assert len(told) == pairs and all(key < KEYS for key in told)
        assert all(KEYS <= value < KEYS + VALUES for value in told.values())
        assert labels[: 2 * pairs] == [IGNORE] * (2 * pairs)
        assert labels[2 * pairs :] == [told[key] for key in ids[2 * pairs :]]
        assert sorted(ids[2 * pairs :]) == sorted(told)


# --- pictures ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100.0, 100.0), max_size=8), st.floats(0.1, 20.0))
def test_names_never_lie_on_each_other(wanted: list[float], apart: float) -> None:
    places = spread(wanted, apart)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(places[b] - places[a] >= apart - 1e-6 for a, b in itertools.pairwise(order))
    assert sum(places) == pytest.approx(sum(wanted), abs=1e-6)
    if all(abs(a - b) > apart for i, a in enumerate(wanted) for b in wanted[:i]):
        assert places == pytest.approx(wanted)


def test_lengths_are_short() -> None:
    assert [short(n) for n in (512, 1024, 1536, 32768)] == ["512", "1k", "1536", "32k"]
