"""Costs from the spec alone are those of the model that is built from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from strategies import build, specs
from torch.utils.flop_counter import FlopCounterMode

from pellucid.designs import classic, modern
from pellucid.nn.flops import cache_bytes, count_parameters, forward_flops, training_flops, visible_pairs
from pellucid.nn.models import Decoder
from pellucid.spec import Causal, DecoderSpec, Full, Mask, Window


@given(specs())
def test_parameters_are_those_of_the_model(spec: DecoderSpec) -> None:
    assert count_parameters(spec).total == build(spec).n_parameters


@pytest.mark.parametrize("mask", [Causal(), Full(), Causal() & Window(5), Window(3) | Causal(), ~Causal()])
@pytest.mark.parametrize("time", [1, 2, 7, 300])
def test_pairs_are_counted_one_by_one(mask: Mask, time: int) -> None:
    counted = sum(bool(mask.allow(q, k, 0, 0)) for q in range(time) for k in range(time))
    assert visible_pairs(mask, time) == counted


@pytest.mark.parametrize("design", [classic, modern])
def test_flops_are_what_torch_counts(design: object) -> None:
    """torch counts all n² pairs of attention (of the reference kernel, not a fused one): the hidden half is added."""
    spec = design(97, 32, 3, 64, 16)  # type: ignore[operator]
    model, time = Decoder(spec), 32
    with model.taps(read="*.pattern"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, time, dtype=torch.long))
    hidden = sum(
        4 * (time * time - visible_pairs(b.mixer.mask, time)) * b.mixer.n_heads * b.mixer.head_dim
        for b in spec.stack.blocks
    )
    assert forward_flops(spec, time) + hidden == counter.get_total_flops()
    assert training_flops(spec, time) == 3 * forward_flops(spec, time)


def test_cache_bytes_are_those_of_the_cache() -> None:
    spec = modern(97, 32, 3, 64, 16)
    assert cache_bytes(spec, 32) == Decoder(spec).new_cache(1, 32).n_bytes
