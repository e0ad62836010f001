"""Activation points under torch.compile: no graph node and no recompilation while nobody listens, the same numbers when
somebody does, and one compilation for all blocks that are alike and asked alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from pellucid.batch import Tokens
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    GatedFFNSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
    Window,
)
from pellucid.taps import Tapped, tapped

BLOCK = BlockSpec(AttentionSpec(4, 2, 4, rotary=RotarySpec()), GatedFFNSpec(24), RMSNormSpec())
TWELVE = DecoderSpec(31, 32, EmbedSpec(), StackSpec(16, (BLOCK,) * 12, RMSNormSpec()))
TWO = replace(TWELVE, stack=replace(TWELVE.stack, blocks=(BLOCK,) * 2))
IDS = torch.arange(8).view(1, 8)
PACKED = Tokens.packed(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]]))
READ = ["blocks.2.resid_post", "blocks.7.attn.pattern"]


# while it traces a gradient torch itself looks at the .grad of what has none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Graphs:
    """A backend that keeps each graph it is given and runs it as it is."""

    def __init__(self) -> None:
        self.nodes: list[list[str]] = []

    def __call__(self, graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        # what is computed, in order; placeholders are the inputs, named by where they come from
        self.nodes.append([f"{n.op} {n.target}" for n in graph.graph.nodes if n.op != "placeholder"])
        return graph.forward

    def __len__(self) -> int:
        return len(self.nodes)


@pytest.fixture
def graphs() -> Graphs:
    torch._dynamo.reset()
    return Graphs()


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def model_of(spec: DecoderSpec) -> Decoder:
    return initialise(Decoder(spec), "xavier").eval()


def by_blocks(spec: DecoderSpec, graphs: Graphs) -> Decoder:
    model = model_of(spec)
    for block in model.blocks:
        block.compile(backend=graphs, fullgraph=True)
    return model


def as_a_whole(model: Decoder, backend: Graphs) -> Callable[..., Tensor]:
    return torch.compile(model, backend=backend, fullgraph=True)


def untapped(patch: pytest.MonkeyPatch) -> None:
    """Classes as they would be if activation points did not exist."""
    patch.setattr(Tapped, "tap", lambda self, name, x: x)
    patch.setattr(Tapped, "wants", lambda self, name: False)


KINDS = [  # whole: the model as one graph, or each block
    pytest.param(True, PACKED, id="whole, packed"),
    pytest.param(False, None, id="blocks, plain"),
    pytest.param(True, None, id="whole, plain", marks=pytest.mark.slow),
    pytest.param(False, PACKED, id="blocks, packed", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("whole", "tokens"), KINDS)
def test_taps_off_is_the_graph_of_a_model_without_taps(
    whole: bool, tokens: Tokens | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled() -> Graphs:
        torch._dynamo.reset()
        graphs = Graphs()
        run = as_a_whole(model_of(TWO), graphs) if whole else by_blocks(TWO, graphs)
        run(IDS, tokens)
        return graphs

    tapped_ = compiled()
    untapped(monkeypatch)
    bare = compiled()
    assert len(bare) == 1 and len(bare.nodes[0]) > 20
    assert tapped_.nodes == bare.nodes


def test_control_a_tap_that_leaves_a_node_is_seen(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    by_blocks(TWO, graphs)(IDS)
    torch._dynamo.reset()
    monkeypatch.setattr(Tapped, "tap", lambda self, name, x: x + 0)
    wasteful = Graphs()
    by_blocks(TWO, wasteful)(IDS)
    assert len(wasteful.nodes[0]) > len(graphs.nodes[0])


def test_twelve_equal_blocks_share_one_compilation(graphs: Graphs) -> None:
    model = by_blocks(TWELVE, graphs)
    model(IDS)
    model(IDS + 1)
    assert len(graphs) == 1


def test_tapping_two_blocks_recompiles_only_these(graphs: Graphs) -> None:
    model = by_blocks(TWELVE, graphs)
    plain = model(IDS)
    for _ in range(2):  # the second time everything is there
        with model.taps(read=READ) as acts:
            for _ in range(3):
                torch.testing.assert_close(model(IDS), plain)
        assert set(acts) == set(READ)
        assert len(graphs) == 1 + 2
    model(IDS)
    assert len(graphs) == 3  # back to none costs nothing


def test_tapping_all_blocks_alike_is_one_more_compilation(graphs: Graphs) -> None:
    """More blocks than torch's limit of recompilations; beyond it a whole graph is an error."""
    assert len(TWELVE.stack.blocks) > torch._dynamo.config.recompile_limit
    model = by_blocks(TWELVE, graphs)
    model(IDS)
    with model.taps(read="blocks.*") as acts:
        model(IDS)
    assert len(graphs) == 2 and len(acts) == 12 * 17
    halve = torch.nn.Identity()
    with model.taps(edit={"blocks.*.resid_mid": halve}):
        model(IDS)
    assert len(graphs) == 3


def test_points_outside_blocks_recompile_none(graphs: Graphs) -> None:
    model = by_blocks(TWELVE, graphs)
    model(IDS)
    with model.taps(read=["embed", "final_norm", "logits"]) as acts:
        model(IDS)
    assert len(acts) == 3 and len(graphs) == 1


@pytest.mark.parametrize(("whole", "tokens"), KINDS)
def test_reads_and_edits_equal_eager(graphs: Graphs, whole: bool, tokens: Tokens | None) -> None:
    edit = {"blocks.0.attn.pattern": lambda x: x * 0.5, "blocks.1.resid_mid": lambda x: x.roll(1, -1)}
    eager = model_of(TWO)
    with eager.taps(read="*", edit=edit) as expected:
        logits = eager(IDS, tokens)
    model = by_blocks(TWO, graphs) if not whole else model_of(TWO)
    run = as_a_whole(model, graphs) if whole else model
    before = run(IDS, tokens)
    with tapped(model, read="*", edit=edit) as acts:
        torch.testing.assert_close(run(IDS, tokens), logits)
    assert set(acts) == set(expected)
    for name, x in acts.items():
        torch.testing.assert_close(x, expected[name])
    assert (before - logits).abs().max() > 1e-3  # the edit does something
    n = len(graphs)
    assert torch.equal(run(IDS, tokens), before) and len(graphs) == n


def test_two_kinds_of_blocks_are_two_compilations(graphs: Graphs) -> None:
    """Layers that look back a window share one graph, those that look back everywhere another."""
    local = replace(BLOCK, mixer=replace(BLOCK.mixer, mask=Causal() & Window(3)))
    spec = replace(TWELVE, stack=replace(TWELVE.stack, blocks=(local, local, local, BLOCK) * 3))
    by_blocks(spec, graphs)(IDS)
    assert len(graphs) == 2


def test_with_gradients(graphs: Graphs) -> None:
    """What is read is part of the graph: its gradient is the eager one."""
    with torch.enable_grad():
        grads = []
        for model in (model_of(TWO), by_blocks(TWO, graphs)):
            with model.taps(read=["blocks.0.resid_post", "blocks.1.attn.pattern"]) as acts:
                loss = model(IDS).square().sum()
            grads.append(torch.autograd.grad(loss, list(acts.values())))
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(compiled, eager)
