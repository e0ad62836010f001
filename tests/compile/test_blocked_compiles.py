"""The blocked kernel in a compiled block: one whole graph, compiled once for all packed batches. And FlexAttention."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from pellucid.batch import Tokens
from pellucid.nn.block_mask import block_mask
from pellucid.nn.kernels import attend, choose, flex, reference
from pellucid.nn.layout import make_layout
from pellucid.nn.masks import Visible, lower
from pellucid.predicates import Causal, Mask, Window, longformer

# while it traces a gradient torch itself looks at the .grad of what has none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

TIME, MASK = 640, Causal() & Window(40)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="inductor writes C++: no compiler here"
)


class Layer(nn.Module):
    """Projections around the kernel, as a block has them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor, visible: Visible) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 16)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return x + self.o(attend(q, k, v, visible, scale=0.3).transpose(1, 2).flatten(-2))


def packed(documents: int) -> Tokens:
    generator = torch.Generator().manual_seed(documents)
    ends = torch.rand(2, TIME, generator=generator).topk(documents, dim=1).indices
    return Tokens.packed(torch.zeros(2, TIME, dtype=torch.long).scatter_(1, ends, 1).cumsum(-1))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
def test_a_compiled_layer_is_the_eager_one_and_compiles_once_for_all_batches(backend: str) -> None:
    layer, counter = Layer(), CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=False)
    sizes: set[int] = set()
    for documents in (2, 5, 9, 20):
        tokens, x = packed(documents), torch.randn(2, TIME, 32)
        visible = lower(MASK, tokens, tokens)
        assert visible.layout is not None
        sizes.add(len(visible.layout.patterns))
        outs = [f(x, visible) for f in (compiled, layer)]
        torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(out.square().sum(), list(layer.parameters())) for out in outs]
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5 * float(want.abs().max()), rtol=1e-5)
    assert len(sizes) == 4  # each batch had a layout of its own
    assert counter.frame_count == 1
    plain = Tokens.plain(2, TIME)
    torch.testing.assert_close(compiled(x, lower(MASK, plain, plain)), layer(x, lower(MASK, plain, plain)))


def test_a_whole_compiled_model_makes_its_mask_as_a_tensor() -> None:
    """A layout depends on values; whoever compiles the making of the mask too gets the one kind that can be traced."""

    def forward(x: Tensor) -> Tensor:
        tokens = Tokens.plain(1, TIME)
        return attend(x, x, x, lower(MASK, tokens, tokens), scale=0.3)

    x = torch.randn(1, 2, TIME, 8)
    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), forward(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize(("mask", "cap"), [(MASK, None), (longformer(20, 3), 2.0)])
def test_flex_attention_is_the_reference(mask: Mask, cap: float | None, kind: str) -> None:
    """On a CPU it has a forward only, and is called by hand; blocks that see nothing give zeros."""
    tokens = Tokens.plain(2, 700) if kind == "plain" else Tokens.packed((torch.arange(700)[None] // 150).repeat(2, 1))
    if kind == "packed":
        tokens.pos[:, 650:] = -1
    shared = Tokens.plain(1, 700) if kind == "plain" else tokens
    layout = make_layout(mask, shared, shared)
    source = (mask, tokens, tokens)
    visible = Visible(None, None, layout.without_keys, layout, source, block_mask(*source, layout))
    q, k, v = torch.randn(2, 4, 700, 16), torch.randn(2, 2, 700, 16), torch.randn(2, 2, 700, 16)
    with torch.no_grad():
        got, want = (f(q, k, v, visible, scale=0.3, soft_cap=cap) for f in (flex, reference))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    other = Visible(None, None, layout.without_keys, layout, (Causal() & Window(41), tokens, tokens))
    assert (want - reference(q, k, v, other, scale=0.3, soft_cap=cap)).abs().max() > 1e-3  # a control


def with_block_mask(visible: Visible) -> Visible:
    """What ``see`` makes on a CUDA device, here on the CPU."""
    assert visible.layout is not None and visible.source is not None
    return replace(visible, block_mask=block_mask(*visible.source, visible.layout))


def test_flex_attention_is_not_chosen_where_it_has_no_backward() -> None:
    tokens, q = packed(3), torch.zeros(2, 1, TIME, 64)
    visible = lower(MASK, tokens, tokens)
    assert visible.block_mask is None and choose(q, visible).name == "blocked"
    assert choose(q, with_block_mask(visible)).name == "flex"
    assert choose(q[..., :8], with_block_mask(visible)).name == "blocked"


def test_compiled_layer_takes_flex_attention_and_compiles_once_for_all_batches() -> None:
    """Inside a compiled block FlexAttention is a part of the block's graph; only the block mask is made outside."""
    layer, counter = Layer(), CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=False)
    for documents in (2, 5, 9):
        tokens, x = packed(documents), torch.randn(2, TIME, 32)
        visible = lower(MASK, tokens, tokens)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, with_block_mask(visible)), layer(x, visible), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    assert any("flex_attention" in str(node.target) for node in counter.graphs[0].graph.nodes)
