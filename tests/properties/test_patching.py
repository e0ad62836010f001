"""A grid of patched runs equals one run at a time; what is put in from the run itself changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, VOCAB, as_encoder, build, close, encoder_specs, ids, masks, specs
from torch import Tensor

from pellucid.errors import TapError, UsageError
from pellucid.interpret import sweep
from pellucid.interpret.answers import Answer
from pellucid.interpret.patching import Grid, ablate, embedded, pair, patch
from pellucid.interpret.record import capture
from pellucid.interpret.sweep import Put, Run
from pellucid.nn.models import Decoder, Encoder
from pellucid.taps import point_axes

few = settings(max_examples=examples(6))
CLEAN, CORRUPT = torch.tensor([[3, 1, 4, 1, 5, 9]]), torch.tensor([[3, 1, 7, 1, 5, 9]])


@torch.no_grad()
def one_at_a_time(model: Any, donors: dict[str, Tensor], text: Tensor, grid: Grid, right: int, wrong: int) -> Tensor:
    """The definition: a whole forward for each cell, with a function as its edit."""
    axes = point_axes(model)
    scores: list[Tensor] = []
    ranges = {"layer": grid.layers, "position": grid.positions, "head": grid.heads}
    for place in torch.cartesian_prod(*(torch.tensor(ranges[axis]) for axis in grid.over)).view(-1, len(grid.over)):
        at = dict(zip(grid.over, place.tolist(), strict=True))
        edit = {}
        for layer in [at["layer"]] if "layer" in at else grid.layers:
            name = f"blocks.{layer}.{grid.point}"
            where: list[Any] = [slice(None)] * len(axes[name].split())
            for axis, names in (("position", ("time", "query", "key")), ("head", ("heads", "kv_heads"))):
                if axis in at:
                    where[next(i for i, each in enumerate(axes[name].split()) if each in names)] = at[axis]

            def put(x: Tensor, name: str = name, where: tuple[Any, ...] = tuple(where)) -> Tensor:
                x = x.clone()
                x[where] = donors[name][where]
                return x

            edit[name] = put
        with model.taps(edit=edit):
            logits = model(text)[:, -1]
        scores.append(logits[:, right] - logits[:, wrong])
    return torch.stack(scores).view(grid.scores.shape)


attentive = (
    specs(only_attention=True).map(build) | specs().map(build) | encoder_specs(masks, only_attention=True).map(build)
)
POINTS = ["resid_pre", "attn_out", "resid_post", "attn.z", "attn.k", "attn.q", "ffn_out", "attn_in", "ffn_act"]


@given(attentive, ids(st.just(4), min_time=2, max_time=6), st.sampled_from(POINTS), st.data())
@settings(max_examples=examples(10))
def test_a_grid_equals_one_forward_a_cell(model: Any, texts: Tensor, point: str, data: st.DataObject) -> None:
    names = [f"blocks.{layer}.{point}" for layer in range(model.spec.n_layers)]
    if not set(names) <= set(model.point_names()):
        return
    clean, corrupt = texts[:2], texts[2:].clone()
    same = data.draw(st.integers(0, texts.shape[1]))
    corrupt[:, :same] = clean[:, :same]
    axes: list[Any] = [("layer", "position"), ("position",), ("layer",)]
    axes += [("layer", "head"), ("head", "position", "layer")] if point in ("attn.z", "attn.k", "attn.q") else []
    with mock.patch.object(sweep, "FEW", data.draw(st.sampled_from([0, 512]))):  # each position by itself, or together
        grid = patch(model, pair(model, clean, corrupt), 3, 5, point=point, over=data.draw(st.sampled_from(axes)))
    close(grid.scores, one_at_a_time(model, capture(model, clean, names), corrupt, grid, 3, 5))


def test_attention_maps_are_patched_as_other_points() -> None:
    model = build(EXAMPLE)
    names = [f"blocks.{layer}.attn.pattern" for layer in range(2)]
    grid = patch(model, pair(model, CLEAN, CORRUPT), 3, 5, point="attn.pattern", over=("layer", "head", "position"))
    close(grid.scores, one_at_a_time(model, capture(model, CLEAN, names), CORRUPT, grid, 3, 5))


@given(attentive, ids(st.just(1), min_time=2, max_time=6), st.data())
@few
def test_a_run_s_own_activations_change_nothing(model: Any, text: Tensor, data: st.DataObject) -> None:
    """Straight through the batches of cells, where the grid itself would leave such cells out."""
    run = Run.of(model, embedded(model, text), text.shape[1] - 1)
    point = data.draw(st.sampled_from(["resid_pre", "resid_post"]))
    acts = capture(model, text, [f"blocks.*.{point}"])
    cells = [
        [Put(layer, point, acts[f"blocks.{layer}.{point}"], position)]
        for layer in range(model.spec.n_layers)
        for position in (None, *range(text.shape[1]))
    ]
    answer = Answer.of(model, 3, 5, 1)
    close(run.scores(cells, answer), run.score(answer).expand(len(cells), -1))


@pytest.mark.parametrize("measure", ["logit", "logprob", "prob"])
def test_everything_put_in_gives_the_clean_answer(measure: Literal["logit", "logprob", "prob"]) -> None:
    model = build(EXAMPLE)
    grid = patch(model, pair(model, CLEAN, CORRUPT), 3, 5, over=("layer",), measure=measure)
    assert grid.target is not None
    close(grid.scores, grid.target.expand(2, 1))
    close(grid.recovered, torch.ones_like(grid.scores))
    with torch.no_grad():
        scores = model(CLEAN)[:, -1].log_softmax(-1) if measure != "logit" else model(CLEAN)[:, -1]
    scores = scores.exp() if measure == "prob" else scores
    close(grid.target, scores[:, 3] - scores[:, 5])


def test_a_window_patches_the_layers_around_its_cell() -> None:
    model = build(EXAMPLE)
    prompts = pair(model, CLEAN, CORRUPT)
    wide = patch(model, prompts, 3, 5, point="attn_out", over=("layer", "position"), window=3)
    both = patch(model, prompts, 3, 5, point="attn_out", over=("position",))
    close(wide.scores, both.scores.expand(2, -1, -1))  # three layers around either of two are both
    assert (wide.scores - patch(model, prompts, 3, 5, point="attn_out").scores).abs().max() > 1e-3


# --- what is not computed again --------------------------------------------------------------------------------------


def test_nothing_upstream_of_a_cell_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that blocks are given, counted: a triangle of layers times one of positions, and one query at last."""
    monkeypatch.setattr(sweep, "FEW", 0)
    block = EXAMPLE.stack.blocks[0]
    model = build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=(block,) * 4)))
    text = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
    run, tokens = Run.of(model, embedded(model, text[:1]), 6), [0]

    def count(_: Any, given_: Any) -> None:
        tokens[0] += given_[0][..., 0].numel()

    for each in model.blocks:
        each.register_forward_pre_hook(count)
    donors = capture(model, text[1:], ["blocks.*.resid_pre"])
    cells = [[Put(layer, "resid_pre", donors[f"blocks.{layer}.resid_pre"], t)] for layer in range(4) for t in range(7)]
    tokens[0] = 0
    run.scores(cells, Answer.of(model, 3, 5, 1))
    lengths = range(1, 8)
    inner = sum(range(1, 4)) * sum(lengths)  # three layers, in which one, two and three rows of each length run
    last = sum(length + 3 if length > 1 else 4 for length in lengths)  # a row that is patched there, and three queries
    assert tokens[0] == inner + last
    assert run.forwards < 28 / 2


