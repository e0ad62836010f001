"""Explanations are tested by taking tokens out: a planted reason passes, what is no reason does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_models import empty, with_induction
from strategies import EXAMPLE, build, close
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.designs import DESIGNS
from pellucid.errors import UsageError
from pellucid.interpret.dependence import dependence, permuted
from pellucid.interpret.faithfulness import FILLERS, METHODS, NEARNESS, Faithfulness, compare, curves
from pellucid.look.look import look

PROMPT = [0, 3, 8, 5, 2, 3]  # 8 follows, because 3 was followed by it
REASONS = {1, 2, 5}


def test_leave_one_out_finds_the_planted_reasons_and_beats_orders_without_knowledge() -> None:
    found = curves(with_induction(), PROMPT, 8)
    assert set(found.importance["leave-one-out"].topk(3).indices.tolist()) == REASONS
    assert found.beats_random("leave-one-out") == 1.0
    assert found.area("leave-one-out") > found.area(NEARNESS)


@torch.no_grad()
def test_curves_equal_one_forward_a_point() -> None:
    model = build(EXAMPLE)
    prompt = torch.tensor([PROMPT[:4]])
    found = curves(model, prompt, 4, 2, measure="logit", methods=("leave-one-out",))
    x = model.embed(prompt, model.embed.places(prompt))
    generator = torch.Generator().manual_seed(0)
    ranking, testing = (torch.randint(model.spec.vocab_size, (FILLERS, 4), generator=generator) for _ in range(2))

    def measured(present: list[int], fillers: Tensor = testing) -> float:
        absent = model.embed(fillers, model.embed.places(fillers))
        scores: list[float] = []
        for filler in absent:
            rows = torch.stack([x[0, t] if t in present else filler[t] for t in range(4)])[None]
            logits = model.unembed(model.blocks_from(rows, Tokens.plain(1, 4)))[0, -1]
            scores.append(float(logits[4] - logits[2]))
        return sum(scores) / len(scores)

    for name, importance in found.importance.items():
        order = importance.argsort(descending=True, stable=True).tolist()
        close(found.insertion[name], torch.tensor([measured(order[:n]) for n in range(5)]).double())
        close(found.deletion[name], torch.tensor([measured(order[n:]) for n in range(5)]).double())
        assert found.insertion[name][-1] == found.deletion[name][0]
    whole = measured([0, 1, 2, 3], ranking)
    left = [whole - measured([t for t in range(4) if t != out], ranking) for out in range(4)]
    close(found.importance["leave-one-out"], torch.tensor(left).double())


def test_verdicts_need_whole_intervals_above_both_orders_without_knowledge() -> None:
    random, noise = torch.zeros(12).double(), torch.linspace(-1, 1, 12).double()
    areas = {"good": 2 + noise, "near": 1 + noise, NEARNESS: 1 + noise.flip(0), "chance": noise}
    found = Faithfulness(areas, random)
    assert found.verdict("good") == "explains"
    assert found.verdict("near") == "no better than nearness"
    assert found.verdict("chance") == "no better than random orders"
    mean, low, high = found.margin("good", "near")
    assert low <= mean <= high and abs(mean - 1) < 1e-9
    with pytest.raises(UsageError, match="no interval"):
        Faithfulness({"a": random[:1]}, random[:1]).verdict("a")


def test_planted_reasons_explain_over_prompts_and_their_opposite_does_not() -> None:
    prompts = [[0, a, b, 5, 2, a] for a, b in ((3, 8), (4, 7), (6, 1), (9, 3))]
    found = compare(with_induction(), prompts, methods=("leave-one-out",))
    assert found.verdict("leave-one-out") == "explains"
    opposite = Faithfulness({**found.areas, "opposite": -found.areas["leave-one-out"]}, found.random)
    assert opposite.verdict("opposite") == "no better than random orders"


def test_an_answer_depends_on_the_maps_that_carry_it_and_on_no_others() -> None:
    found = dependence(with_induction(), PROMPT)
    assert found.layers == (0, 1) and min(found.uniform[1], found.permuted[1], *found.all) > 0.1
    nothing = dependence(empty(), PROMPT)
    assert nothing.all == (0.0, 0.0) and not nothing.uniform.any() and not nothing.permuted.any()


@torch.no_grad()
def test_uniform_maps_equal_scores_of_zero() -> None:
    model, ids = build(EXAMPLE), torch.tensor([PROMPT])
    plain = model(ids)[:, -1].softmax(-1)
    with model.taps(edit={"blocks.*.attn.scores": torch.zeros_like}):
        level = model(ids)[:, -1].softmax(-1)
    assert dependence(model, PROMPT).all[0] == pytest.approx(float((plain - level).abs().sum() / 2), abs=1e-6)


def test_permuted_maps_keep_their_weights_and_what_is_hidden() -> None:
    seen = torch.ones(2, 3, 7, 7, dtype=torch.bool).tril().triu(-3)
    pattern = torch.rand(2, 3, 7, 7).masked_fill(~seen, 0)
    moved = permuted(pattern, seen, torch.Generator().manual_seed(1))
    assert not moved[~seen].any() and not torch.equal(moved, pattern)
    close(moved.sort(-1).values, pattern.sort(-1).values)


def test_a_look_explains_its_guess() -> None:
    why, tested, moved = look(with_induction(), PROMPT, explain=True).panels
    assert why.title == "Why #8? Importance of tokens" and why.rows == METHODS and why.values.shape == (5, 6)
    assert (why.values.sum(1) < 1.001).all()
    assert set(tested.rows) == {*METHODS, NEARNESS} and tested.values[0, 2] == tested.values[:, 2].max()
    assert moved.rows == ("layer 0", "layer 1", "all layers")


def test_guesses_that_cannot_be_explained_are_refused() -> None:
    model = build(EXAMPLE)
    recurrent = build(DESIGNS["lstm"](11, 16, 2, 16, 8))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (model, {"methods": ("shap",)}, "choose some of attention"),
        (model, {"orders": 0}, "orders = 0"),
        (model, {"prompt": [PROMPT, PROMPT]}, "2 prompts"),
        (recurrent, {}, "attention map in every layer"),
    ]
    for of, options, message in cases:
        asked: dict[str, Any] = {"prompt": PROMPT, **options}
        with pytest.raises(UsageError, match=message):
            curves(of, **asked)
    with pytest.raises(UsageError, match="0 layers with attention maps"):
        dependence(recurrent, PROMPT)
    assert curves(recurrent, PROMPT, methods=("leave-one-out", "gradient × input")).insertion
