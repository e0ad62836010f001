"""The 2017 model is trained as the paper says: smoothed labels, dropout, its schedule and its Adam; all of it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import VOCAB, build, encoder_decoder_specs, ids, specs
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.designs import attention_is_all_you_need
from pellucid.errors import UsageError
from pellucid.nn.embed import Embedding
from pellucid.nn.init import initialise
from pellucid.nn.models import EncoderDecoder, build_model
from pellucid.nn.residual import Sublayer
from pellucid.recipes.attention_is_all_you_need import RECIPES
from pellucid.spec import EncoderDecoderSpec
from pellucid.train.objectives import Smoothed, nll
from pellucid.train.step import step


def batch_of(text: Tensor, source: Tensor, scored: Tensor) -> Batch:
    labels = text.flip(1).masked_fill(~scored, IGNORE)
    read = Tokens.plain(len(source), source.shape[1])
    return Batch(text, Tokens.plain(len(text), text.shape[1]), labels, source=Source(source, read))


@given(specs() | encoder_decoder_specs(), ids(st.just(2)), ids(st.just(2)), st.floats(0, 0.9), st.integers(0, 99))
@settings(max_examples=examples(20))
def test_smoothed_is_torchs(spec: Any, text: Tensor, source: Tensor, smoothing: float, seed: int) -> None:
    """Value and gradient, for any model that writes, whatever places are scored."""
    model, both = build(spec), isinstance(spec, EncoderDecoderSpec)
    scored = torch.rand(text.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    batch, objective = batch_of(text, source, scored), Smoothed(smoothing)
    logits = model(source, text) if both else model(text)
    expected = F.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )
    got, weights = objective(model, batch), list(model.parameters())
    torch.testing.assert_close(got, expected)
    if scored.any():
        grads = (torch.autograd.grad(x, weights, allow_unused=True, materialize_grads=True) for x in (got, expected))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8 * max(1.0, float(theirs.abs().max())))
    assert objective.count(batch) == nll.count(batch) == int(scored.sum())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_share_is_a_share(smoothing: float) -> None:
    with pytest.raises(UsageError, match=rf"smoothing = {smoothing}"):
        Smoothed(smoothing)


def small() -> EncoderDecoderSpec:
    """The base model with two layers a side, an eighth as wide."""
    spec = attention_is_all_you_need("base", VOCAB, 16)

    def side(one: Any) -> Any:
        def narrow(attention: Any) -> Any:
            return attention and replace(attention, n_heads=2, n_kv_heads=2, head_dim=16)

        blocks = tuple(
            replace(b, mixer=narrow(b.mixer), cross=narrow(b.cross), ffn=replace(b.ffn, d_ff=128))
            for b in one.stack.blocks[:2]
        )
        return replace(
            one, embed=replace(one.embed, scale=32**0.5), stack=replace(one.stack, d_model=32, blocks=blocks)
        )

    return replace(spec, encoder=side(spec.encoder), decoder=side(spec.decoder))


def backwards(n: int, seed: int) -> Batch:
    """Read five letters, write them backwards, after ``start_id`` 0."""
    word = torch.randint(1, VOCAB, (n, 5), generator=torch.Generator().manual_seed(seed))
    labels = word.flip(1)
    written = torch.cat((torch.zeros_like(word[:, :1]), labels[:, :-1]), 1)
    return Batch(written, Tokens.plain(n, 5), labels, source=Source(word, Tokens.plain(n, 5)))


@pytest.mark.slow
def test_the_recipe_trains() -> None:
    """Everything of it but its sizes: a shorter warm-up, as there are fewer steps."""
    torch.manual_seed(0)
    recipe = replace(RECIPES["base"], spec=small(), warmup=400)
    model = initialise(build_model(recipe.spec), "xavier")
    assert isinstance(model, EncoderDecoder)
    for module in (m for m in model.modules() if isinstance(m, Sublayer | Embedding)):
        module.dropout = recipe.dropout
    adam = torch.optim.Adam(model.parameters(), betas=recipe.betas, eps=recipe.eps)
    objective, told = Smoothed(recipe.smoothing), backwards(64, 10_001)
    with torch.no_grad():
        before = float(objective(model.eval(), told)) / nll.count(told)
    for i in range(1, 201):
        adam.param_groups[0]["lr"] = recipe.learning_rate(i)
        step(model.train(), [adam], objective, [backwards(32, i)], clip=None)
    with torch.no_grad():
        after, right = objective(model.eval(), told), model(told.source.ids, told.ids).argmax(-1) == told.labels  # type: ignore[union-attr]
    assert before > 2.0 and float(after) / nll.count(told) < 1.2, "ln 10 is 2.3; measured: 0.76 to 0.97"
    assert float(right.float().mean()) > 0.7  # 0.81 to 0.90; 0.1 by chance
