"""A model of ours as a GGUF that llama.cpp runs: its own names and layouts, metadata, and the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Size, Tensor

from pellucid.checkpoints.gguf.config import Contents, config_of_contents
from pellucid.checkpoints.gguf.names import Place, places
from pellucid.checkpoints.gguf.read import head_dim_of
from pellucid.checkpoints.gguf.rotary import ROPE_FACTORS
from pellucid.errors import CheckpointError, UsageError, suggest
from pellucid.families.registry import config_of, differences, plain, spec_of
from pellucid.families.table import Table
from pellucid.families.weights import export_weights
from pellucid.files import write_file
from pellucid.nn.models import Model
from pellucid.nn.rope import frequencies
from pellucid.spec import (
    AttentionSpec,
    ByPartsScaling,
    DecoderSpec,
    FFNSpec,
    GatedFFNSpec,
    LayerNormSpec,
    LinearScaling,
    MoESpec,
    RotarySpec,
    YaRNScaling,
)
from pellucid.text.gguf_vocabulary import vocabulary

if TYPE_CHECKING:
    import gguf

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's numbers for what most tensors are

ARCHITECTURES = {  # the program of llama.cpp that runs a family
    "llama": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "phi3": "phi3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
}
REASONS = {"mistral": ": it would run the layers without their window"}
EXACT = ("position_embd.weight", "ffn_gate_inp.weight", ROPE_FACTORS)  # small, and read as float32
FLATTENED = 1 << 20  # numbers quantised at a time

Kept = dict[str, list[tuple[str, Place]]]  # a tensor of the file, and the published ones that it holds


def to_gguf(model: Model, path: str | Path, quantisation: str = "f16") -> None:
    """Write the model, with its tokenizer, as one GGUF, whole or not at all.

    quantisation: f32, f16 or q8_0, of matrices; gains and biases stay float32. With q8_0, rows that are no multiple of
    32 stay float16. Raises CheckpointError naming what llama.cpp cannot express, or a weight that the type cannot.
    """
    if quantisation not in FILE_TYPES:
        raise UsageError(f"quantisation = {quantisation!r}", suggest(str(quantisation), FILE_TYPES))
    spec, head_dim = model.spec, head_dim_of(model.spec)
    architecture, table = program_of(spec)
    theirs, factors = export_weights(model, table), _rope_factors(spec, architecture)
    kept = _kept(architecture, theirs, spec.n_layers, head_dim)
    shapes = _shapes(kept, theirs) | ({} if factors is None else {ROPE_FACTORS: factors.shape})
    metadata = _metadata(spec, architecture)
    _refuse_others(spec, Contents(Path(path), metadata, shapes, factors))
    metadata |= vocabulary(model.tokenizer, spec.vocab_size)
    metadata |= {"general.file_type": FILE_TYPES[quantisation], "general.quantization_version": 2}
    kinds = {name: _kind(name, shape, quantisation) for name, shape in shapes.items()}

    def tensors() -> Iterator[NDArray[np.uint8]]:
        for name, kind in kinds.items():
            tensor = factors if name == ROPE_FACTORS else _joined(kept[name], theirs)
            assert tensor is not None
            yield _bytes(name, tensor.float().cpu().contiguous(), kind)

    def write(aside: Path) -> None:
        from gguf import GGUFWriter

        writer = GGUFWriter(aside, architecture)
        try:
            for key, value in metadata.items():
                _add(writer, key, value)
            for name, kind in kinds.items():
                _announce(writer, name, shapes[name], kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for data in tensors():
                writer.write_tensor_data(data)
        finally:
            writer.close()

    write_file(Path(path), write)


def program_of(spec: DecoderSpec) -> tuple[str, Table]:
    """The program of llama.cpp that runs a model, and the table of its weights' published names.

    Raises CheckpointError where there is none.
    """
    config, table = config_of(spec)
    if config["model_type"] not in ARCHITECTURES:
        reason = REASONS.get(config["model_type"], "")
        raise CheckpointError(f"llama.cpp runs no {config['model_type']}{reason}", f"known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[config["model_type"]], table


# --- names and layouts -----------------------------------------------------------------------------------------------


def _kept(architecture: str, names: Iterable[str], n_layers: int, head_dim: int) -> Kept:
    kept: Kept = {}
    for name, place in places(architecture, names, n_layers, head_dim).items():
        if place is None:
            raise CheckpointError(f"llama.cpp has no name for {name}", "pellucid's own format keeps every model")
        kept.setdefault(place.name, []).append((name, place))
    return kept


def _joined(entries: list[tuple[str, Place]], theirs: Mapping[str, Tensor]) -> Tensor:
    """A tensor as the file has it: in its layout, and those of all experts in one."""
    laid = [theirs[name].float() if place.layout is None else place.layout.do(theirs[name].float())
            for name, place in entries]  # fmt: skip
    return laid[0] if entries[0][1].part is None else torch.stack(laid)


def _shapes(kept: Kept, theirs: Mapping[str, Tensor]) -> dict[str, Size]:
    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in theirs.items()}
    return {name: _joined(entries, empty).shape for name, entries in kept.items()}


def _rope_factors(spec: DecoderSpec, architecture: str) -> Tensor | None:
    """By what the Llama 3 rule divides each pair's rate; llama.cpp reads it for that program alone."""
    mixer = spec.stack.blocks[0].mixer
    rotary = mixer.rotary if isinstance(mixer, AttentionSpec) else None
    if architecture != "llama" or rotary is None or not isinstance(rotary.scaling, ByPartsScaling):
        return None
    head_dim = head_dim_of(spec)
    return frequencies(replace(rotary, scaling=None), head_dim)[0] / frequencies(rotary, head_dim)[0]


