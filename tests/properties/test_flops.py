"""Costs from the spec alone are those of the model that is built from it.

What is compared: torch's counter counts the matrix products that run, so each idea is run in the form whose products
are the useful ones, and what the two still count differently is added by name. Attention runs in the reference kernel,
which makes all n² pairs: those that the mask hides are added. Linearised attention runs token by token, and torch does
not count the outer product k vᵀ that updates the state, as it is no matrix product to it. torch's recurrent kernels are
opaque to the counter: the same step by step, cell by cell, is counted in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    CONTEXT,
    EXAMPLE,
    VOCAB,
    build,
    classifiers,
    encoder_decoder_specs,
    encoder_specs,
    image_specs,
    masked_heads,
    masks,
    poolers,
    specs,
    taggers,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pellucid.designs import classic, modern
from pellucid.nn.flops import (
    activation_bytes,
    cache_bytes,
    count_parameters,
    forward_flops,
    training_flops,
    visible_pairs,
)
from pellucid.nn.models import Decoder, EncoderDecoder
from pellucid.predicates import Place, PrefixPart
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    ClassifierHeadSpec,
    DecoderSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    Full,
    KernelRule,
    LinearAttentionSpec,
    LMHeadSpec,
    Mask,
    PoolerHeadSpec,
    RecurrentSpec,
    StackSpec,
    Window,
)

few = settings(max_examples=examples(20))
any_head = st.one_of(masked_heads, poolers, classifiers, taggers, st.none())
no_words = st.one_of(poolers, classifiers, taggers, st.none())
any_model = st.one_of(specs(), encoder_specs(masks, any_head), image_specs(no_words), encoder_decoder_specs())
times = st.integers(1, 9)


@given(any_model)
@settings(max_examples=examples(60))
def test_parameters_are_those_of_the_model(spec: Any) -> None:
    assert count_parameters(spec).total == build(spec).n_parameters


@pytest.mark.parametrize("mask", [Causal(), Full(), Causal() & Window(5), Window(3) | Causal(), ~Causal()])
@pytest.mark.parametrize("time", [1, 2, 7, 65, 130])
def test_pairs_are_counted_one_by_one(mask: Mask, time: int) -> None:
    counted = sum(bool(mask.allow(Place(q), Place(k))) for q in range(time) for k in range(time))
    assert visible_pairs(mask, time) == counted


@pytest.mark.parametrize("prefix", [0, 1, 33, 64, 100])
def test_pairs_of_a_document_s_own_prefix_are_counted_one_by_one(prefix: int) -> None:
    mask, parts = Causal() & Window(40) | PrefixPart(), [int(t < prefix) for t in range(100)]
    places = [Place(t, part=part) for t, part in enumerate(parts)]
    assert visible_pairs(mask, 100, prefix) == sum(bool(mask.allow(q, k)) for q in places for k in places)


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def cell_by_cell(cell: nn.LSTM | nn.GRU, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What torch's kernel computes over (time, rows, d_in), in operations that the counter knows."""
    weights: Any = (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0)
    out: list[Tensor] = []
    for token in x:
        if isinstance(cell, nn.LSTM):
            state = torch.lstm_cell(token, list(state), *weights)
        else:
            state = (torch.gru_cell(token, state[0], *weights),)
        out.append(state[0])
    return torch.stack(out), state


@contextmanager
def in_countable_form() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pellucid.nn.recurrent.run_cell", cell_by_cell)
        patch.setattr("pellucid.nn.linear_attention.STEPS_UP_TO", CONTEXT)  # token by token, however many
        yield


def counted(model: Any, *texts: Tensor) -> int:
    """The FLOPs of the matrix products that torch sees in a forward."""
    patterns = [name for name in model.point_names() if name.endswith(".pattern")]
    with in_countable_form(), model.taps(read=patterns), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*texts)
    return counter.get_total_flops()


def uncounted(block: BlockSpec, time: int) -> int:
    """What torch counts beyond the formula, of one block: hidden pairs, less the outer products that it misses."""
    mixer = block.mixer
    if isinstance(mixer, AttentionSpec):
        return 4 * (time * time - visible_pairs(mixer.mask, time)) * mixer.n_heads * mixer.head_dim
    if isinstance(mixer, LinearAttentionSpec):
        by_steps = not isinstance(mixer.rule, KernelRule) or mixer.rule.causal
        columns = mixer.head_dim + isinstance(mixer.rule, KernelRule)
        return -2 * by_steps * time * mixer.n_heads * mixer.head_dim * columns
    return 0


