"""How a GGUF says that rotary positions are scaled, and what a config.json would say."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import CheckpointError
from pellucid.families.config import Config
from pellucid.nn.rope import frequencies
from pellucid.spec import ByPartsScaling, RotarySpec

ROPE_FACTORS = "rope_freqs.weight"  # the result of Llama 3's rule
LONG_ROPE = "rope_factors_long.weight"  # of Phi 3's long contexts
LLAMA_3 = {"original_context": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of all versions since 3.1


def _by_parts(read: Config, factors: Tensor, base: float, head_dim: int) -> dict[str, Any] | None:
    """The Llama 3 rule. The file keeps only its result: the factor by which each pair's rate is divided.

    factor is the largest of them. Pairs in between lie on a line, from which the two limits follow; where there are not
    two such pairs, they are Llama's own. Raises CheckpointError where the rule then gives other factors than the file.
    """
    factors, rate = factors.double(), frequencies(RotarySpec(base), head_dim)[0].double()
    if bool((factors == 1).all()):
        return None
    original = read.count("rope.scaling.original_context_length", int(LLAMA_3["original_context"]))
    refused = CheckpointError(f"{read.where}: {ROPE_FACTORS} is not of the Llama 3 rule", "no other rule has a spec")
    if factors.shape != rate.shape or not bool((torch.isfinite(factors) & (factors >= 1)).all()):
        raise refused
    factor, turns = float(factors.max()), original * rate / (2 * math.pi)
    keep = (1 / factors - 1 / factor) / (1 - 1 / factor)
    low, high = LLAMA_3["low_freq_factor"], LLAMA_3["high_freq_factor"]
    between = ((keep > 1e-3) & (keep < 1 - 1e-3)).nonzero().flatten().tolist()
    if len(between) >= 2:
        first, last = between[0], between[-1]
        slope = float((turns[first] - turns[last]) / (keep[first] - keep[last]))
        low = round(float(turns[first] - keep[first] * slope), 3)
        high = round(low + slope, 3)
    if not low < high:
        raise refused
    scaled = frequencies(RotarySpec(base, scaling=ByPartsScaling(factor, original, low, high)), head_dim)[0]
    if not torch.allclose(rate / scaled, factors, rtol=1e-4):
        raise refused
    limits = {"low_freq_factor": low, "high_freq_factor": high}
    return {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original, **limits}


def scaling_of(read: Config, factors: Tensor | None, base: float, head_dim: int) -> dict[str, Any] | None:
    """The ``rope_scaling`` of a config.json; None where nothing is scaled. factors: the tensor ``rope_freqs``, if any.

    Raises CheckpointError for a rule that no spec expresses.
    """
    factor = read.take("rope.scaling.factor", float, read.take("rope.scale_linear", float, 1.0))
    kind = read.take("rope.scaling.type", str, "linear")
    read.expect("rope.scaling.attn_factor", 1.0)
    if factors is not None:
        if factor != 1.0:
            raise read.refuse("rope.scaling.factor", f"contradicts {ROPE_FACTORS}")
        return _by_parts(read, factors, base, head_dim)
    if kind == "none" or factor in (0.0, 1.0):  # 0: not set
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise read.refuse("rope.scaling.type", "is not supported", "known: none, linear, yarn")
    for name, usual in {"ext_factor": 1.0, "attn_factor": 1.0, "log_multiplier": 0.0}.items():
        read.expect(f"rope.scaling.yarn_{name}", usual)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": read.count("rope.scaling.original_context_length"),
        "beta_fast": read.take("rope.scaling.yarn_beta_fast", float, 32.0),
        "beta_slow": read.take("rope.scaling.yarn_beta_slow", float, 1.0),
    }
