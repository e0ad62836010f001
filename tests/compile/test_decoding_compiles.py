"""Blocks that are compiled as training compiles them write over a fixed cache without a compilation a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from pellucid.engine.compiling import uncompile
from pellucid.engine.session import Session
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    GatedFFNSpec,
    LinearAttentionSpec,
    MixerSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
    Window,
)

VOCAB, CONTEXT, TOKENS = 31, 64, 45
FULL = AttentionSpec(4, 2, 4, Causal(), rotary=RotarySpec())
MIXERS: dict[str, tuple[MixerSpec, ...]] = {
    "full": (FULL, FULL, FULL),
    "windows": (FULL, AttentionSpec(4, 2, 4, Causal() & Window(6), rotary=RotarySpec())),
    "states": (FULL, LinearAttentionSpec(4, 4)),
}


def model_of(mixers: tuple[MixerSpec, ...]) -> Decoder:
    blocks = tuple(BlockSpec(mixer, GatedFFNSpec(24), RMSNormSpec()) for mixer in mixers)
    model = Decoder(DecoderSpec(VOCAB, CONTEXT, EmbedSpec(), StackSpec(16, blocks, RMSNormSpec())))
    initialise(model, "xavier", 0)
    return model


def compiled(model: Decoder) -> list[Any]:
    """Compile the blocks as for training, one graph for each shape; returns the graphs, as they are made."""
    graphs: list[Any] = []

    def backend(graph: Any, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)
    return graphs


def written(model: Decoder, fixed: bool) -> tuple[list[int], Tensor]:
    """Greedy tokens, and the logits (tokens, vocab) that they were chosen by."""
    session, ids, logits = Session(model, capacity=CONTEXT, fixed=fixed), list[int](), list[Tensor]()
    session.add([3, 1, 4, 1, 5])
    while len(ids) < TOKENS:
        logits.append(session.read([ids[-1:]] if ids else None)[0, -1])
        ids.append(int(logits[-1].argmax()))
    return ids, torch.stack(logits)


@pytest.mark.parametrize("name", MIXERS)
def test_compiled_blocks_write_a_text_with_two_graphs_for_each_kind_of_block(name: str) -> None:
    model = model_of(MIXERS[name])
    expected, logits = written(model, fixed=False)
    graphs = compiled(model)
    try:
        ids, got = written(model, fixed=True)
    finally:
        uncompile(model.blocks)
    assert ids == expected
    torch.testing.assert_close(got, logits, atol=1e-5, rtol=1e-5)
    kinds = len(set(MIXERS[name]))
    assert kinds <= len(graphs) <= 2 * kinds  # the prompt, and a token


@pytest.mark.slow
def test_control_a_cache_that_grows_is_compiled_again_for_each_token_until_torch_gives_up() -> None:
    model = model_of(MIXERS["full"])
    compiled(model)
    try:
        with pytest.raises(FailOnRecompileLimitHit):
            written(model, fixed=False)
    finally:
        uncompile(model.blocks)
