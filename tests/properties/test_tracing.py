"""Tracing and path patching: equal to their definitions, and they find what was planted where it was planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_models import FACT, INDUCTION, PREVIOUS, READER, empty, with_fact, with_induction
from strategies import EXAMPLE, build, close
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.interpret.attribution import attribute
from pellucid.interpret.patching import ablate, pair, patch
from pellucid.interpret.paths import patch_paths
from pellucid.interpret.record import capture
from pellucid.interpret.tracing import trace

CLEAN, CORRUPT = torch.tensor([[3, 1, 4, 1, 5, 9]]), torch.tensor([[3, 1, 7, 1, 5, 9]])
REPEAT, OTHER = torch.tensor([[0, 3, 8, 5, 2, 3]]), torch.tensor([[0, 3, 9, 5, 2, 3]])  # after 3 came 8, or 9


# --- causal tracing --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_trace_is_its_definition() -> None:
    """One forward a cell and a draw of noise, with states of the clean run put back."""
    model = build(EXAMPLE)
    found = trace(model, CLEAN, (1, 3), 3, samples=2, seed=4, window=2)
    with model.taps(read="embed") as acts:
        wanted = model(CLEAN)[0, -1].softmax(-1)[3]
    assert found.clean == pytest.approx(float(wanted))
    drawn = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(4)).double()
    noisy = acts["embed"].repeat(2, 1, 1)
    noisy[:, 1:3] += 3.0 * acts["embed"].std() * drawn
    states = capture(model, CLEAN, ["blocks.*.resid_post", "blocks.*.ffn_out"])

    def restored(point: str, layers: list[int], position: int) -> Tensor:
        def put(name: str) -> Any:
            def edit(x: Tensor) -> Tensor:
                x = x.clone()
                x[:, position] = states[name][:, position]
                return x

            return edit

        edits = {name: put(name) for name in (f"blocks.{layer}.{point}" for layer in layers)}
        with model.taps(edit={"embed": lambda _: noisy, **edits}):
            return model(CLEAN.repeat(2, 1))[:, -1].softmax(-1)[:, 3].mean()

    for layer in range(2):
        for position in range(6):
            close(found.restored()[layer, position], restored("resid_post", [layer], position))
            both = [0] if layer == 0 else [0, 1]  # a window of two: the layer, and the one before it
            close(found.restored("ffn_out")[layer, position], restored("ffn_out", both, position))


def test_a_trace_finds_the_neuron_that_knows_and_the_head_that_reads_it() -> None:
    """The state of the subject up to the neuron's layer carries the fact, then that of the last token."""
    found = trace(with_fact(), [[2, 4, 5]], (1, 2), samples=16, noise=8.0, window=1)
    assert found.answer == 7 and found.clean > 0.95 and found.total_effect > 0.2
    states, neurons, heads = (found.indirect_effect(point) / found.total_effect for point in found.grids)
    assert states[0, 1] > 0.99 and states[1, 2] > 0.99 and states[1, 1] < 0.01 and states[0, 2] < 0.01
    assert neurons[FACT[0], 1] > 0.2 and heads[READER[0], 2] > 0.99
    neurons[FACT[0], 1] = heads[READER[0], 2] = 0
    assert neurons.abs().max() < 0.01 and heads.abs().max() < 0.01
    nothing = trace(empty(), [[2, 4, 5]], (1, 2), 7, samples=4)
    assert abs(nothing.total_effect) < 1e-9 and nothing.indirect_effect().abs().max() < 1e-9


def test_a_subject_that_is_not_there_is_refused() -> None:
    model = build(EXAMPLE)
    for subject, message in (((3, 3), "has 6 tokens"), ((4, 7), "has 6 tokens"), ("Paris", "no tokenizer")):
        with pytest.raises(UsageError, match=message):
            trace(model, CLEAN, subject, 3)
    with pytest.raises(UsageError, match="2 prompts"):
        trace(model, CLEAN.repeat(2, 1), (0, 1), 3)


# --- the planted induction head --------------------------------------------------------------------------------------


