"""Scores of heads find what was planted; factored matrices are their products; estimates agree where all is linear."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted_models import INDUCTION, PREVIOUS, empty, with_induction
from strategies import EXAMPLE, build, close
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.interpret.circuits import Factored, circuits_of, composition
from pellucid.interpret.gradients import estimate_patches, gradient_times_activation, integrated_gradients
from pellucid.interpret.heads import habits, importance
from pellucid.interpret.measures import rollout
from pellucid.interpret.patching import pair, patch
from pellucid.interpret.record import capture

CLEAN, CORRUPT = torch.tensor([[3, 1, 4, 1, 5, 9]]), torch.tensor([[3, 1, 7, 1, 5, 9]])


# --- habits ----------------------------------------------------------------------------------------------------------


def test_planted_heads_have_their_habits_and_others_have_not() -> None:
    found, none = habits(with_induction(), length=8), habits(empty(), length=8)
    assert found.induction[INDUCTION] > 0.9 and found.ranked("induction")[0][:2] == INDUCTION
    assert found.previous[PREVIOUS] > 0.95 and found.ranked("previous", 1)[0][:2] == PREVIOUS
    assert found.copying[INDUCTION] == 1.0
    for scores, planted in ((found.induction, INDUCTION), (found.previous, PREVIOUS)):
        others = scores.clone()
        others[planted] = 0
        assert others.max() < 0.3
    for scores in (none.induction, none.previous, none.duplicate):
        assert scores.max() < 0.35
    assert found.duplicate.max() < 0.35 and none.copying.max() == 0


def test_scores_are_means_of_the_patterns_places() -> None:
    model = build(EXAMPLE)
    found = habits(model, length=5, rows=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    once = torch.stack([torch.randperm(11, generator=generator)[:5] for _ in range(2)])
    pattern = capture(model, torch.cat((once, once), 1), ["blocks.1.attn.pattern"])["blocks.1.attn.pattern"]
    for name, back in (("induction", 4), ("duplicate", 5)):
        wanted = torch.stack([pattern[:, :, q, q - back] for q in range(5, 10)], -1).mean((0, 2))
        close(getattr(found, name)[1], wanted)
    wanted = torch.stack([pattern[:, :, q, q - 1] for q in range(1, 10)], -1).mean((0, 2))
    close(found.previous[1], wanted)


def test_impossible_texts_and_habits_are_refused() -> None:
    with pytest.raises(UsageError, match="choose 2 to 12"):
        habits(build(EXAMPLE), length=13)
    with pytest.raises(UsageError, match="habit = 'inducton'"):
        habits(build(EXAMPLE), length=4).ranked("inducton")


def test_importance_is_the_derivative_by_a_factor_on_each_head() -> None:
    model = build(EXAMPLE)
    found = importance(model, CLEAN, 3, 5)

    def score(layer: int, head: int, factor: float) -> Tensor:
        def edit(z: Tensor) -> Tensor:
            z = z.clone()
            z[:, head] *= factor
            return z

        with torch.no_grad(), model.taps(edit={f"blocks.{layer}.attn.z": edit}):
            logits = model(CLEAN)[0, -1]
        return logits[3] - logits[5]

    for layer in range(2):
        for head in range(4):
            slope = (score(layer, head, 1 + 1e-4) - score(layer, head, 1 - 1e-4)) / 2e-4
            torch.testing.assert_close(found[layer, head, 0], slope, atol=1e-4, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())


# --- circuits --------------------------------------------------------------------------------------------------------


def test_factored_matrices_are_their_products() -> None:
    a, b = (Factored(torch.randn(7, 3).double(), torch.randn(3, 7).double()) for _ in range(2))
    close((a @ b).matrix(), a.matrix() @ b.matrix())
    close(a.T.matrix(), a.matrix().T)
    close(a.norm(), a.matrix().norm())
    wanted = torch.linalg.eigvals(a.matrix())
    wanted = wanted[wanted.abs().argsort(descending=True)[:3]]
    close(a.eigenvalues().abs().sort().values, wanted.abs().sort().values)


@torch.no_grad()
def test_circuits_are_scores_and_outputs_of_their_heads() -> None:
    """Without rotation: x_q QK x_k, scaled, is the score; OV x, weighted by the pattern, what the head writes."""
    block = EXAMPLE.stack.blocks[0]
    plain = replace(block, mixer=replace(block.mixer, rotary=None))  # type: ignore[type-var]
    model = build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=(plain, plain))))
    acts = capture(
        model, CLEAN, ["blocks.1.attn_in", "blocks.1.attn.scores", "blocks.1.attn.pattern", "blocks.1.attn_out"]
    )
    x, heads = acts["blocks.1.attn_in"][0], circuits_of(model, 1)
    pattern, out = acts["blocks.1.attn.pattern"][0], torch.zeros(6, 8).double()
    for number, head in enumerate(heads):
        close(x @ head.qk.matrix() @ x.T / 2, acts["blocks.1.attn.scores"][0, number])
        out += pattern[number] @ x @ head.ov.matrix().T
    close(out, acts["blocks.1.attn_out"][0])


def test_composition_finds_what_the_induction_head_reads() -> None:
    found = composition(with_induction(), 0, 1)
    assert found.k[INDUCTION[1], PREVIOUS[1]] > 0.2 > found.chance
    assert found.q.max() < 1e-6 and found.v.max() < 1e-6
    others = found.k.clone()
    others[INDUCTION[1], PREVIOUS[1]] = 0
    assert others.max() < 1e-6
    with pytest.raises(UsageError, match="before it wrote"):
        composition(with_induction(), 1, 1)


def test_rollout_is_the_product_of_layers() -> None:
    patterns = [torch.rand(2, 3, 4, 4).softmax(-1) for _ in range(3)]
    found = rollout(patterns)
    mixed = [0.5 * pattern.mean(1) + 0.5 * torch.eye(4) for pattern in patterns]
    close(found[:, 2], mixed[2] @ mixed[1] @ mixed[0])
    close(found.sum(-1), torch.ones(2, 3, 4))
    close(rollout(patterns, kept=1.0)[:, 2], torch.eye(4).expand(2, 4, 4))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "over"),
    [
        ("resid_pre", ("layer", "position")),
        ("attn.z", ("layer", "head")),
        ("attn.z", ("head", "layer", "position")),
        ("ffn_out", ("layer",)),
        ("attn.q", ("position", "head")),
    ],
)
def test_estimates_are_the_effects_of_small_changes(point: str, over: tuple[str, ...]) -> None:
    """Two prompts whose tokens have almost the same vectors: to first order, which is then all, both are one."""
    model = build(EXAMPLE)
    with torch.no_grad():
        model.embed.tokens.weight[7] = model.embed.tokens.weight[4] + 1e-5 * torch.randn(8).double()
    prompts = pair(model, CLEAN, CORRUPT)
    wanted = patch(model, prompts, 3, 5, point=point, over=over).effect  # type: ignore[arg-type]
    found = estimate_patches(model, prompts, 3, 5, point=point, over=over)  # type: ignore[arg-type]
    assert wanted.abs().max() > 1e-8
    torch.testing.assert_close(found, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=1e-2)


def test_integrated_gradients_sum_to_the_difference() -> None:
    model = build(EXAMPLE)
    with torch.no_grad():
        logits = model(CLEAN)[0, -1]
    start = 0.9 * model.embed(CLEAN, model.embed.places(CLEAN)).detach()
    coarse, fine = (integrated_gradients(model, CLEAN, 3, 5, steps=steps, baseline=start) for steps in (2, 64))
    assert fine.gap.max() < 1e-4 and fine.gap.max() < coarse.gap.max()
    whole = integrated_gradients(model, CLEAN, 3, 5, steps=8)
    nothing = integrated_gradients(model, CLEAN, 3, 5, steps=1, baseline=model.embed(CLEAN, model.embed.places(CLEAN)))
    assert whole.total is not None and nothing.total is not None and nothing.total.abs().max() == 0
    assert whole.total.shape == (1,) and logits.isfinite().all()
    with pytest.raises(UsageError, match="does not add up"):
        _ = gradient_times_activation(model, CLEAN, 3).gap


def test_gradient_times_activation_is_that() -> None:
    model = build(EXAMPLE)
    with model.taps(read="embed") as acts:
        (gradient,) = torch.autograd.grad(model(CLEAN)[0, -1, 3], acts["embed"])
    close(gradient_times_activation(model, CLEAN, 3).parts, (gradient * acts["embed"]).sum(-1).detach())
