"""Blocks whose weights stay quantised compile whole, forward and backward: each product is one node of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import MODELS, quantised_file
from some import some_of
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import pellucid
from pellucid.nn.models import Decoder

# while it traces a gradient torch itself looks at the .grad of what has none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """Logits, and the gradient of one gain below the products."""
    logits = model(ids)
    return [logits.detach(), *torch.autograd.grad(logits.square().mean(), model.blocks[0].attn_norms.pre.weight)]


@pytest.mark.parametrize("name", some_of(["llama", "mixtral"], ["llama"]))
@pytest.mark.parametrize("backend", some_of(["eager", "aot_eager"], ["aot_eager"]))
def test_compiled_quantised_blocks_equal_eager_ones(name: str, backend: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = pellucid.load(quantised_file(MODELS[name], "Q4_1", tmp_path), tokenizer=False, quantised=True)
    assert isinstance(model, Decoder)
    ids = torch.arange(14).view(2, 7)
    expected = outputs(model, ids)
    counter = CompileCounterWithBackend(backend)
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    for got, wanted in zip(outputs(model, ids), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2  # what enters the first block needs no gradient: its embedding is quantised
