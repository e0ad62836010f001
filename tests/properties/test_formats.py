"""Quantised numbers: each format gives, bit for bit, the numbers that the ``gguf`` package makes of the same bytes."""

from __future__ import annotations

import pytest
import torch
from drawn import examples
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from gguf_files import random_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.nn.formats import FORMATS
from pellucid.nn.stored import Quantised


@pytest.mark.parametrize("kind", FORMATS)
def test_format_has_the_sizes_that_ggml_says(kind: str) -> None:
    form = FORMATS[kind]
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind]] == (form.numbers, form.n_bytes)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=examples(20), deadline=None)
@given(rows=st.integers(1, 9), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_opened_numbers_equal_those_of_the_gguf_package_bitwise(kind: str, rows: int, blocks: int, seed: int) -> None:
    stored = Quantised(random_blocks(kind, (rows, blocks * FORMATS[kind].numbers), seed), kind)
    theirs = torch.from_numpy(dequantize(stored.blocks.numpy(), GGMLQuantizationType[kind]))
    ours = stored.opened(torch.float32)
    assert ours.shape == stored.shape == theirs.shape
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
    assert torch.equal(stored.opened(torch.bfloat16), theirs.bfloat16())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_by_scales_means_finite_numbers(kind: str, dtype: torch.dtype) -> None:
    """Also where all scales and codes are as large as can be; and one scale that is no number is seen."""
    form = FORMATS[kind]
    largest = torch.full((3, 2 * form.n_bytes), 0xFF, dtype=torch.uint8)
    for place in form.scales:
        for block in (0, form.n_bytes):
            largest[:, block + place : block + place + 2] = torch.tensor([0xFF, 0x7B], dtype=torch.uint8)  # 65504
    for blocks in (largest, random_blocks(kind, (3, 2 * form.numbers), 0)):
        stored = Quantised(blocks, kind)
        assert stored.is_finite(dtype) == bool(stored.opened(dtype).isfinite().all())
    for place in form.scales:
        wrong = random_blocks(kind, (3, 2 * form.numbers), 0)
        wrong[2, form.n_bytes + place : form.n_bytes + place + 2] = torch.tensor([0, 0xFC], dtype=torch.uint8)  # -inf
        assert not Quantised(wrong, kind).is_finite(dtype)
