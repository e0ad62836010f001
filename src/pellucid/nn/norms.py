"""Normalisation of the last axis: LayerNorm and RMSNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nn.wide import wide, wide_dtype
from pellucid.spec import LayerNormSpec, NormSpec, RMSNormSpec


class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + eps) · weight (+ bias), over the last axis (Ba et al. 2016, equation 4)."""

    keeps_initial_weights: ClassVar = True  # the identity, under every rule of nn.init

    def __init__(self, spec: LayerNormSpec, width: int):
        super().__init__()
        self.eps = spec.eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if spec.bias else None

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · (offset + weight), over the last axis (Zhang & Sennrich 2019, equation 4)."""

    keeps_initial_weights: ClassVar = True

    def __init__(self, spec: RMSNormSpec, width: int):
        super().__init__()
        self.eps, self.offset = spec.eps, spec.offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - spec.offset))  # the identity gain, whatever the offset

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        gain = self.weight + self.offset if self.offset else self.weight
        return F.rms_norm(wide(x), self.weight.shape, gain.to(wide_dtype(x.dtype)), self.eps).to(x.dtype)


NORMS: dict[type[NormSpec], Callable[..., LayerNorm | RMSNorm]] = {LayerNormSpec: LayerNorm, RMSNormSpec: RMSNorm}


def build_norm(spec: NormSpec | None, width: int) -> LayerNorm | RMSNorm | nn.Identity:
    """The norm that a spec describes; the identity for None."""
    return nn.Identity() if spec is None else NORMS[type(spec)](spec, width)
