"""GGUF files for tests: tiny models of every architecture, and files whose contents are changed on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.checkpoints.gguf.write import _add, to_gguf
from pellucid.families.registry import spec_of
from pellucid.nn.formats import FORMATS
from pellucid.nn.models import build_model

COMMON: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
}
MODERN = {**COMMON, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}
WIDE = {**MODERN, "head_dim": 24}
WINDOWED = {**WIDE, "query_pre_attn_scalar": 24, "sliding_window": 8}
BY_PARTS = {"factor": 4.0, "original_max_position_embeddings": 24, "low_freq_factor": 0.5, "high_freq_factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 8.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **MODERN},
    "llama, tied": {"model_type": "llama", **MODERN, "tie_word_embeddings": True},
    "llama, biases": {"model_type": "llama", **MODERN, "attention_bias": True, "mlp_bias": True},
    "llama, wide heads": {"model_type": "llama", **WIDE},
    "llama, linear": {"model_type": "llama", **MODERN, "rope_scaling": LINEAR},
    "llama, yarn": {"model_type": "llama", **MODERN, "rope_scaling": YARN},
    "llama, by parts": {"model_type": "llama", **MODERN, "rope_scaling": {"rope_type": "llama3", **BY_PARTS}},
    "mixtral": {"model_type": "mixtral", **MODERN, "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2": {"model_type": "qwen2", **MODERN},
    "qwen3": {"model_type": "qwen3", **WIDE},
    "qwen3moe": {
        "model_type": "qwen3_moe",
        **WIDE,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "phi3": {"model_type": "phi3", **MODERN, "partial_rotary_factor": 0.5},
    "gemma": {"model_type": "gemma", **WIDE, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {"model_type": "gemma2", **WINDOWED},
    "gemma3": {"model_type": "gemma3_text", **WINDOWED, "num_hidden_layers": 7},
    "gemma3, linear": {"model_type": "gemma3_text", **WINDOWED, "rope_scaling": LINEAR},
    "gpt2": {"model_type": "gpt2", "vocab_size": 61, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "neox": {"model_type": "gpt_neox", **COMMON, "layer_norm_eps": 1e-3, "rotary_pct": 0.25},
    "neox, one after the other": {"model_type": "gpt_neox", **COMMON, "use_parallel_residual": False},
}


def model_of(config: dict[str, Any]) -> Any:
    """A model of this config, every weight of it moved away from where it would begin."""
    model = build_model(spec_of(config)[0])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


def written(model: Any, folder: Path, quantisation: Any = "f32") -> Path:
    """The model's file in that folder."""
    to_gguf(model, folder / "model.gguf", quantisation)
    return folder / "model.gguf"


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The same file again, its metadata and float32 tensors changed in place by ``change``."""
    file = GGUFFile(path)
    metadata = dict(file.metadata)
    tensors = {name: file.read(name).opened(torch.float32).numpy() for name in file.tensors}
    change(metadata, tensors)
    changed = path.with_name("changed.gguf")
    writer = GGUFWriter(changed, metadata.get("general.architecture", "none"))
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


def random_blocks(kind: str, shape: tuple[int, ...], seed: int, scale: float | None = None) -> torch.Tensor:
    """Blocks of random codes for numbers of this shape. scale: of every group; None: any finite float16."""
    form = FORMATS[kind]
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (*shape[:-1], shape[-1] // form.numbers, form.n_bytes), dtype=np.uint8)
    for place in form.scales:
        if scale is None:
            raw[..., place + 1] &= 0xBF  # the exponent's highest bit: without it no number is infinite or NaN
        else:
            signed = scale * generator.choice([-1, 1], raw.shape[:-1]).astype(np.float16)
            raw[..., place : place + 2] = signed.astype(np.float16)[..., None].view(np.uint8)
    return torch.from_numpy(raw.reshape(*shape[:-1], -1))


def quantised_file(config: dict[str, Any], kind: str, folder: Path, but: str = "") -> Path:
    """The file of a model whose matrices hold random blocks of a format. but: names of tensors that stay float32."""
    file = GGUFFile(written(model_of(config), folder))
    path = folder / f"{kind}.gguf"
    writer = GGUFWriter(path, file.metadata["general.architecture"])
    for key, value in file.metadata.items():
        _add(writer, key, value)
    for seed, (name, info) in enumerate(file.tensors.items()):
        whole = len(info.shape) > 1 and info.shape[-1] % FORMATS[kind].numbers == 0
        if whole and name.endswith("weight") and not (but and re.search(but, name)):
            blocks = random_blocks(kind, tuple(info.shape), seed, 0.01 if FORMATS[kind].numbers == 32 else 0.0005)
            writer.add_tensor(name, blocks.numpy(), raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, file.read(name).opened(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
