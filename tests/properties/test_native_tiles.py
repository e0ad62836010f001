"""Matrices packed by sixteen rows give what torch gives within a stated bound; planted faults exceed it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import MODELS, quantised_file, random_blocks
from native import kernels
from torch import Tensor

import pellucid
from pellucid.nn.formats import FORMATS
from pellucid.nn.native import program
from pellucid.nn.native.library import library
from pellucid.nn.stored import Quantised

TILED = ("Q4_0", "Q4_1")


@pytest.fixture(autouse=True)
def ready() -> Iterator[None]:
    with kernels():
        if not library.ops.packs("Q4_1"):
            pytest.skip("this processor has no AVX-512")
        yield


def halves(stored: Quantised, place: int) -> Tensor:
    """The half at this place of every block, in float64."""
    blocks = stored.blocks.unflatten(-1, (-1, stored.format.n_bytes))
    return blocks[..., place : place + 2].contiguous().view(torch.float16).double()[..., 0]


def excess(y: Tensor, x: Tensor, stored: Quantised, bias: Tensor) -> float:
    """By which factor the largest error exceeds the bound of docs/quantised-decoding.md; at most 1 is right."""
    w, x = stored.opened(torch.float32).double(), x.double()
    offset = (8 * halves(stored, 0) if stored.kind == "Q4_0" else halves(stored, 2)).abs().repeat_interleave(32, -1)
    codes = w.abs() + offset  # at least |d · code|
    most = x.abs().unflatten(-1, (-1, 32)).amax(-1).repeat_interleave(32, -1) / 64000
    order = (x.shape[-1] / 16 + 32) * 2.0**-24 * (x.abs() @ (codes + offset).T + bias.double().abs())
    return float(((y.double() - x @ w.T - bias.double()).abs() / (order + most @ codes.T)).max())


def example(kind: str, d_out: int, rows: int) -> tuple[Tensor, Quantised, Tensor]:
    """x of which one group of thirty-two is large and has the signs of the last row, a matrix, and a bias."""
    generator = torch.Generator().manual_seed(d_out)
    x = 1e-4 * torch.randn(rows, 544, generator=generator)
    x[:, -32:] *= 1e4
    stored = Quantised(random_blocks(kind, (d_out, 544), 0, 0.01), kind)
    x[:, -32:] = x[:, -32:].abs() * stored.opened(torch.float32)[-1, -32:].sign()
    return x, stored, 1e-3 * torch.randn(d_out, generator=generator)


def product(x: Tensor, stored: Quantised, bias: Tensor) -> Tensor:
    tiles = library.ops.pack(stored.blocks, stored.kind)
    return library.ops.packed_linear(x, tiles, bias, len(stored.blocks), stored.kind)


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("d_out", [1, 15, 16, 37, 64])
def test_product_of_tiles_is_within_its_bound(kind: str, d_out: int) -> None:
    for rows in (1, 3):
        x, stored, bias = example(kind, d_out, rows)
        assert excess(product(x, stored, bias), x, stored, bias) <= 1
        plain = torch.randn(rows, 544, generator=torch.Generator().manual_seed(1))
        assert excess(product(plain, stored, bias), plain, stored, bias) <= 1
    assert product(x[:0], stored, bias).shape == (0, d_out)


def test_product_of_tiles_of_extremes() -> None:
    x, stored, bias = example("Q4_1", 37, 1)
    assert torch.equal(product(0 * x, stored, bias), bias[None])
    assert excess(product(1e-36 * x, stored, bias), 1e-36 * x, stored, bias) <= 1
    for value in (torch.inf, torch.nan):
        x[0, 40] = value
        assert not product(x, stored, bias).isfinite().any()


def fewer_bits(x: Tensor, most: int) -> Tensor:
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / most
    return (groups / scale).round().mul(scale).flatten(-2)


def next_scale(stored: Quantised) -> Quantised:
    """The last scale of the last row, one unit in the last place larger."""
    blocks = stored.blocks.clone()
    blocks[-1, stored.format.scales[0] - stored.format.n_bytes] += 1
    return Quantised(blocks, stored.kind)


FAULTS: dict[str, Callable[[Tensor, Quantised, Tensor], Tensor]] = {
    "x rounded to eight bits": lambda x, w, b: product(fewer_bits(x, 127), w, b),
    "x rounded to eleven bits": lambda x, w, b: product(fewer_bits(x, 1023), w, b),
    "the last number left out": lambda x, w, b: product(torch.cat((x[:, :-1], 0 * x[:, -1:]), 1), w, b),
    "a scale's last bit": lambda x, w, b: product(x, next_scale(w), b),
    "the last row is another": lambda x, w, b: product(x, Quantised(w.blocks[[*range(36), 35]], w.kind), b),
    "rows in another order": lambda x, w, b: product(x, Quantised(w.blocks.roll(1, 0), w.kind), b),
    "no bias": lambda x, w, b: product(x, w, 0 * b),
}


@pytest.mark.parametrize("kind", TILED)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_of_a_product_of_tiles_exceeds_the_bound(kind: str, fault: str) -> None:
    x, stored, bias = example(kind, 37, 3)
    if fault == "no bias":
        x = 1e-3 * x
    assert excess(product(x, stored, bias), x, stored, bias) <= 1
    assert excess(FAULTS[fault](x, stored, bias), x, stored, bias) > 1


def test_tiles_that_do_not_fit_are_refused() -> None:
    x, stored, bias = example("Q4_1", 37, 1)
    tiles = library.ops.pack(stored.blocks, "Q4_1")
    for bad in (
        lambda: library.ops.packed_linear(x, tiles[:2], bias, 37, "Q4_1"),
        lambda: library.ops.packed_linear(x[:, :32], tiles, bias, 37, "Q4_1"),
        lambda: library.ops.packed_linear(x, tiles, bias[:3], 37, "Q4_1"),
        lambda: library.ops.pack(random_blocks("Q8_0", (4, 64), 0), "Q8_0"),
    ):
        with pytest.raises(RuntimeError):
            bad()


def test_steps_read_tiles_and_see_codes_that_changed(tmp_path: Path) -> None:
    model: Any = pellucid.load(quantised_file(MODELS["llama"], "Q4_1", tmp_path), tokenizer=False, quantised=True)
    text = torch.tensor([[1, 2, 3, 4, 5]])

    def steps(spoil: bool) -> Tensor:
        with torch.no_grad():
            cache = model.new_cache(1, 5)
            model(text[:, :2], cache=cache)
            first = model(text[:, 2:3], cache=cache)
            if spoil:
                down.weight[:, FORMATS["Q4_1"].scales[0]] ^= 64  # in place: another scale
            return torch.cat((first, model(text[:, 3:4], cache=cache)), 1)

    down = model.blocks[0].ffn.down
    before = steps(False)
    written = program.write(list(model.blocks), model.spec.d_model, [0] * len(model.blocks))
    assert len(written.tiles) == 7 * len(model.blocks)
    after = steps(True)
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1])
