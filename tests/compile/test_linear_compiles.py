"""Linearised attention compiles whole, with documents and padding and through a cache, and keeps its numbers."""

from __future__ import annotations

import shutil

import pytest
import torch
from some import some_of
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from pellucid.batch import Tokens
from pellucid.nn.documents import OpenDocuments, find_documents
from pellucid.nn.linear_attention import LinearAttention
from pellucid.nn.rope import rotation
from pellucid.nn.stores import StateCache
from pellucid.spec import (
    DecayRule,
    DeltaRule,
    GatedDecayRule,
    KernelRule,
    LinearAttentionSpec,
    RMSNormSpec,
    RotarySpec,
)

# while it traces a gradient torch itself looks at the .grad of what has none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

TIME, D_MODEL = 140, 8  # two chunks and a part of one
ROTARY = RotarySpec()
SPECS = {
    "kernel": LinearAttentionSpec(2, 4, KernelRule()),
    "kernel, both sides": LinearAttentionSpec(2, 4, KernelRule(causal=False)),
    "decay": LinearAttentionSpec(2, 4, DecayRule(), ROTARY, RMSNormSpec()),
    "gated decay": LinearAttentionSpec(2, 4, GatedDecayRule(2), None, RMSNormSpec(), out_gate=True),
    "delta": LinearAttentionSpec(2, 4, DeltaRule(), ROTARY, RMSNormSpec()),
}
SEG = torch.arange(2 * TIME).view(2, TIME) // 50
PLACES = {
    "plain": Tokens.plain(2, TIME),
    "packed": Tokens.packed(SEG.masked_fill(torch.arange(TIME) % 7 == 3, -1)),
    "padded": Tokens.padded(torch.arange(2 * TIME).view(2, TIME) % 3 > 0),
}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def mixer_of(name: str) -> LinearAttention:
    torch.manual_seed(0)
    return LinearAttention(SPECS[name], D_MODEL)


def run(mixer: LinearAttention, name: str, x: Tensor, tokens: Tokens, past: StateCache | None = None) -> Tensor:
    spec = SPECS[name]
    turns = None if spec.rotary is None else rotation(spec.rotary, spec.head_dim, tokens)
    return mixer(x, find_documents(tokens, rotation=turns), past)


def gradients(mixer: LinearAttention, name: str, tokens: Tokens) -> list[Tensor]:
    x = torch.randn(2, TIME, D_MODEL, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = run(mixer, name, x, tokens)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])]


def compare(name: str, places: str, backend: str) -> int:
    """Outputs and gradients of compiled and eager; how often it compiled."""
    counter = CompileCounterWithBackend(backend)
    eager, compiled = mixer_of(name), mixer_of(name)
    compiled.compile(backend=counter, fullgraph=True, dynamic=False)
    for _ in range(2):
        got, expected = (gradients(mixer, name, PLACES[places]) for mixer in (compiled, eager))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, b.abs().max().item()), rtol=1e-5)
    return counter.frame_count


@pytest.mark.parametrize("name", some_of(SPECS, ["gated decay", "delta"]))
@pytest.mark.parametrize("places", some_of(PLACES, ["packed"]))
def test_linear_attention_is_one_graph(name: str, places: str) -> None:
    assert compare(name, places, "aot_eager") == 1


@pytest.mark.parametrize("name", some_of(SPECS, ["gated decay"]))
def test_under_autocast_too(name: str) -> None:
    eager, compiled = mixer_of(name), mixer_of(name)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = (gradients(mixer, name, PLACES["plain"]) for mixer in (compiled, eager))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0.02 * b.abs().max().item(), rtol=0.05)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "kernel, both sides"])
def test_a_step_compiles_once(name: str) -> None:
    """Decoding: what a token costs is the same graph, however many came before."""
    eager, compiled, x = mixer_of(name), mixer_of(name), torch.randn(2, 6, D_MODEL)
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile(backend=counter, fullgraph=True, dynamic=False)
    with torch.no_grad():
        past, outs = StateCache(OpenDocuments(2), eager.empty_state(2, x)), list[Tensor]()
        for t in range(6):
            outs.append(run(compiled, name, x[:, t : t + 1], Tokens.plain(2, 1, t), past))
        torch.testing.assert_close(torch.cat(outs, 1), run(eager, name, x, Tokens.plain(2, 6)), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # a C++ compiler on a busy machine: 180 s were seen
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="inductor writes C++: no compiler here"
)
@pytest.mark.parametrize("name", SPECS)
def test_inductor_s_code_equals_eager(name: str) -> None:
    assert compare(name, "packed", "inductor") == 1