def test_patching_finds_the_induction_head_and_the_head_it_reads() -> None:
    model = with_induction()
    assert int(model(REPEAT)[0, -1].argmax()) == 8 and int(model(OTHER)[0, -1].argmax()) == 9
    heads = patch(model, pair(model, REPEAT, OTHER), 8, 9, point="attn.z", over=("layer", "head")).recovered[..., 0]
    assert heads[INDUCTION] > 0.95
    heads[INDUCTION] = 0
    assert heads.abs().max() < 1e-6
    silenced = ablate(model, REPEAT, 8, 9).effect[..., 0]
    assert silenced[INDUCTION] < -1 and silenced[PREVIOUS] < -1
    assert (silenced.abs() > 1e-6).sum() == 2
    assert attribute(model, REPEAT, 8, 9).parts()[0][0] == "1.2"


def test_the_path_from_the_previous_token_head_leads_into_the_keys_of_the_induction_head() -> None:
    """The clean prompt repeats a token, the corrupt one does not: what differs is where 3 stood before."""
    model = with_induction()
    prompts = pair(model, REPEAT, torch.tensor([[0, 6, 8, 5, 2, 3]]))
    into = {
        point: patch_paths(model, prompts, 8, 5, receivers=[(1, f"attn.{point}", INDUCTION[1])]).effect[..., 0]
        for point in "qkv"
    }
    assert into["k"][PREVIOUS] > 1 and into["q"][PREVIOUS].abs() < 1e-6 and into["v"][PREVIOUS].abs() < 1e-6
    others = into["k"][0, [0, 2]]
    assert others.abs().max() < 1e-6 and into["k"][1].isnan().all()
    direct = patch_paths(model, prompts, 8, 5).effect[..., 0]
    assert direct[PREVIOUS].abs() < 1e-6, "it says nothing to the logits itself"
    assert direct[INDUCTION].abs() > 1
    nothing = patch_paths(empty(), prompts, 8, 5, receivers=[(1, "attn.k", 2)]).effect[0]
    assert nothing.abs().max() < 1e-9


# --- path patching ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("through_ffn", [True, False])
@pytest.mark.parametrize("receivers", [None, [(1, "attn.q", 2)], [(1, "attn.k", 0), (1, "attn.v", 1)]])
def test_path_patching_is_its_definition(through_ffn: bool, receivers: Any) -> None:
    model = build(EXAMPLE)
    clean = capture(model, CLEAN, "*")
    there = capture(model, CORRUPT, "*")
    found = patch_paths(model, pair(model, CLEAN, CORRUPT), 3, 5, receivers=receivers, through_ffn=through_ffn)

    def head_of(name: str, head: int, source: Any) -> Any:
        def edit(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, head] = source[name][:, head]
            return x

        return edit

    for layer in range(2 if receivers is None else 1):
        for head in range(4):
            edits: dict[str, Any] = {f"blocks.{layer}.attn.z": head_of(f"blocks.{layer}.attn.z", head, clean)}
            frozen = [f"blocks.{later}.attn_out" for later in range(layer + 1, 2)]
            frozen += [] if through_ffn else [f"blocks.{later}.ffn_out" for later in range(layer, 2)]
            for name in frozen:
                edits[name] = lambda _, name=name: there[name]
            with model.taps(read="*", edit=edits) as first:
                logits = model(CORRUPT)
            if receivers is not None:
                into = {}
                for at, point, number in receivers:
                    into[f"blocks.{at}.{point}"] = head_of(f"blocks.{at}.{point}", number, dict(first))
                with model.taps(edit=into):
                    logits = model(CORRUPT)
            close(found.scores[layer, head, 0], logits[0, -1, 3] - logits[0, -1, 5])


def test_receivers_that_there_are_not_are_refused() -> None:
    model = build(EXAMPLE)
    with pytest.raises(UsageError, match=r"head 2 of blocks\.1\.attn\.k, which has 2"):
        patch_paths(model, pair(model, CLEAN, CORRUPT), 3, receivers=[(1, "attn.k", 2)])
