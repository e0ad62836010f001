"""Models whose weights stay quantised: they compute what the model with opened weights computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import MODELS, model_of, quantised_file, random_blocks
from torch import Tensor, nn

import pellucid
from pellucid.batch import Batch, Tokens
from pellucid.checkpoints.gguf.read import GGUFSource
from pellucid.checkpoints.load import formats, load_checkpoint, open_checkpoint
from pellucid.errors import CheckpointError, UsageError
from pellucid.nn import products
from pellucid.nn.formats import FORMATS
from pellucid.nn.products import AT_ONCE, choose_product, linear, reference, register, unregister
from pellucid.nn.quantised import QuantisedLinear, open_weights, quantisable, stored_of
from pellucid.nn.stored import Plain, Quantised, Stored

SAME = 1e-5  # where a sum may be made in another order; most results are equal bit for bit
K = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}  # widths that a block of 256 divides
IDS = torch.arange(2 * 7).view(2, 7) % 61


def pair(path: Path) -> tuple[Any, Any]:
    """The model with opened weights, and the one with quantised ones."""
    return pellucid.load(path, tokenizer=False), pellucid.load(path, tokenizer=False, quantised=True)


def held(model: nn.Module) -> dict[str, str]:
    """The weights that are quantised, and their formats."""
    return {name: stored.kind for name, stored in stored_of(model).items() if isinstance(stored, Quantised)}


# --- the product -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_reference_product_equals_product_with_opened_matrix(kind: str, dtype: torch.dtype) -> None:
    stored = Quantised(random_blocks(kind, (37, 512), 0, 0.01), kind)
    x, bias = torch.randn(2, 5, 512).to(dtype), torch.randn(37).to(dtype)
    wanted = nn.functional.linear(x, stored.opened(dtype), bias)
    found = linear(x, stored, bias)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


def test_product_by_several_chunks_of_rows_equals_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Quantised(random_blocks("Q4_K", (50, 256), 0, 0.001), "Q4_K")
    x = torch.randn(3, 256, requires_grad=True)
    wanted = linear(x, stored)
    (slope,) = torch.autograd.grad(wanted.square().sum(), x)
    assert AT_ONCE >= 50 * 256
    monkeypatch.setattr(products, "AT_ONCE", 7 * 256)
    found = linear(x, stored)
    torch.testing.assert_close(found, wanted, rtol=SAME, atol=SAME)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], slope, rtol=SAME, atol=SAME)


def test_gradient_of_input_equals_that_of_opened_matrix() -> None:
    stored = Quantised(random_blocks("Q5_1", (6, 64), 0, 0.01), "Q5_1")
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: linear(x, stored), (x,))


def test_choice_says_why() -> None:
    x, stored = torch.ones(1, 32), Quantised(random_blocks("Q8_0", (4, 32), 0), "Q8_0")
    assert str(choose_product(x, Plain(torch.ones(4, 32)))) == "dense: the numbers are plain: one matrix product"
    assert choose_product(x, stored).product is reference and "Q8_0" in choose_product(x, stored).why


def test_registered_product_is_asked_first() -> None:
    class Counting:
        name, calls = "counting", 0

        def serves(self, x: Tensor, stored: Stored) -> str | None:
            return "it counts" if isinstance(stored, Quantised) and stored.kind == "Q4_0" else None

        def __call__(self, x: Tensor, stored: Stored, bias: Tensor | None = None) -> Tensor:
            self.calls += 1
            return reference(x, stored, bias)

    counting, x = Counting(), torch.ones(1, 32)
    register(counting)
    try:
        linear(x, Quantised(random_blocks("Q4_0", (4, 32), 0), "Q4_0"))
        linear(x, Quantised(random_blocks("Q8_0", (4, 32), 0), "Q8_0"))
        assert counting.calls == 1
    finally:
        unregister(counting)


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gpt2"])
def test_quantised_model_gives_the_logits_of_the_opened_one(name: str, tmp_path: Path) -> None:
    opened, quantised = pair(quantised_file(MODELS[name], "Q4_1", tmp_path))
    # all but a tied embedding's second name, what no block divides, and the norms
    wide = {n for n, stored in stored_of(opened).items() if len(stored.shape) > 1 and stored.shape[-1] % 32 == 0}
    assert held(quantised).keys() == {
        n for n in wide & quantisable(opened) if "router" not in n or name in ("mixtral", "qwen3moe")
    }
    with torch.no_grad():
        torch.testing.assert_close(quantised(IDS), opened(IDS), rtol=SAME, atol=SAME)
    assert quantised.n_parameters == opened.n_parameters


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_logits_of_the_opened_model(kind: str, tmp_path: Path) -> None:
    opened, quantised = pair(quantised_file({**MODELS["llama"], **K}, kind, tmp_path))
    assert set(held(quantised).values()) == {kind} and "head.weight" in held(quantised)
    with torch.no_grad():
        torch.testing.assert_close(quantised(IDS), opened(IDS), rtol=SAME, atol=SAME)


def test_transposed_matrices_of_gpt2_are_opened(tmp_path: Path) -> None:
    opened, quantised = pair(quantised_file(MODELS["gpt2"], "Q8_0", tmp_path))
    assert held(quantised) == {"embed.tokens.weight": "Q8_0"}
    with torch.no_grad():
        torch.testing.assert_close(quantised(IDS), opened(IDS), rtol=SAME, atol=SAME)


def test_experts_of_different_formats_are_opened(tmp_path: Path) -> None:
    path = quantised_file(MODELS["mixtral"], "Q4_0", tmp_path, but=r"blk\.1\.ffn_up_exps")
    opened, quantised = pair(path)
    assert "blocks.0.ffn.up.weight" in held(quantised) and "blocks.1.ffn.up.weight" not in held(quantised)
    with torch.no_grad():
        torch.testing.assert_close(quantised(IDS), opened(IDS), rtol=SAME, atol=SAME)


@pytest.mark.parametrize("name", ["llama", "gemma", "mixtral"])
def test_quantised_model_in_bfloat16_equals_opened_one_in_bfloat16(name: str, tmp_path: Path) -> None:
    path = quantised_file(MODELS[name], "Q4_1", tmp_path)
    opened = pellucid.load(path, torch.bfloat16, tokenizer=False)
    models: list[Any] = [
        pellucid.load(path, torch.bfloat16, tokenizer=False, quantised=True),
        pellucid.load(path, tokenizer=False, quantised=True).to(torch.bfloat16),
    ]
    for quantised in models:
        assert quantised.embed(IDS, quantised.embed.places(IDS)).dtype == torch.bfloat16
        with torch.no_grad():
            torch.testing.assert_close(quantised(IDS), opened(IDS), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gemma2"])
def test_loss_and_its_gradient_equal_those_of_the_opened_model(name: str, tmp_path: Path) -> None:
    batch = Batch(IDS, Tokens.plain(IDS.shape[0], IDS.shape[1]), IDS.roll(-1, 1))
    slopes: list[Tensor] = []
    for model in pair(quantised_file(MODELS[name], "Q8_0", tmp_path)):
        loss = model.nll_sum(batch)
        slopes.append(torch.autograd.grad(loss, model.final_norm.weight)[0])
        slopes.append(loss.detach())
    torch.testing.assert_close(slopes[2], slopes[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slopes[3], slopes[1], rtol=SAME, atol=1e-3)


def test_cached_quantised_model_equals_uncached(tmp_path: Path) -> None:
    _, model = pair(quantised_file(MODELS["gemma3"], "Q5_0", tmp_path))
    with torch.no_grad():
        cache = model.new_cache(2)
        parts = [model(part, cache=cache) for part in IDS.split((3, 1, 3), 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(IDS), rtol=1e-4, atol=1e-4)


def test_copy_of_a_quantised_model_is_its_own(tmp_path: Path) -> None:
    _, model = pair(quantised_file(MODELS["llama"], "Q8_0", tmp_path))
    again = copy.deepcopy(model)
    again.blocks[0].attn.q.weight.zero_()
    assert not torch.equal(again(IDS), model(IDS))
    assert isinstance(again.blocks[0].attn.q, QuantisedLinear) and repr(again.blocks[0].attn.q).endswith("Q8_0)")


@pytest.mark.parametrize("name", ["llama", "llama, biases", "mixtral", "gemma"])
def test_weights_that_are_opened_later_equal_those_opened_at_once(name: str, tmp_path: Path) -> None:
    opened, model = pair(quantised_file(MODELS[name], "Q4_1", tmp_path))
    open_weights(model, torch.float32)
    assert not held(model) and repr(model) == repr(opened)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in opened.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(IDS), opened(IDS))
    assert all(weight.requires_grad for weight in model.parameters())


def test_quantised_model_keeps_what_verify_asks(tmp_path: Path) -> None:
    _, model = pair(quantised_file(MODELS["llama"], "Q4_1", tmp_path))
    asked = ["bf16", "quantised", "saved", "cache", "batch", "padding", "deterministic"]
    report = pellucid.verify(model, asked)
    assert {finding.verdict for finding in report.findings} == {"pass"}, report.broken


# --- kept, saved and exported ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama, tied", "mixtral"])
def test_saved_quantised_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    _, model = pair(quantised_file(MODELS[name], "Q4_1", tmp_path))
    pellucid.save(model, tmp_path / "saved")
    again = pellucid.load(tmp_path / "saved")
    assert held(again) == held(model)
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(IDS), model(IDS))


def test_quantised_model_is_exported_with_opened_weights(tmp_path: Path) -> None:
    opened, model = pair(quantised_file(MODELS["llama"], "Q4_1", tmp_path))
    pellucid.convert(model, tmp_path / "hf")
    again = pellucid.load(tmp_path / "hf")
    assert not held(again)
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in opened.state_dict().items())


def test_formats_count_every_number_of_the_model(tmp_path: Path) -> None:
    path = quantised_file(MODELS["llama"], "Q4_1", tmp_path)
    model = pellucid.load(path, tokenizer=False)
    counted = formats(open_checkpoint(path))
    assert counted.keys() == {"Q4_1", "float32"} and sum(counted.values()) == model.n_parameters


# --- what is refused -------------------------------------------------------------------------------------------------


def test_quantised_is_refused_for_what_is_no_gguf(tmp_path: Path) -> None:
    pellucid.save(model_of(MODELS["llama"]), tmp_path / "ours")
    pellucid.convert(model_of(MODELS["llama"]), tmp_path / "hf")
    for name in ("ours", "hf"):
        with pytest.raises(UsageError, match="is no GGUF file"):
            pellucid.load(tmp_path / name, quantised=True)
    with pytest.raises(UsageError, match="is no GGUF file"):
        pellucid.verify(tmp_path / "ours", quantised=True)


@pytest.mark.parametrize("cut", [1, 200, 5000])
def test_quantised_load_of_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    path = quantised_file(MODELS["llama"], "Q4_1", tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="the file at"):
        pellucid.load(path, quantised=True, tokenizer=False)


def test_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = quantised_file(MODELS["llama"], "Q4_1", tmp_path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(CheckpointError, match="it ends in"):
        load_checkpoint(checkpoint, quantised=True)


def test_quantised_load_of_scales_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    path = quantised_file(MODELS["llama"], "Q4_1", tmp_path)
    source = open_checkpoint(path).source
    assert isinstance(source, GGUFSource)
    offset = source._file.tensors["blk.1.ffn_up.weight"].offset
    data = bytearray(path.read_bytes())
    data[offset + 40 : offset + 42] = b"\x00\x7e"  # NaN
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight holds NaN"):
        pellucid.load(path, quantised=True, tokenizer=False)


def test_saved_folder_with_unknown_format_is_refused(tmp_path: Path) -> None:
    from pellucid.checkpoints.tensors import load_tensors, save_tensors

    _, model = pair(quantised_file(MODELS["llama"], "Q4_1", tmp_path))
    pellucid.save(model, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    tensors, metadata = load_tensors(file)
    metadata.pop("sha256")
    for wrong in ({"embed.tokens.weight": "Q9"}, {"final_norm.weight": "Q8_0"}, {"none": "Q8_0"}, ["Q8_0"], {"a": 1}):
        save_tensors(file, tensors, **{**metadata, "quantised": wrong})
        with pytest.raises(CheckpointError, match="metadata are damaged"):
            pellucid.load(tmp_path / "saved")
    save_tensors(file, tensors, **{key: value for key, value in metadata.items() if key != "quantised"})
    with pytest.raises(CheckpointError, match="has shape"):
        pellucid.load(tmp_path / "saved")