def difference(spec: DecoderSpec | EncoderSpec, time: int) -> int:
    """The same, of a whole model; and the products of a head that are made once a row."""
    pooler = spec.head.pooler if isinstance(spec.head, ClassifierHeadSpec) else spec.head
    once = 2 * spec.d_model**2 if isinstance(pooler, PoolerHeadSpec) and pooler.dense else 0
    classes = spec.head.n_classes if isinstance(spec.head, ClassifierHeadSpec) else 0
    return sum(uncounted(block, time) for block in spec.stack.blocks) + once + 2 * spec.d_model * classes


def some(time: int) -> Tensor:
    return torch.arange(time)[None] % VOCAB


@given(specs() | encoder_specs(masks, any_head), times)
@settings(max_examples=examples(60))
def test_flops_are_what_torch_counts(spec: DecoderSpec | EncoderSpec, time: int) -> None:
    assert forward_flops(spec, time) + difference(spec, time) == counted(build(spec), some(time))
    assert training_flops(spec, time) == 3 * forward_flops(spec, time)


@given(image_specs(no_words))
@few
def test_flops_of_images(spec: EncoderSpec) -> None:
    patches = spec.embed.patches
    assert patches is not None
    image = torch.zeros(1, patches.channels, patches.height, patches.width, dtype=torch.float64)
    assert forward_flops(spec, spec.context) + difference(spec, spec.context) == counted(build(spec), image)


@given(encoder_decoder_specs(), times, times)
@settings(max_examples=examples(40))
def test_flops_of_both_sides(spec: EncoderDecoderSpec, source_time: int, time: int) -> None:
    expected = forward_flops(spec, time, source_time)
    expected += difference(spec.encoder, source_time) + difference(spec.decoder, time)
    assert expected == counted(build(spec), some(source_time), some(time))
    assert forward_flops(spec, time) == forward_flops(spec, time, time)


@pytest.mark.parametrize("design", [classic, modern])
def test_flops_of_the_designs(design: Any) -> None:
    spec = design(97, 32, 3, 64, 16)
    assert forward_flops(spec, 32) + difference(spec, 32) == counted(Decoder(spec), some(32))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("project", [True, False])
def test_control_the_countable_cell_is_the_kernel(cell: Any, project: bool) -> None:
    block = BlockSpec(RecurrentSpec(cell, 8, project=project), None, EXAMPLE.stack.blocks[0].norm)
    model = build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=(block,) * 2)))
    with torch.no_grad():
        alone = model(some(9))
        with in_countable_form():
            torch.testing.assert_close(model(some(9)), alone)


def test_control_a_layer_too_many_is_seen() -> None:
    deeper = replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=EXAMPLE.stack.blocks * 2))
    assert forward_flops(deeper, 9) + difference(deeper, 9) > counted(build(EXAMPLE), some(9))


# --- bytes -----------------------------------------------------------------------------------------------------------


@given(specs(), times)
@few
def test_cache_bytes_are_those_of_the_cache(spec: DecoderSpec, time: int) -> None:
    model = build(spec)
    cache = model.new_cache(1, time)
    assert cache.n_bytes == cache_bytes(spec, time, 8)
    with torch.no_grad():
        model(some(time), cache=cache)
    assert cache.n_bytes == cache_bytes(spec, time, 8)
    single = model.float()
    assert single.new_cache(1, time).n_bytes == cache_bytes(spec, time)


@given(encoder_decoder_specs(), times, times)
@few
def test_cache_bytes_with_what_the_encoder_read(spec: EncoderDecoderSpec, source_time: int, time: int) -> None:
    model: EncoderDecoder = build(spec)
    with torch.no_grad():
        cache = model.new_cache(some(source_time), capacity=time)
        model.decoder(some(time), cache=cache)  # the first forward projects what was read
    assert cache.n_bytes == cache_bytes(spec, time, 8, source_time)


@given(encoder_specs(masks), times)
@few
def test_an_encoder_keeps_nothing_but_activations(spec: EncoderSpec, time: int) -> None:
    assert cache_bytes(spec, time) == 0
    assert activation_bytes(spec, 2, time) == 2 * time * activation_bytes(spec, 1, 1) > 0


def test_a_state_does_not_grow_and_a_window_stops() -> None:
    def kept(mixer: Any, time: int) -> int:
        norm = EXAMPLE.stack.blocks[0].norm
        return cache_bytes(replace(EXAMPLE, stack=StackSpec(8, (BlockSpec(mixer, None, norm),), None)), time)

    for mixer in (LinearAttentionSpec(2, 4), RecurrentSpec("lstm", 5), AttentionSpec(2, 2, 4, Causal() & Window(4))):
        assert kept(mixer, 16) == kept(mixer, 32)
    assert 2 * kept(AttentionSpec(2, 2, 4), 16) == kept(AttentionSpec(2, 2, 4), 32)
    assert EXAMPLE.head == LMHeadSpec() and cache_bytes(EXAMPLE, 3) == 3 * 2 * (2 * 2 * 4) * 4
