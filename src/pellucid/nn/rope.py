"""Rotary positions (Su et al. 2021): q and k turn by an angle proportional to position, so q·k depends on the distance.

Half layout, as published checkpoints have it: dimension i turns with dimension i + dims/2.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.nn.positions import distinct_rows
from pellucid.spec import ByPartsScaling, LinearScaling, NTKScaling, RotarySpec, YaRNScaling

Rotation = tuple[Tensor, Tensor]  # cos and sin, each (rows, 1, time, dims / 2)


def frequencies(spec: RotarySpec, head_dim: int, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Angle per position of each turned pair, (dims / 2,) in radians, and the factor on cos and sin (YaRN)."""
    dims, scaling, base = spec.dims(head_dim), spec.scaling, spec.base
    if isinstance(scaling, NTKScaling):
        base *= scaling.factor ** (dims / (dims - 2)) if dims > 2 else scaling.factor
    rate = 1.0 / base ** (torch.arange(0, dims, 2, device=device).float() / dims)
    if isinstance(scaling, LinearScaling):
        return rate / scaling.factor, 1.0
    if isinstance(scaling, ByPartsScaling):
        turns = scaling.original_context * rate / (2 * math.pi)  # full turns within the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return keep * rate + (1 - keep) * rate / scaling.factor, 1.0
    if isinstance(scaling, YaRNScaling):

        def pair_with(turns: float) -> float:  # within the original context; the ramp is that of the authors' code
            return dims * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        ramp = (torch.arange(dims // 2, device=device).float() - low) / max(high - low, 1e-3)
        keep = 1 - ramp.clamp(0, 1)
        return keep * rate + (1 - keep) * rate / scaling.factor, scaling.sharpening
    return rate, 1.0


def rotation(spec: RotarySpec, head_dim: int, tokens: Tokens) -> Rotation:
    """cos and sin of every token's angles, made once a forward and shared by the blocks that turn alike."""
    pos = distinct_rows(tokens)
    rate, factor = frequencies(spec, head_dim, pos.device)
    angle = pos[:, None, :, None].float() * rate  # (rows, 1, time, dims / 2)
    return angle.cos() * factor, angle.sin() * factor


def rotate(x: Float[Tensor, "batch heads time head_dim"], by: Rotation) -> Float[Tensor, "batch heads time head_dim"]:
    """Turn each pair (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin); dimensions beyond the turned ones pass through."""
    cos, sin = by[0].to(x.dtype), by[1].to(x.dtype)
    half = cos.shape[-1]
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1)
