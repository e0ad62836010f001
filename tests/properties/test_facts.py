"""A fact is rewritten where it is asked for, and comes back bit for bit; neurons read and write what was planted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted_models import FACT, with_fact
from strategies import EXAMPLE, build, close

from pellucid.errors import UsageError
from pellucid.interpret.facts import rewrite, scores, triggers, writes
from pellucid.interpret.record import capture
from pellucid.nn.models import Decoder
from pellucid.spec import SANDWICH_NORM

PROMPT, OTHER = [3, 1, 4, 1, 5], [3, 1, 8, 1, 5]


def small() -> Decoder:
    block = replace(EXAMPLE.stack.blocks[0])
    return build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=(block,) * 3)))


def test_a_rewritten_fact_is_said_and_undone_bit_for_bit() -> None:
    model = small()
    with torch.no_grad():
        before = model(torch.tensor([PROMPT]))[0, -1]
    old, _, new = before.topk(3).indices.tolist()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    edit = rewrite(model, PROMPT, (2, 3), [new], layer=1, prefixes=2)
    assert scores(model, [old], [new], [PROMPT]).efficacy == 1.0
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, weights[name])]
    assert changed == ["blocks.1.ffn.down.weight"]
    difference = edit.weight.detach() - edit.before
    assert torch.linalg.matrix_rank(difference) == 1
    close(edit.weight.detach() @ edit.key, edit.value)  # the key now has the value, exactly
    edit.undo()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert scores(model, [old], [new], [PROMPT]).efficacy == 0.0
    assert all(p.grad is None for p in model.parameters())


def test_the_layer_is_by_default_the_one_of_the_trace_and_scores_are_shares() -> None:
    model = small()
    edit = rewrite(model, PROMPT, (2, 3), [2], texts=[[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 2)
    assert edit.layer in range(3)
    edit.undo()
    found = scores(model, [4], [2], [PROMPT, OTHER], neighbours=[PROMPT])
    assert found.efficacy in (0.0, 0.5, 1.0) and found.paraphrase != found.paraphrase
    assert found.neighbourhood == 1 - scores(model, [4], [2], [PROMPT]).efficacy


def test_a_planted_neuron_is_triggered_by_its_token_and_writes_its_value() -> None:
    model = with_fact()
    layer, neuron = FACT
    texts = torch.tensor([[1, 2, 4, 3], [4, 5, 6, 0]])
    best = triggers(model, texts, layer, neuron, top=2)
    assert {(each.row, each.position) for each in best} == {(0, 2), (1, 0)}
    act = capture(model, texts, "blocks.0.ffn_act")["blocks.0.ffn_act"]
    assert best[0].activation == float(act[0, 2, neuron]) > 0
    with torch.no_grad():
        model.layers[1].ffn.down.weight[-10 + 7, 2] = 3.0  # type: ignore[union-attr,index]
    assert writes(model, 1, 2, top=1) == [(7, 3.0)]


def test_impossible_edits_are_refused() -> None:
    model = small()
    for arguments, message in (
        (((5, 6), [2]), "has 5 tokens"),
        (((2, 3), []), "the answer is empty"),
        (((2, 3), [11]), "token id 11"),
        ((("France", [2])), "no tokenizer"),
    ):
        with pytest.raises(UsageError, match=message):
            rewrite(model, PROMPT, *arguments, layer=0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="layer 3 of the model"):
        rewrite(model, PROMPT, (2, 3), [2], layer=3)
    with pytest.raises(UsageError, match="neuron 12"):
        writes(model, 0, 12)
    blocks = tuple(replace(block, placement=SANDWICH_NORM) for block in EXAMPLE.stack.blocks)
    sandwich = build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=blocks)))
    with pytest.raises(UsageError, match="plain pre-norm layer"):
        rewrite(sandwich, PROMPT, (2, 3), [2], layer=0)
