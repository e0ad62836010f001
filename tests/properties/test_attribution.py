"""What parts add to a logit sums to it, exactly; a head that does it all is named; a norm's scale is not hidden."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, VOCAB, build, close, ids, specs
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.interpret.attribution import attribute
from pellucid.interpret.linear_parts import FrozenNorm
from pellucid.nn.models import Decoder
from pellucid.spec import POST_NORM, DecoderSpec, LMHeadSpec

TEXT = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def adds_up(spec: DecoderSpec) -> bool:
    return not any(block.placement.out for block in spec.stack.blocks)


def uncapped(spec: DecoderSpec) -> DecoderSpec:
    return replace(spec, head=replace(spec.head, soft_cap=None))


additive = specs().filter(adds_up).map(uncapped).map(build)


@given(additive, ids(), st.data())
@settings(max_examples=examples(30))
@torch.no_grad()
def test_parts_sum_to_the_logit_difference(model: Decoder, text: Tensor, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, text.shape[1] - 1))
    right, wrong = data.draw(st.permutations(range(VOCAB)))[:2]
    found = attribute(model, text, right, wrong, read=place)
    logits = model(text)[:, place]
    close(found.total, logits[:, right] - logits[:, wrong])
    close(found.sum(), found.total)
    close(attribute(model, text, right, read=place).sum(), logits[:, right])
    named = torch.tensor([sum(x for _, x in found.parts(row)) for row in range(len(text))], dtype=torch.float64)
    torch.testing.assert_close(named, found.total, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_heads_and_neurons_are_what_their_layers_add() -> None:
    """Without biases and norms behind them a layer is exactly its heads, or its neurons."""
    found = attribute(build(EXAMPLE), TEXT, [1, 2], [3, 4])
    for layer in range(2):
        assert found.heads[layer].shape == (2, 4) and found.neurons[layer].shape == (2, 12)
        close(found.heads[layer].sum(-1), found.mixers[:, layer])
        close(found.neurons[layer].sum(-1), found.ffns[:, layer])


@torch.no_grad()
def test_a_head_that_is_silenced_adds_nothing_and_the_others_what_they_did() -> None:
    """In the last layer, where nothing comes after: with the scale of its own run, each part is what it was."""
    model = build(EXAMPLE)
    before = attribute(model, TEXT, 1, 3)
    model.layers[1].mixer.o.weight[:, 4:8] = 0  # type: ignore[index,union-attr]  # head 1
    after = attribute(model, TEXT, 1, 3)
    assert after.heads[1][:, 1].abs().max() == 0 and before.heads[1][:, 1].abs().min() > 1e-3
    ratio = after.scale / before.scale
    close(after.heads[1][:, [0, 2, 3]], before.heads[1][:, [0, 2, 3]] * ratio[:, None])


@torch.no_grad()
def test_the_scale_is_that_of_the_final_norm() -> None:
    model = build(EXAMPLE)
    with model.taps(read="blocks.1.resid_post") as acts:
        model(TEXT)
    last = acts["blocks.1.resid_post"][:, -1]
    close(attribute(model, TEXT, 1).scale, (last.square().mean(-1) + 1e-6).rsqrt())
    assert isinstance(FrozenNorm.at(model.final_norm, last).scale, Tensor)


def test_sums_that_are_normed_and_unknown_tokens_are_refused() -> None:
    blocks = tuple(replace(block, placement=POST_NORM) for block in EXAMPLE.stack.blocks)
    post = build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=blocks)))
    with pytest.raises(UsageError, match=r"blocks\.0 norms the sum"):
        attribute(post, TEXT, 1)
    model = build(EXAMPLE)
    for arguments, message in (
        ((11,), "token id 11"),
        (([1],), r"right = \[1\] for 2 rows"),
        ((1, -1), "wrong: token"),
    ):
        with pytest.raises(UsageError, match=message):
            attribute(model, TEXT, *arguments)
    with pytest.raises(UsageError, match="read = 6"):
        attribute(model, TEXT, 1, read=6)


@torch.no_grad()
def test_control_a_norm_whose_mean_is_forgotten_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: FrozenNorm, direction: Tensor) -> Tensor:
        return direction * self.scale

    model = build(replace(EXAMPLE, head=LMHeadSpec()))
    close(attribute(model, TEXT, 1).sum(), attribute(model, TEXT, 1).total)
    monkeypatch.setattr(FrozenNorm, "pull_back", wrong)
    found = attribute(model, TEXT, 1)
    assert (found.sum() - found.total).abs().max() > 1e-2