def test_prompts_that_begin_alike_cost_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "FEW", 0)
    model = build(EXAMPLE)
    early, late = (
        patch(model, pair(model, CLEAN, CLEAN.index_fill(1, torch.tensor([place]), 8)), 3, 5) for place in (0, 4)
    )
    assert late.forwards < 0.4 * early.forwards
    assert (late.effect[:, :4] == 0).all() and (late.effect[:, 4:] != 0).any()


# --- ablation --------------------------------------------------------------------------------------------------------


def test_ablations_put_in_zeros_means_and_other_texts() -> None:
    model, names = build(EXAMPLE), [f"blocks.{layer}.attn.z" for layer in range(2)]
    others = torch.tensor([[2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3]])
    there, acts = capture(model, CLEAN, names), capture(model, others, names)
    means = {name: x.mean((0, 2), keepdim=True).expand_as(there[name]) for name, x in acts.items()}
    zeros = {name: torch.zeros_like(x) for name, x in there.items()}
    for how, donors, given_ in (("zero", zeros, None), ("mean", means, others)):
        grid = ablate(model, CLEAN, 3, 5, how=how, others=given_)  # type: ignore[arg-type]
        close(grid.scores, one_at_a_time(model, donors, CLEAN, grid, 3, 5))
    grid = ablate(model, CLEAN, 3, 5, how="resample", others=CORRUPT, over=("layer", "position"))
    back = patch(model, pair(model, CORRUPT, CLEAN), 3, 5, point="attn.z")
    close(grid.scores, back.scores)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_prompts_of_different_lengths_are_refused_or_mapped() -> None:
    model = build(EXAMPLE)
    longer = torch.tensor([[3, 1, 7, 8, 1, 5, 9]])
    with pytest.raises(UsageError, match="the clean prompt has 6 tokens, the corrupt one 7"):
        pair(model, CLEAN, longer)
    mapped = pair(model, CLEAN, longer, align="ends")
    assert mapped.align == (0, 1, -1, -1, 3, 4, 5) and mapped.same_until == 2
    grid = patch(model, mapped, 3, 5)
    names = ["blocks.0.resid_pre", "blocks.1.resid_pre"]
    clean, there = capture(model, CLEAN, names), capture(model, longer, names)
    donors = {name: clean[name][:, [0, 1, 2, 2, 3, 4, 5]] for name in names}
    for name in names:
        donors[name][:, 2:4] = there[name][:, 2:4]
    close(grid.scores, one_at_a_time(model, donors, longer, grid, 3, 5))
    close(grid.effect[:, :4], torch.zeros_like(grid.effect[:, :4]))
    assert grid.effect[:, 4:].abs().max() > 1e-3
    with pytest.raises(UsageError, match="map over positions"):
        patch(model, mapped, 3, 5, point="attn.pattern")
    with pytest.raises(UsageError, match="has no partner"):
        patch(model, pair(model, CLEAN, longer, align=[0, 1, -1, -1, 3, 4, -1]), 3, 5)
    for align in ([0, 1], [0, 1, 2, 3, 4, 5, 6]):
        with pytest.raises(UsageError, match="align ="):
            pair(model, CLEAN, longer, align=align)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"point": "resid_pree"}, TapError, "did you mean 'resid_pre'"),
        ({"over": ("layer", "head")}, UsageError, "resid_pre has no axis of heads"),
        ({"over": ()}, UsageError, "over ="),
        ({"over": ("layer", "layer")}, UsageError, "each once"),
        ({"layers": [2]}, UsageError, "layer 2 of the model, which has 2"),
        ({"positions": [6]}, UsageError, "position 6"),
        ({"read": 6}, UsageError, "read = 6"),
        ({"window": 0}, UsageError, "at least 1 layer"),
        ({"right": VOCAB}, UsageError, f"token id {VOCAB}"),
    ],
)
def test_impossible_grids_are_refused(options: Any, error: type[Exception], message: str) -> None:
    model = build(EXAMPLE)
    with pytest.raises(error, match=message):
        patch(model, pair(model, CLEAN, CORRUPT), **({"right": 3} | options))


