"""attend(): softmax(q·k · scale + bias, masked) · v, by the kernel that can express it; the choice is explained.

Every kernel is a function with the same arguments, exact against ``reference``. One that cannot express a case is not
chosen; nothing is approximated and nothing silently dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pellucid.nn.kernels.blocked import blocked
from pellucid.nn.kernels.reference import Listen, reference
from pellucid.nn.kernels.sdpa import sdpa
from pellucid.nn.masks import Visible

__all__ = ["Choice", "attend", "blocked", "choose", "reference", "sdpa"]


@runtime_checkable
class Kernel(Protocol):
    """The arguments that all kernels share; see ``attend``."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Visible,
        *,
        bias: Tensor | None,
        scale: float,
        soft_cap: float | None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Choice:
    """Which kernel runs, and why."""

    kernel: Kernel
    why: str


def choose(visible: Visible, *, biased: bool, soft_cap: float | None, listening: bool) -> Choice:
    """The kernel for a call: the fused one, unless the scores themselves are needed."""
    if listening:
        return Choice(reference, "someone listens to scores or pattern, which a fused kernel never holds")
    if visible.layout is not None and not biased:
        return Choice(blocked, "")
    if soft_cap is not None:
        return Choice(reference, "a soft cap bends the scores between product and softmax; the fused kernel cannot")
    return Choice(sdpa, "fused scaled_dot_product_attention expresses this mask and bias exactly")


def attend(
    q: Float[Tensor, "batch heads query head_dim"],
    k: Float[Tensor, "batch kv_heads key head_dim"],
    v: Float[Tensor, "batch kv_heads key head_dim"],
    visible: Visible,
    *,
    bias: Float[Tensor, "rows heads query key"] | None = None,
    scale: float,
    soft_cap: float | None = None,
    listen: Listen | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    """z = softmax(soft_cap(q·kᵀ · scale) + bias, over visible keys) · v (Vaswani et al. 2017, equation 1).

    A query that sees nothing gives zeros. ``listen``, when given, is called with ("scores", x) and ("pattern", x), both
    (batch, heads, query, key), and may replace them.
    """
    if listen is not None:
        return reference(q, k, v, visible, bias=bias, scale=scale, soft_cap=soft_cap, listen=listen)
    kernel = choose(visible, biased=bias is not None, soft_cap=soft_cap, listening=False).kernel
    return kernel(q, k, v, visible, bias=bias, scale=scale, soft_cap=soft_cap)
