"""Layers that share weights are equal layers of which one keeps them; each depth has points of its own."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from strategies import EXAMPLE, as_encoder, build, close, ids, masks, specs, stacks, steady
from torch import Tensor

import pellucid
from pellucid.checkpoints.native import save_model
from pellucid.nn.flops import count_parameters, forward_flops
from pellucid.nn.init import initialise
from pellucid.nn.models import build_model
from pellucid.spec import BlockSpec, DecoderSpec

few = settings(max_examples=examples(20))
OWNERS = (0, 1, 0, 1)


def repeated(spec: Any, owners: tuple[int, ...] = OWNERS) -> Any:
    """The example with these owners of its equal layers."""
    return replace(spec, stack=replace(spec.stack, blocks=spec.stack.blocks[:1] * len(owners), shared=owners))


def unshared(model: Any) -> Any:
    """A model whose layers have copies of the weights."""
    with steady():
        alone = build_model(replace(model.spec, stack=replace(model.spec.stack, shared=())))
    owners = model.spec.stack.owners
    with torch.no_grad():
        for name, weight in alone.named_parameters():
            parts = name.split(".")
            if parts[0] == "blocks":
                parts[1] = str(owners[int(parts[1])])
            weight.copy_(model.get_parameter(".".join(parts)))
    return alone.double().eval()


@given(specs(sharing=True), ids())
@few
def test_shared_layers_equal_copies(spec: DecoderSpec, text: Tensor) -> None:
    model = build(spec)
    alone = unshared(model)
    with torch.no_grad():
        close(model(text), alone(text))
        cache = model.new_cache(*text.shape)
        close(torch.cat([model(text[:, i : i + 1], cache=cache) for i in range(text.shape[1])], 1), alone(text))


@given(specs(sharing=True))
@few
def test_weights_have_one_name(spec: DecoderSpec) -> None:
    model = build(spec)
    names, owners = set(model.state_dict()), set(spec.stack.owners)
    assert names == {name for name, _ in model.named_parameters()}
    layers = {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}
    assert layers <= owners and count_parameters(spec).total == model.n_parameters
    with steady():
        other = replace(spec, stack=replace(spec.stack, shared=()))
    assert forward_flops(spec, 5) == forward_flops(other, 5)
    assert model.point_names() == build(other).point_names()


def test_every_depth_is_heard_and_edited_by_itself() -> None:
    model, text = build(repeated(EXAMPLE)), torch.arange(6)[None]
    streams = [f"blocks.{i}.resid_pre" for i in range(4)]
    with torch.no_grad():
        with model.taps(read=streams) as before:
            model(text)
        kept = {name: before[name].clone() for name in streams}
        with model.taps(read=streams, edit={"blocks.1.ffn_out": torch.zeros_like}) as after:
            model(text)
    same = [torch.equal(kept[name], after[name]) for name in streams]
    assert same == [True, True, False, False]
    assert len({tuple(x.flatten().tolist()) for x in kept.values()}) == 4


MOVES = {
    "a copy": copy.deepcopy,
    "another type": lambda model: model.float().double(),
    "new memory": lambda model: model.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_sharing_survives(move: Any) -> None:
    model = build(repeated(EXAMPLE))
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    moved = move(copy.deepcopy(model))
    moved.load_state_dict(weights)
    text = torch.arange(6)[None]
    with torch.no_grad():
        close(moved(text), model(text))
        moved.blocks[1].ffn.down.weight.zero_()
        assert torch.equal(moved.blocks[3].ffn.down.weight, moved.blocks[1].ffn.down.weight)
        assert not torch.equal(moved(text), model(text)) and model.blocks[3].ffn.down.weight.any()


def test_a_step_moves_every_depth_at_once() -> None:
    model, text = build(repeated(EXAMPLE, (0, 0, 0))), torch.arange(6)[None]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(text).square().mean().backward()
    optimiser.step()
    first, *others = model.blocks
    assert all(each.attn.q.weight is first.attn.q.weight for each in others)
    assert first.attn.q.weight.grad is not None and first.attn.q.weight.grad.any()


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    model = initialise(build_model(repeated(EXAMPLE)), seed=3)
    save_model(model, tmp_path)
    again: Any = pellucid.load(tmp_path)
    assert again.spec == model.spec
    text = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(again(text), model.eval()(text))


@given(stacks(masks, False))
@few
def test_only_equal_layers_share(drawn: Any) -> None:
    _, stack = drawn
    for i, owner in enumerate(stack.owners):
        assert isinstance(stack.blocks[i], BlockSpec) and stack.blocks[i] == stack.blocks[owner]


def test_an_encoder_shares_as_well() -> None:
    spec = repeated(as_encoder(EXAMPLE))
    model, text = build(spec), torch.arange(6)[None]
    with torch.no_grad():
        close(model(text), unshared(model)(text))
        assert not torch.equal(build(repeated(as_encoder(EXAMPLE), (0, 0, 2, 2)))(text), model(text))
