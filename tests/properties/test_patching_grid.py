"""A grid of activation patching, layers × positions: cells as rows of a batch, and a prefix that is run once, change no
number of it (Meng et al. 2022, section 2.1: a run on a corrupted text with one state of the clean run put back)."""

from __future__ import annotations

import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, build, close, ids, specs
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.interpret.edits import Patch
from pellucid.interpret.record import capture
from pellucid.nn.models import Decoder


def score(logits: Tensor) -> Tensor:
    """How much likelier token 3 is than token 5 to come next, in nats, for each row."""
    return logits[:, -1, 3] - logits[:, -1, 5]


def states(model: Decoder, text: Tensor) -> list[Tensor]:
    """What enters each block, (1, time, d_model)."""
    found = capture(model, text, ["blocks.*.resid_pre"])
    return [found[f"blocks.{layer}.resid_pre"] for layer in range(model.spec.n_layers)]


@torch.no_grad()
def by_cell(model: Decoder, clean: Tensor, corrupted: Tensor) -> Tensor:
    """The definition: a forward for each cell, (layer, position)."""
    grid = torch.zeros(model.spec.n_layers, clean.shape[1], dtype=torch.float64)
    for layer, state in enumerate(states(model, clean)):
        for position in range(clean.shape[1]):

            def restore(x: Tensor, state: Tensor = state, position: int = position) -> Tensor:
                return torch.cat((x[:, :position], state[:, position : position + 1], x[:, position + 1 :]), 1)

            with model.taps(edit={f"blocks.{layer}.resid_pre": restore}):
                grid[layer, position] = score(model(corrupted))[0]
    return grid


def places(state: Tensor) -> Patch:
    """Row i has the clean state at position i."""
    each = torch.arange(state.shape[1])
    return Patch(each, each, state[0])


@torch.no_grad()
def by_layer(model: Decoder, clean: Tensor, corrupted: Tensor) -> Tensor:
    """A forward for each layer, its positions as rows of one batch."""
    rows = []
    for layer, state in enumerate(states(model, clean)):
        with model.taps(edit={f"blocks.{layer}.resid_pre": places(state)}):
            rows.append(score(model(corrupted.expand(clean.shape[1], -1))))
    return torch.stack(rows)


@torch.no_grad()
def from_the_layer_on(model: Decoder, clean: Tensor, corrupted: Tensor) -> Tensor:
    """The same, each forward beginning at its layer with what the corrupted run had there: half of the work is left."""
    time, rows = clean.shape[1], []
    tokens = Tokens.plain(time, time)
    for layer, (state, other) in enumerate(zip(states(model, clean), states(model, corrupted), strict=True)):
        patched = places(state)(other.expand(time, -1, -1))
        rows.append(score(model.unembed(model.blocks_from(patched, tokens, first=layer))))
    return torch.stack(rows)


@given(specs().map(build), ids(st.just(2), min_time=2, max_time=6))
@settings(max_examples=examples(6))
def test_a_grid_by_rows_and_from_shared_prefixes_equals_one_forward_a_cell(model: Decoder, texts: Tensor) -> None:
    clean, corrupted = texts[:1], texts[1:]
    grid = by_cell(model, clean, corrupted)
    close(by_layer(model, clean, corrupted), grid)
    close(from_the_layer_on(model, clean, corrupted), grid)


def test_the_grid_tells_where_a_text_was_corrupted() -> None:
    """In the first layer only the corrupted position restores the clean score; in the last, only later ones matter."""
    model = build(EXAMPLE)
    clean, corrupted = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[3, 1, 9, 1, 5]])
    grid = by_layer(model, clean, corrupted)
    with torch.no_grad():
        wanted, plain = score(model(clean)), score(model(corrupted))
    close(grid[0, 2:3], wanted)
    close(grid[0, [0, 1, 3, 4]], plain.expand(4))
    assert (wanted - plain).abs() > 1e-3
    assert (grid[-1, :2] - plain).abs().max() < 1e-9 and (grid[-1, 2:] - plain).abs().min() > 1e-6


def test_control_a_grid_that_is_off_by_one_layer_is_seen() -> None:
    model = build(EXAMPLE)
    clean, corrupted = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[2, 7, 9, 8, 6]])
    grid = by_cell(model, clean, corrupted)
    assert (grid.roll(1, 0) - by_layer(model, clean, corrupted)).abs().max() > 1e-3
