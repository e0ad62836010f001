"""A mixture of experts compiles whole, once for every way that tokens can fall on experts."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from pellucid.nn.moe import MixtureOfExperts
from pellucid.spec import FFNSpec, GatedFFNSpec, MoESpec

# while it traces a gradient torch itself looks at the .grad of what has none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

SPECS = {
    "gated": MoESpec(GatedFFNSpec(16), 4, 2),
    "biases, rows that no grouped kernel takes": MoESpec(FFNSpec(7, bias=True), 5, 3, renormalise=False),
}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def moe_of(name: str) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(SPECS[name], 8)


def gradients(moe: MixtureOfExperts, x: Tensor) -> list[Tensor]:
    y = moe(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(moe.parameters()))]


def compare(name: str, backend: str) -> int:
    """Outputs and gradients of compiled and eager, for three routings; how often it compiled."""
    counter = CompileCounterWithBackend(backend)
    eager, compiled = moe_of(name), moe_of(name)
    compiled.compile(backend=counter, fullgraph=True)
    routings = set()
    for seed in range(3):
        x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(seed))
        routings.add(tuple(eager.router(x).topk(2).indices.flatten().tolist()))
        for got, expected in zip(gradients(compiled, x), gradients(eager, x), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert len(routings) == 3
    return counter.frame_count


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_mixture_is_one_graph_for_every_routing(name: str, backend: str) -> None:
    assert compare(name, backend) == 1


@pytest.mark.parametrize("name", SPECS)
def test_under_autocast_too(name: str) -> None:
    eager, compiled = moe_of(name), moe_of(name)
    compiled.compile(backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = gradients(compiled, x), gradients(eager, x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.05)


def test_any_number_of_tokens_is_one_graph_more() -> None:
    moe = moe_of("gated")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(moe, backend=counter, fullgraph=True)
    with torch.no_grad():
        for time in (9, 10, 13, 21):
            x = torch.randn(2, time, 8)
            torch.testing.assert_close(compiled(x), moe(x), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2  # fixed, then dynamic


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="inductor writes C++: no compiler here"
)
@pytest.mark.parametrize("name", SPECS)
def test_inductor_s_code_equals_eager(name: str) -> None:
    assert compare(name, "inductor") == 1
