"""Kernels in C++ give what torch gives within a stated bound, by every set of instructions; planted faults are seen."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from drawn import examples
from gguf_files import MODELS, model_of, quantised_file, random_blocks
from hypothesis import given, settings
from native import kernels
from strategies import close, ids, models
from torch import Tensor, nn

import pellucid
from pellucid.nn.formats import FORMATS
from pellucid.nn.native import program, step
from pellucid.nn.native.library import KINDS, Library, library
from pellucid.nn.native.product import native
from pellucid.nn.products import choose_product, linear, reference
from pellucid.nn.stored import Quantised

FORMS = ("AVX-512", "AVX2", "plain C++")
K = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}  # widths that a block of 256 divides


@pytest.fixture
def ready() -> Iterator[None]:
    with kernels():
        yield


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels():
        if request.param not in library.ops.instructions():
            pytest.skip(f"this processor has no {request.param}")
    with kernels(request.param):
        yield request.param


# --- products --------------------------------------------------------------------------------------------------------


def excess(y: Tensor, x: Tensor, stored: Quantised, bias: Tensor) -> float:
    """By which factor the largest error exceeds the bound that nn/native/product.py states; at most 1 is right."""
    w = stored.opened(torch.float32).double()
    offset = stored.format.scales  # the formats with an offset have two halves, and Q6_K, Q8_0, … one
    blocks = w.unflatten(-1, (-1, 32))
    # |d · q| + |m| ≤ |w| + 2 |m|, and |m| is at most the largest |w| of its group where codes begin at 0
    size = (w.abs() + 2 * blocks.abs().amax(-1).repeat_interleave(32, -1)) if len(offset) == 2 else w.abs()
    bound = (x.shape[-1] / 16 + 32) * 2.0**-24 * (x.double().abs() @ size.T + bias.double().abs())
    return float(((y.double() - x.double() @ w.T - bias.double()).abs() / bound).max())


def example(kind: str, rows: int) -> tuple[Tensor, Quantised, Tensor]:
    """x, a matrix of 37 rows in this format, and a bias: sizes that no group of sixteen divides."""
    width = 768 if FORMATS[kind].numbers == 256 else 544
    generator = torch.Generator().manual_seed(rows)
    stored = Quantised(random_blocks(kind, (37, width), 0, 0.01), kind)
    return torch.randn(rows, width, generator=generator), stored, torch.randn(37, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_open_the_very_numbers_of_the_format(form: str, kind: str) -> None:
    blocks = random_blocks(kind, (5, 1280), 0)  # any finite halves, also the smallest
    wanted = torch.cat(list(Quantised(blocks, kind).pieces())).view(5, 1280)
    assert torch.equal(library.ops.open(blocks, kind), wanted)
    assert torch.equal(Quantised(blocks, kind).opened(torch.float32), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_native_product_is_within_its_bound(form: str, kind: str) -> None:
    for rows in (1, 3, 4, 9, 16, 17):
        x, stored, bias = example(kind, rows)
        assert choose_product(x, stored).product is native
        assert excess(linear(x, stored, bias), x, stored, bias) <= 1
        assert linear(x[:0], stored, bias).shape == (0, 37)


def eight_bit(x: Tensor) -> Tensor:
    scale = x.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    return (x.unflatten(-1, (-1, 32)) / scale).round().mul(scale).flatten(-2)


def next_scale(stored: Quantised) -> Quantised:
    """One scale of one block, one unit in the last place larger."""
    blocks = stored.blocks.clone()
    blocks[0, stored.format.scales[0]] += 1
    return Quantised(blocks, stored.kind)


FAULTS: dict[str, Callable[[Tensor, Quantised, Tensor], Tensor]] = {
    "x rounded to bfloat16": lambda x, w, b: linear(x.bfloat16().float(), w, b),
    "x rounded to eight bits": lambda x, w, b: linear(eight_bit(x), w, b),
    "the last number left out": lambda x, w, b: linear(torch.cat((x[:, :-1], 0 * x[:, -1:]), 1), w, b),
    "the first group left out": lambda x, w, b: linear(torch.cat((0 * x[:, :16], x[:, 16:]), 1), w, b),
    "a scale's last bit": lambda x, w, b: linear(x, next_scale(w), b),
    "blocks in another order": lambda x, w, b: linear(x, Quantised(w.blocks.roll(w.format.n_bytes, 1), w.kind), b),
    "no bias": lambda x, w, b: linear(x, w),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_K", "Q6_K"])
@pytest.mark.usefixtures("ready")
def test_planted_fault_of_a_product_exceeds_the_bound(kind: str, fault: str) -> None:
    x, stored, bias = example(kind, 3)
    assert excess(FAULTS[fault](x, stored, bias), x, stored, bias) > 1


@pytest.mark.usefixtures("ready")
def test_choice_of_native_product_says_why() -> None:
    x, stored = torch.ones(1, 256), Quantised(random_blocks("Q4_K", (4, 256), 0), "Q4_K")
    assert str(choose_product(x, stored)).startswith("native: Q4_K codes are multiplied as they lie in memory, by ")
    unknown = Quantised(random_blocks("Q3_K", (4, 256), 0), "Q3_K")
    for read, matrix, reason in (
        (x.bfloat16(), stored, "bfloat16"),
        (x.requires_grad_(), stored, "no gradient"),
        (x.detach(), unknown, "no such format"),
    ):
        choice = choose_product(read, matrix)
        assert choice.product is reference and reason in choice.why


def test_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PELLUCID_NATIVE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    unbuilt = Library()
    assert not unbuilt.ready() and "not built" in unbuilt.why
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    found = Library()
    assert not found.ready(build=True) and "no C++ compiler" in found.why
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name == "ninja" else name)
    assert not found.ready(build=True) and not Library().ready(build=True)


@pytest.mark.usefixtures("ready")
def test_native_product_counts_its_flops() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, stored, _ = example("Q8_0", 3)
    with FlopCounterMode(display=False) as counter:
        linear(x, stored)
    assert counter.get_total_flops() == 2 * 3 * 37 * 544


# --- a step ----------------------------------------------------------------------------------------------------------


def token_by_token(model: Any, text: Tensor, wanted: str | None = None) -> Tensor:
    """Logits of all but the first two tokens, which are read together, one by one. wanted: why no program may run."""
    with torch.inference_mode():
        cache = model.new_cache(len(text), text.shape[1])
        model(text[:, :2], cache=cache)
        steps = [model(text[:, i : i + 1], cache=cache) for i in range(2, text.shape[1])]
        x = torch.zeros(len(text), 1, model.spec.d_model, dtype=model.dtype)
        why = model.why_no_step(x, cache)
    assert (why is None) if wanted is None else wanted in str(why)
    return torch.cat(steps, 1)


TEXT = torch.arange(3 * 9).view(3, 9) % 11


@given(models, ids(max_time=8, min_time=3))
@settings(max_examples=examples(15))
def test_steps_equal_blocks_for_any_model(model: Any, text: Tensor) -> None:
    with torch.inference_mode():
        wanted = model(text)[:, 2:]
        with kernels():
            cache = model.new_cache(len(text), text.shape[1])
            model(text[:, :2], cache=cache)
            found = [model(text[:, i : i + 1], cache=cache) for i in range(2, text.shape[1])]
    close(torch.cat(found, 1), wanted)


def equal_to_blocks(name: str, folder: Path, quantised: bool) -> None:
    path = quantised_file(MODELS[name], "Q4_1", folder)
    model: Any = pellucid.load(path, tokenizer=False, quantised=quantised)
    with torch.inference_mode():
        wanted = pellucid.load(path, tokenizer=False)(TEXT)[:, 2:]
    # Tiles read numbers in sixteen bits; without them, steps and blocks differ by the order of sums alone.
    torch.testing.assert_close(token_by_token(model, TEXT), wanted, rtol=1e-3, atol=1e-3)
    with mock.patch.dict(os.environ, {"PELLUCID_TILES": "0"}):
        torch.testing.assert_close(token_by_token(model, TEXT), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama, biases", "llama, by parts", "qwen3", "phi3", "gemma3", "gpt2", "neox"])
@pytest.mark.usefixtures("ready")
def test_steps_equal_blocks_for_published_families(name: str, tmp_path: Path) -> None:
    equal_to_blocks(name, tmp_path, quantised=name != "phi3")


@pytest.mark.parametrize("quantised", [True, False])
def test_steps_equal_blocks_by_every_set_of_instructions(quantised: bool, form: str, tmp_path: Path) -> None:
    equal_to_blocks("gemma2", tmp_path, quantised)


@pytest.mark.usefixtures("ready")
def test_steps_in_bfloat16_equal_blocks(tmp_path: Path) -> None:
    model: Any = pellucid.load(quantised_file(MODELS["qwen3"], "Q8_0", tmp_path), torch.bfloat16, tokenizer=False)
    found = token_by_token(model, TEXT)
    with torch.inference_mode():
        torch.testing.assert_close(found, model(TEXT)[:, 2:], rtol=4e-2, atol=4e-2)


@pytest.mark.usefixtures("ready")
def test_rows_of_unequal_length_are_written_alike() -> None:
    model = model_of(MODELS["gemma3"])
    prompts: list[list[int]] = [[1, 2, 3, 4, 5], [3], [2, 6, 1]]
    sampling = pellucid.Sampling(temperature=0.0)
    together = pellucid.generate(model, prompts, max_new_tokens=6, sampling=sampling)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "ops", None)
        alone = [pellucid.generate(model, [p], max_new_tokens=6, sampling=sampling)[0] for p in prompts]
    assert [one.ids for one in together] == [one.ids for one in alone]


@pytest.mark.usefixtures("ready")
def test_listeners_hooks_and_changes_are_heeded() -> None:
    model = model_of(MODELS["llama"])
    plain = token_by_token(model, TEXT)
    with model.taps(read=["blocks.0.attn.z"], keep="all") as acts:
        close(token_by_token(model, TEXT, "listens"), plain)
        assert len(acts.each("blocks.0.attn.z")) == TEXT.shape[1] - 1
    with model.taps(edit={"blocks.0.attn_out": lambda x: 0 * x}):
        assert not torch.allclose(token_by_token(model, TEXT, "listens"), plain)
    seen: list[Tensor] = []
    handle = model.blocks[0].register_forward_hook(lambda *given: seen.append(given[2]))
    token_by_token(model, TEXT, "hooks")
    handle.remove()
    assert len(seen) == TEXT.shape[1] - 1
    close(token_by_token(model, TEXT), plain)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("change", ["in place", "another parameter", "its data", "another module"])
def test_changed_weight_counts_from_the_next_token_on(change: str) -> None:
    model = model_of(MODELS["llama"])
    with torch.inference_mode():
        cache = model.new_cache(3, 9)
        model(TEXT[:, :2], cache=cache)
        model(TEXT[:, 2:3], cache=cache)
    down = model.blocks[0].ffn.down
    with torch.no_grad():
        if change == "in place":
            down.weight.mul_(2)
        elif change == "another parameter":
            down.weight = nn.Parameter(2 * down.weight)
        elif change == "its data":
            down.weight.data = 2 * down.weight
        else:
            model.blocks[0].ffn.down = copy.deepcopy(down)
            model.blocks[0].ffn.down.weight.mul_(2)
    with torch.inference_mode():
        again = copy.deepcopy(cache)
        found = [model(TEXT[:, i : i + 1], cache=cache) for i in (3, 4)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "ops", None)
            wanted = [model(TEXT[:, i : i + 1], cache=again) for i in (3, 4)]
    close(torch.cat(found, 1), torch.cat(wanted, 1))


PLANTED = {
    "a norm's epsilon": (program.NORM, 9, program.bits(0.5)),
    "half a product's columns": (program.PRODUCT, 6, 4),
    "no rotation": (program.ROTATE, 2, 0),
    "another scale of the scores": (program.ATTEND, 9, program.bits(2.0)),
    "another activation": (program.ACTIVATE, 4, 0),
    "no residual stream": (program.JOIN, 4, program.bits(0.5)),
}


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.usefixtures("ready")
def test_planted_fault_of_an_instruction_is_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = pellucid.load(quantised_file(MODELS["llama"], "Q8_0", tmp_path), tokenizer=False)
    wanted, written = token_by_token(model, TEXT), program.write
    torch.testing.assert_close(token_by_token(model, TEXT), wanted)
    kind, place, value = PLANTED[fault]

    def spoiled(*given: Any) -> program.Program:
        made = written(*given)
        first = next(line for line in made.lines if int(line[0]) == kind)
        first[place] = value
        return made

    monkeypatch.setattr(step, "write", spoiled)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(token_by_token(model, TEXT), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("ready")
def test_steps_that_no_program_expresses_say_why(tmp_path: Path) -> None:
    model: Any = pellucid.load(quantised_file(MODELS["mixtral"], "Q8_0", tmp_path), tokenizer=False)
    token_by_token(model, TEXT, "no instruction for a")
    plain = model_of(MODELS["llama"])
    x, cache = torch.zeros(1, 1, plain.spec.d_model), plain.new_cache(1, 4)
    assert "gradients" in str(plain.why_no_step(x, cache))
    with torch.no_grad():
        assert plain.why_no_step(x, cache) is None and "one new token" in str(plain.why_no_step(x, None))
