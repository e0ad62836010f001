"""What a GGUF says about its model, as the config of the published family. What it leaves out, the family supplies.

``general.architecture`` names the program that llama.cpp runs; several families may share one. Each function below
reads that program's keys. Facts without a key stand here as llama.cpp has them, each beside its reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Size, Tensor

from pellucid.checkpoints.gguf.rotary import LONG_ROPE, scaling_of
from pellucid.errors import CheckpointError, suggest
from pellucid.families.config import Config, brief

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
MOST_HEADS, MOST_WIDTH = 1 << 14, 1 << 22  # so that no product of sizes overflows; published: 128 and 53,248

IGNORED = "tensor_data_layout rope.scaling.finetuned"  # how the file came about

BIGGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models; they scale scores in another way
GEMMA_PERIOD = {"gemma2": 2, "gemma3": 6}  # every n-th layer attends globally; n


@dataclass(frozen=True)
class Contents:
    """What is in a file, or shall be: metadata, shapes of tensors, and the numbers of the rotary factors, if any."""

    where: Path
    metadata: Mapping[str, Any]
    shapes: Mapping[str, Size]
    rope_factors: Tensor | None = None


def _n_layers(read: Config, file: Contents) -> int:
    seen = {int(found[1]) for name in file.shapes if (found := re.match(r"blk\.(\d{1,9})\.", name))}
    n_layers = read.layers("block_count")
    if seen != set(range(n_layers)):
        raise read.refuse("block_count", f"is not what the file has: tensors of {len(seen)} layers")
    return n_layers


def _vocabulary(read: Config, file: Contents) -> int:
    """Rows of the embedding, which all that the metadata say about it must fit."""
    shape = file.shapes.get(EMBEDDING)
    if shape is None or len(shape) != 2:
        raise CheckpointError(f"{file.where} has no matrix {EMBEDDING}", "give the file of a language model")
    vocab_size, width = shape
    if read.count("embedding_length", most=MOST_WIDTH) != width:
        raise read.refuse("embedding_length", f"is not the width of {EMBEDDING}, {width}")
    read.expect("vocab_size", vocab_size)
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    if isinstance(tokens, Sequence) and len(tokens) > vocab_size:
        raise CheckpointError(
            f"{file.where}: tokenizer.ggml.tokens has {len(tokens)} entries, but {EMBEDDING} {vocab_size} rows",
            "the vocabulary is of another model",
        )
    return vocab_size


def _head_dim(read: Config) -> int:
    heads, width = read.count("attention.head_count", most=MOST_HEADS), read.count("embedding_length")
    head_dim = read.count("attention.key_length", max(1, width // heads), MOST_HEADS)
    read.expect("attention.value_length", head_dim)
    return head_dim


def _modern(read: Config, file: Contents, whole: bool = True) -> dict[str, Any]:
    """What all of the llama, qwen, gemma and phi3 programs have. whole: all dimensions of a head turn."""
    head_dim = _head_dim(read)
    if whole:
        read.expect("rope.dimension_count", head_dim)
    read.expect("attention.causal", True)
    base = read.take("rope.freq_base", float, 10_000.0)
    scaling = scaling_of(read, file.rope_factors, base, head_dim)
    heads = read.count("attention.head_count")
    return {
        "vocab_size": _vocabulary(read, file),
        "hidden_size": read.count("embedding_length"),
        "num_hidden_layers": _n_layers(read, file),
        "num_attention_heads": heads,
        "num_key_value_heads": read.count("attention.head_count_kv", heads, MOST_HEADS),
        "head_dim": head_dim,
        "intermediate_size": read.count("feed_forward_length", most=MOST_WIDTH),
        "max_position_embeddings": read.count("context_length"),
        "rms_norm_eps": read.take("attention.layer_norm_rms_epsilon", float),
        "rope_theta": base,
        "tie_word_embeddings": OUTPUT not in file.shapes,
        **({"rope_scaling": scaling} if scaling else {}),
    }


def _llama(read: Config, file: Contents) -> dict[str, Any]:
    """Llama, and what runs as it: with a window a Mistral, with experts a Mixtral."""
    config, window = _modern(read, file), read.take("attention.sliding_window", int, 0)
    n_experts, used = read.take("expert_count", int, 0), read.take("expert_used_count", int, 0)
    if n_experts:
        if "blk.0.attn_q.bias" in file.shapes:
            raise CheckpointError(f"{file.where}: blk.0.attn_q.bias stands beside experts", "no family has both")
        n_experts = read.count("expert_count", most=1 << 12)
        config |= {"num_local_experts": n_experts, "num_experts_per_tok": used, "sliding_window": window or None}
        return {"model_type": "mixtral", **config}
    if window:
        return {"model_type": "mistral", **config, "sliding_window": window}
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return {"model_type": "llama", **config, **{name: tensor in file.shapes for name, tensor in biases.items()}}


def _qwen2(read: Config, file: Contents) -> dict[str, Any]:
    return {"model_type": "qwen2", **_modern(read, file), "use_sliding_window": False}


def _qwen3(read: Config, file: Contents) -> dict[str, Any]:
    return {"model_type": "qwen3", **_modern(read, file), "use_sliding_window": False}


def _qwen3moe(read: Config, file: Contents) -> dict[str, Any]:
    """llama.cpp makes the weights of the chosen experts sum to one, as the published models say."""
    config, used = _modern(read, file), read.count("expert_used_count")
    return {
        "model_type": "qwen3_moe",
        **config,
        "num_experts": read.count("expert_count", most=1 << 12),
        "num_experts_per_tok": used,
        "moe_intermediate_size": read.count("expert_feed_forward_length", config["intermediate_size"] // used),
        "norm_topk_prob": True,
        "use_sliding_window": False,
    }


def _phi3(read: Config, file: Contents) -> dict[str, Any]:
    """Files say the original context also where nothing is scaled, and 0 where there is no window."""
    if LONG_ROPE in file.shapes:
        raise CheckpointError(f"{file.where} has {LONG_ROPE}", "LongRoPE has no spec: give a model of short contexts")
    config = _modern(read, file, whole=False)
    head_dim, original = config["head_dim"], "rope.scaling.original_context_length"
    read.expect("attention.key_length", config["hidden_size"] // config["num_attention_heads"])
    return {
        "model_type": "phi3",
        **config,
        "original_max_position_embeddings": read.count(original, config["max_position_embeddings"]),
        "partial_rotary_factor": read.count("rope.dimension_count", head_dim, head_dim) / head_dim,
        "sliding_window": read.take("attention.sliding_window", int, 0) or None,
    }


def _gemma(read: Config, file: Contents) -> dict[str, Any]:
    return {"model_type": "gemma", **_modern(read, file), "hidden_act": "gelu_pytorch_tanh"}


def _windowed_gemma(read: Config, file: Contents, name: str, usual: int) -> dict[str, Any]:
    """What Gemma 2 and 3 share. usual: the window where the file gives none; 0: then there is none."""
    config = _modern(read, file)
    n_layers, window = config["num_hidden_layers"], read.take("attention.sliding_window", int, usual)
    period = read.count("attention.sliding_window_pattern", GEMMA_PERIOD[name])
    local = [window > 0 and (i + 1) % period > 0 for i in range(n_layers)]
    heads, biggest = config["num_attention_heads"], n_layers == BIGGEST_GEMMA[name]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config["hidden_size"] / heads if biggest else float(config["head_dim"]),
        "final_logit_softcapping": read.take("final_logit_softcapping", float, 0.0) or None,
        "sliding_window": window,
        "layer_types": ["sliding_attention" if windowed else "full_attention" for windowed in local],
    }


def _gemma2(read: Config, file: Contents) -> dict[str, Any]:
    """Both caps are on where the file does not say them."""
    config = _windowed_gemma(read, file, "gemma2", 4096)
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return {"model_type": "gemma2", **config, **{key: read.take(key, float, cap) for key, cap in caps.items()}}


def _gemma3(read: Config, file: Contents) -> dict[str, Any]:
    """Layers with a window have a rotary base of their own, which files seldom say."""
    config = _windowed_gemma(read, file, "gemma3", 0)
    return {
        "model_type": "gemma3_text",
        **config,
        "rope_local_base_freq": read.take("rope.freq_base_swa", float, 10_000.0),
    }


def _gpt2(read: Config, file: Contents) -> dict[str, Any]:
    read.expect("attention.head_count_kv", read.count("attention.head_count"))
    _head_dim(read)
    return {
        "model_type": "gpt2",
        "vocab_size": _vocabulary(read, file),
        "n_embd": read.count("embedding_length"),
        "n_layer": _n_layers(read, file),
        "n_head": read.count("attention.head_count"),
        "n_inner": read.count("feed_forward_length", most=MOST_WIDTH),
        "n_positions": read.count("context_length"),
        "layer_norm_epsilon": read.take("attention.layer_norm_epsilon", float),
        "activation_function": "gelu_new",
        "tie_word_embeddings": OUTPUT not in file.shapes,
    }


def _gptneox(read: Config, file: Contents) -> dict[str, Any]:
    """llama.cpp runs its GELU in the tanh form; the models were trained with the exact one."""
    heads, head_dim = read.count("attention.head_count"), _head_dim(read)
    read.expect("attention.head_count_kv", heads)
    base = read.take("rope.freq_base", float, 10_000.0)
    if scaling_of(read, file.rope_factors, base, head_dim) is not None:
        raise read.refuse("rope.scaling.factor", "is not supported for this family")
    return {
        "model_type": "gpt_neox",
        "vocab_size": _vocabulary(read, file),
        "hidden_size": read.count("embedding_length"),
        "num_hidden_layers": _n_layers(read, file),
        "num_attention_heads": heads,
        "intermediate_size": read.count("feed_forward_length", most=MOST_WIDTH),
        "max_position_embeddings": read.count("context_length"),
        "layer_norm_eps": read.take("attention.layer_norm_epsilon", float),
        "hidden_act": "gelu",
        "rotary_pct": read.count("rope.dimension_count", head_dim, head_dim) / head_dim,
        "rotary_emb_base": base,
        "use_parallel_residual": read.take("use_parallel_residual", bool, True),
        "tie_word_embeddings": OUTPUT not in file.shapes,
    }


ARCHITECTURES: dict[str, Callable[[Config, Contents], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
}


def architecture_of(file: Contents) -> str:
    """The architecture that the file names. Raises CheckpointError for one that we do not have, and for no model."""
    kind, name = file.metadata.get("general.type", "model"), file.metadata.get("general.architecture")
    if kind != "model":
        raise CheckpointError(
            f"{file.where}: general.type = {brief(kind)}, not a model", "give the file of the model itself"
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.where}: no family of ours has general.architecture = {brief(name)}",
            suggest(str(name), ARCHITECTURES),
        )
    return name


def config_of_contents(file: Contents) -> dict[str, Any]:
    """The config.json that the model would have. Raises CheckpointError for a key that is missing, unknown, refused."""
    name = architecture_of(file)
    own = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    read = Config(own, f"{file.where}, {name}", IGNORED, strict=True)
    config = ARCHITECTURES[name](read, file)
    read.done()
    return config
