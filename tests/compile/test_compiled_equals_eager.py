"""Compiled is eager: whole graphs for every kind of model, and the same numbers from the code that inductor writes."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from some import some_of
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.spec import (
    REORDERED_NORM,
    SANDWICH_NORM,
    ALiBiSpec,
    AttentionSpec,
    BlockSpec,
    BucketedBiasSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    GatedFFNSpec,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    Prefix,
    RMSNormSpec,
    RotarySpec,
    SinusoidalSpec,
    StackSpec,
    Window,
    YaRNScaling,
)

# while it traces a gradient torch itself looks at the .grad of what has none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

LAYER, RMS = LayerNormSpec(), RMSNormSpec(offset=1.0)
GQA = AttentionSpec(4, 2, 4, rotary=RotarySpec())
IDS = torch.arange(20).view(2, 10)
PLACES = {
    "plain": None,
    "continued": Tokens.plain(2, 10, 3),
    "packed": Tokens.packed(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, -1], [0] * 6 + [1] * 4])),
    "padded": Tokens.padded(torch.arange(20).view(2, 10) % 3 > 0),
}


def spec(
    block: BlockSpec, embed: EmbedSpec, stack: StackSpec | None = None, head: LMHeadSpec | None = None
) -> DecoderSpec:
    stack = StackSpec(16, (block,) * 2, block.norm) if stack is None else replace(stack, blocks=(block,) * 2)
    return DecoderSpec(31, 32, embed, stack, head or LMHeadSpec())


def plain(attention: AttentionSpec, **kwargs: object) -> BlockSpec:
    return BlockSpec(attention, FFNSpec(24), LAYER, **kwargs)  # pyright: ignore[reportArgumentType]


MHA = AttentionSpec(2, 2, 8)
BIASED = StackSpec(16, (plain(MHA),), LAYER)
SPECS = {
    "learned": spec(plain(replace(MHA, bias=True, out_bias=True)), EmbedSpec(LearnedSpec())),
    "sinusoidal": spec(plain(MHA), EmbedSpec(SinusoidalSpec(), scale=4.0), head=LMHeadSpec(False, True)),
    "rotary, grouped, gated": spec(BlockSpec(GQA, GatedFFNSpec(24), RMS, SANDWICH_NORM), EmbedSpec(norm=RMS)),
    "YaRN, soft caps": spec(
        plain(replace(GQA, rotary=RotarySpec(scaling=YaRNScaling(4.0, 8)), soft_cap=5.0)),
        EmbedSpec(),
        head=LMHeadSpec(soft_cap=3.0),
    ),
    "ALiBi, parallel": spec(plain(MHA, parallel=True), EmbedSpec(), replace(BIASED, bias=ALiBiSpec())),
    "buckets, window": spec(
        plain(replace(MHA, mask=Causal() & Window(3))), EmbedSpec(), replace(BIASED, bias=BucketedBiasSpec(8, 16))
    ),
    "prefix, q and k normed": spec(
        plain(replace(MHA, mask=Causal() | Prefix(3), qk_norm=RMS), placement=REORDERED_NORM), EmbedSpec()
    ),
    "shared layers, narrow vectors": spec(
        plain(MHA), EmbedSpec(d_embed=8), StackSpec(16, (plain(MHA),) * 2, LAYER, shared=(0, 0)), LMHeadSpec(False)
    ),
}


def model_of(spec: DecoderSpec) -> Decoder:
    return initialise(Decoder(spec), "xavier").eval()


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


QUICK = {"buckets, window", "YaRN, soft caps"}  # most kinds of part


@pytest.mark.parametrize("name", some_of(SPECS, QUICK))
def test_the_whole_model_is_one_graph(name: str) -> None:
    """For every way a row can stand; the graph runs as it is, so the numbers are equal to the last few bits."""
    model = model_of(SPECS[name])
    for where, tokens in PLACES.items():
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            got, expected = compiled(IDS, tokens), model(IDS, tokens)
        torch.testing.assert_close(got, expected, msg=lambda m, where=where: f"{where}: {m}")


def gradients(model: Decoder, tokens: Tokens) -> tuple[Tensor, ...]:
    labels = IDS.roll(-1, 1).masked_fill(tokens.pos < 0, IGNORE)
    return torch.autograd.grad(model.nll_sum(Batch(IDS, tokens, labels)), list(model.parameters()))


@pytest.mark.parametrize("name", some_of(["rotary, grouped, gated", "buckets, window"], ["buckets, window"]))
def test_compiled_blocks_have_the_eager_gradient(name: str) -> None:
    """Forward and backward through autograd's own tracing, for plain and for packed rows."""
    model, compiled = model_of(SPECS[name]), model_of(SPECS[name])
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for tokens in (Tokens.plain(2, 10), PLACES["packed"]):
        assert tokens is not None
        for got, expected in zip(gradients(compiled, tokens), gradients(model, tokens), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="inductor writes C++: no compiler here"
)
def test_inductor_s_code_equals_eager() -> None:
    """The real thing, as training uses it: blocks compiled, whole graphs, forward and backward, to 1e-5."""
    which = SPECS["rotary, grouped, gated"]
    model, compiled = model_of(which), model_of(which)
    for block in compiled.blocks:
        block.compile(fullgraph=True)
    packed = PLACES["packed"]
    assert packed is not None
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS, packed), model(IDS, packed), atol=1e-5, rtol=1e-5)
    for got, expected in zip(gradients(compiled, packed), gradients(model, packed), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_cache_through_compiled_blocks() -> None:
    """Prefill and steps: what generation does with a model that was compiled for training."""
    model, compiled = (model_of(SPECS["rotary, grouped, gated"]) for _ in range(2))
    for block in compiled.blocks:
        block.compile(backend="eager")
    cache = compiled.new_cache(2, 10)
    with torch.no_grad():
        got = torch.cat([compiled(part, cache=cache) for part in IDS.split([4, 1, 1, 1, 3], 1)], 1)
        torch.testing.assert_close(got, model(IDS), atol=1e-5, rtol=1e-5)
