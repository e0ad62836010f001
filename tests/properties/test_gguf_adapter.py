"""An adapter as a GGUF: put beside its base by llama.cpp's formula, it is the function that it was here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import MODELS, model_of, rewrite
from some import some_of
from torch import Tensor

import pellucid
from pellucid.checkpoints.gguf.adapter import save_gguf_adapter
from pellucid.errors import CheckpointError, UsageError
from pellucid.surgery.holding import parameters_of, switch
from pellucid.surgery.lora import LoRA, Ranked, adapt

IDS = torch.arange(2 * 9).view(2, 9) * 7 % 61
NEAR, VISIBLE = 1e-5, 1e-2
QUICK = ("llama", "llama, tied", "mixtral", "phi3", "gpt2", "neox")
UNEVEN = LoRA(rank=3, alpha=5.0, ranked=(Ranked(pattern="*.attn.*", rank=2, alpha=9.0),), exclude=())


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


def adapted(name: str, lora: LoRA = UNEVEN) -> Any:
    model = adapt(model_of(MODELS[name]), lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters_of(model, "adapter").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def plain_file(model: Any, folder: Path) -> Path:
    """The model without its adapter."""
    switch(model, None)
    pellucid.convert(model, folder / "base.gguf", to="gguf", quantisation="f32")
    return folder / "base.gguf"


def beside(base: Path, adapter: Path, rule: Callable[[Any, Any, float], Any] | None = None) -> Path:
    """The base with W + alpha / rank · B A in the place of every W that the adapter names, as llama.cpp computes it."""
    read = gguf.GGUFReader(adapter)
    alpha = float(read.fields["adapter.lora.alpha"].contents())
    factors = {tensor.name: tensor.data for tensor in read.tensors}
    pairs = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert 2 * len(pairs) == len(factors)

    def update(a: Any, b: Any, alpha: float) -> Any:
        return alpha / b.shape[-1] * (b @ a)

    def change(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in pairs:
            a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
            if name == "token_embd.weight":
                a, b = b.T, a * (a.shape[-1] / b.shape[-1])
            tensors[name] = tensors[name] + (rule or update)(a, b, alpha).astype(np.float32)

    return rewrite(base, change)


@pytest.mark.parametrize("name", some_of(MODELS, QUICK))
def test_adapter_beside_its_base_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    """Ranks and strengths differ, matrices of experts, of q, k and v in one, and turned rows are among them."""
    model = adapted(name)
    wanted = logits(model)
    save_gguf_adapter(model, tmp_path / "adapter.gguf")
    base = plain_file(model, tmp_path)
    assert gap(logits(model), wanted) > VISIBLE, "the adapter changes something"
    assert gap(logits(pellucid.load(beside(base, tmp_path / "adapter.gguf"))), wanted) < NEAR


def test_adapter_of_head_and_tokens_gives_the_same_logits(tmp_path: Path) -> None:
    model = adapted("llama", LoRA(targets=("head", "embed.tokens"), rank=3))
    wanted = logits(model)
    pellucid.convert(model, tmp_path / "adapter.gguf", to="gguf-adapter")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    assert names == {f"{each}.weight.lora_{half}" for each in ("output", "token_embd") for half in "ab"}
    assert gap(logits(pellucid.load(beside(plain_file(model, tmp_path), tmp_path / "adapter.gguf"))), wanted) < NEAR


@pytest.mark.parametrize(
    "rule",
    [
        lambda a, b, alpha: alpha / 3 * (b @ a),
        lambda a, b, alpha: b @ a,
        lambda a, b, alpha: alpha / b.shape[-1] * (b[::-1] @ a),
    ],
)
def test_another_rule_gives_other_logits(rule: Any, tmp_path: Path) -> None:
    """The control: one rank for all, no strength, rows in another order."""
    model = adapted("llama")
    wanted = logits(model)
    save_gguf_adapter(model, tmp_path / "adapter.gguf")
    assert (
        gap(logits(pellucid.load(beside(plain_file(model, tmp_path), tmp_path / "adapter.gguf", rule))), wanted) > 1e-3
    )


def test_file_says_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    save_gguf_adapter(adapted("llama", LoRA(rank=2, alpha=6.0)), tmp_path / "adapter.gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "adapter.gguf").fields.items()}
    said = {name: fields[name] for name in ("general.architecture", "general.type", "adapter.type")}
    assert said == {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    assert fields["adapter.lora.alpha"] == 6.0


@pytest.mark.parametrize(
    ("name", "lora", "says"),
    [
        ("llama", LoRA(dora=True), "magnitudes"),
        ("llama", LoRA(also=("final_norm.weight",)), "final_norm.weight is trained whole"),
        ("llama, tied", LoRA(targets=("embed.tokens",)), "one table for head and tokens"),
        ("llama, tied", LoRA(targets=("head",), ties="cut"), "one table for head and tokens"),
    ],
)
def test_adapter_that_llama_cpp_lacks_is_refused_and_nothing_written(
    name: str, lora: LoRA, says: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=says):
        save_gguf_adapter(adapted(name, lora), tmp_path / "adapter.gguf")
    assert not any(tmp_path.iterdir())


def test_plain_model_and_one_that_llama_cpp_does_not_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter is active"):
        save_gguf_adapter(model_of(MODELS["llama"]), tmp_path / "adapter.gguf")
    mistral = model_of({**MODELS["llama"], "model_type": "mistral", "sliding_window": 8})
    with pytest.raises(CheckpointError, match=r"llama\.cpp runs no mistral"):
        save_gguf_adapter(adapt(mistral), tmp_path / "adapter.gguf")
    (tmp_path / "taken.gguf").touch()
    for out, says in (("adapter", "no name for a GGUF"), ("taken.gguf", "exists")):
        with pytest.raises(UsageError, match=says):
            pellucid.convert(adapted("llama"), tmp_path / out, to="gguf-adapter")