def test_ablations_without_what_they_need_are_refused() -> None:
    model = build(EXAMPLE)
    for options, message in (
        ({"how": "mean"}, "others = None"),
        ({"how": "zero", "others": CLEAN}, "others are the texts"),
        ({"how": "resample", "others": CLEAN[:, :3]}, "as many rows and tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            ablate(model, CLEAN, 3, **options)  # type: ignore[arg-type]


# --- controls --------------------------------------------------------------------------------------------------------


def test_control_a_prefix_of_another_run_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "FEW", 0)
    model = build(EXAMPLE)
    wanted = patch(model, pair(model, CLEAN, CORRUPT.flip(1)), 3, 5).scores
    past = Run._past

    def stale(self: Run, layer: int, rows: int, start: int) -> Any:
        found = past(self, layer, rows, start)
        found.k = found.k.flip(2)
        return found

    monkeypatch.setattr(Run, "_past", stale)
    assert (patch(model, pair(model, CLEAN, CORRUPT.flip(1)), 3, 5).scores - wanted).abs().max() > 1e-3


def test_control_a_model_that_looks_ahead_keeps_no_prefix() -> None:
    run = Run.of(build(as_encoder(EXAMPLE)), torch.zeros(1, 3, 8, dtype=torch.float64), 2)
    assert isinstance(run.model, Encoder) and run.keys is None
    kept = Run.of(build(EXAMPLE), torch.zeros(1, 3, 8, dtype=torch.float64), 2)
    assert isinstance(kept.model, Decoder) and kept.keys is not None
