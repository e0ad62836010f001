"""x · Wᵀ + b by the codes of W as they lie in memory: each is turned into its float where it is multiplied.

Codes and scales are those of ``nn.formats``; nothing is rounded but products and sums in float32, so results differ
from those of the opened matrix by their order alone. With γ = (d_in / 16 + 32) · 2⁻²⁴::

    |y − x · Wᵀ| ≤ γ · Σ |x| (|d · q| + |m|)        where w = d · q + m

x with up to 16 rows is multiplied by codes as they are read, so a token costs the bytes of the file once. For more
rows, a part of the matrix that fits into a cache is opened, multiplied by torch and dropped.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.nn.native.library import KINDS, library
from pellucid.nn.stored import Quantised, Stored


class Native:
    """The product of ``nn/native``: float32 on a processor, where the kernels are built and no gradient is wanted."""

    name = "native"

    def serves(self, x: Tensor, stored: Stored) -> str | None:
        if self.declines(x, stored) is not None:
            return None
        assert isinstance(stored, Quantised)
        return f"{stored.kind} codes are multiplied as they lie in memory, by {library.ops.instructions()[0]}"

    def declines(self, x: Tensor, stored: Stored) -> str | None:
        """Why this product is not for a call; None where it is."""
        if not isinstance(stored, Quantised) or stored.kind not in KINDS or stored.blocks.ndim != 2:
            return "native kernels have no such format"
        if torch.compiler.is_compiling():
            return "native kernels are not compiled into graphs"
        if x.dtype != torch.float32 or x.device.type != "cpu" or stored.blocks.device.type != "cpu":
            return f"native kernels are for float32 on a processor, not {x.dtype} on {x.device.type}"
        if torch.is_grad_enabled() and x.requires_grad:
            return "native kernels give no gradient"
        return None if library.ready() else f"native kernels are not there: {library.why}"

    def __call__(
        self, x: Float[Tensor, "*axes d_in"], stored: Stored, bias: Float[Tensor, " d_out"] | None = None
    ) -> Float[Tensor, "*axes d_out"]:
        assert isinstance(stored, Quantised)
        return library.ops.linear(x, stored.blocks.contiguous(), bias, stored.kind)


native = Native()