# --- metadata --------------------------------------------------------------------------------------------------------


def _rotary(rotary: RotarySpec, head_dim: int) -> dict[str, Any]:
    said = {"rope.freq_base": rotary.base, "rope.dimension_count": rotary.dims(head_dim)}
    scaling = rotary.scaling
    if isinstance(scaling, ByPartsScaling):  # the rest of the rule is a tensor
        return said | {"rope.scaling.original_context_length": scaling.original_context}
    if isinstance(scaling, LinearScaling):
        return said | {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, YaRNScaling):  # of a file's own two limits llama.cpp reads nothing
        return said | {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling.factor,
            "rope.scaling.original_context_length": scaling.original_context,
        }
    return said


def _metadata(spec: DecoderSpec, architecture: str) -> dict[str, Any]:
    """What llama.cpp asks about a model; what it takes for granted is not said, and checked by ``_refuse_others``."""
    block = spec.stack.blocks[0]
    mixers = [each.mixer for each in spec.stack.blocks if isinstance(each.mixer, AttentionSpec)]
    reaches = [mixer.mask.reach() for mixer in mixers]
    mixer = next((mixer for mixer, reach in zip(mixers, reaches, strict=True) if reach is None), mixers[0])
    ffn = block.ffn.expert if isinstance(block.ffn, MoESpec) else block.ffn
    assert isinstance(ffn, FFNSpec | GatedFFNSpec)  # every family has one of these
    norm = "layer_norm" if isinstance(block.norm, LayerNormSpec) else "layer_norm_rms"
    said: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "context_length": spec.context,
        "embedding_length": spec.d_model,
        "block_count": spec.n_layers,
        "feed_forward_length": ffn.d_ff,
        "attention.head_count": mixer.n_heads,
        "attention.head_count_kv": mixer.n_kv_heads,
        "attention.key_length": mixer.head_dim,
        "attention.value_length": mixer.head_dim,
        f"attention.{norm}_epsilon": block.norm.eps,
    }
    if isinstance(block.ffn, MoESpec):
        said |= {"expert_count": block.ffn.n_experts, "expert_used_count": block.ffn.top_k}
    if architecture == "qwen3moe":
        said["expert_feed_forward_length"] = ffn.d_ff
    if mixer.rotary is not None:
        said |= _rotary(mixer.rotary, mixer.head_dim)
    if architecture in ("gemma2", "gemma3") and any(reaches):
        said["attention.sliding_window"] = next(filter(None, reaches))
    caps = {"attn_logit_softcapping": mixer.soft_cap, "final_logit_softcapping": spec.head.soft_cap}
    said |= {key: cap for key, cap in caps.items() if cap is not None}
    if architecture == "gptneox":
        said["use_parallel_residual"] = block.parallel
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in said.items()}


def _refuse_others(spec: DecoderSpec, contents: Contents) -> None:
    """Raise CheckpointError where the metadata, as llama.cpp and we understand them, are of another model."""
    understood, _ = spec_of(config_of_contents(contents))
    missed = list(differences(plain(spec), plain(understood)))
    if missed:
        name = contents.metadata["general.architecture"]
        raise CheckpointError(f"llama.cpp's {name} cannot express this model: {'; '.join(missed[:4])}")


# --- writing ---------------------------------------------------------------------------------------------------------


def _kind(name: str, shape: Size, quantisation: str) -> str:
    """ggml's name of a tensor's type."""
    if quantisation == "f32" or len(shape) == 1 or name.endswith(EXACT):
        return "F32"
    return "Q8_0" if quantisation == "q8_0" and shape[-1] % 32 == 0 else "F16"


def _bytes(name: str, tensor: Tensor, kind: str) -> NDArray[np.uint8]:
    """The numbers of a tensor in a type. Raises CheckpointError where it cannot hold them."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    most = {"F32": float("inf"), "F16": 65504.0, "Q8_0": 127 * 65504.0}[kind]
    if not largest < float("inf") or largest > most:
        raise CheckpointError(f"{name} holds {largest}, which {kind} cannot", "repair the model, or use f32")
    if kind == "F32":
        return tensor.numpy().view(np.uint8)
    if kind == "F16":
        return tensor.half().numpy().view(np.uint8)
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    flat = tensor.view(-1).split(FLATTENED)
    return np.concatenate([quantize(piece.numpy(), GGMLQuantizationType[kind]) for piece in flat])


def _announce(writer: gguf.GGUFWriter, name: str, shape: Size, kind: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    n_bytes = shape.numel() // block * block_bytes
    writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, GGMLQuantizationType[kind])


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One pair, of the type that llama.cpp expects of such a value."""
    if key == "general.architecture":  # the writer has it
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
