"""The precision in which scores, softmaxes, norms and long sums are computed, whatever enters: float32 at least."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The narrowest type that holds these and float32: float64 stays as it is, shorter types become float32."""
    found = torch.float32
    for dtype in dtypes:
        found = torch.promote_types(found, dtype)
    return found


def wide(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """x in float32, or in float64 if it is."""
    return x.to(wide_dtype(x.dtype))
