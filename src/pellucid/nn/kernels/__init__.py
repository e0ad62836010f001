"""attend(): softmax(q·k · scale + bias, masked) · v, by the kernel that can express it; the choice is explained.

Every kernel is a function with the same arguments, exact against ``reference``. One that cannot express a case is not
chosen; nothing is approximated and nothing silently dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.nn.kernels.blocked import blocked
from pellucid.nn.kernels.flex import fits, flex
from pellucid.nn.kernels.reference import Listen, reference
from pellucid.nn.kernels.sdpa import sdpa
from pellucid.nn.layout import Layout
from pellucid.nn.masks import Visible, lower
from pellucid.spec import AttentionSpec

__all__ = ["Choice", "attend", "blocked", "choose", "flex", "kernel_for", "reference", "sdpa"]


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
    """Which kernel runs, and ``why``; ``str()`` says both.

    ``layout`` is there where blocks decided. Its numbers are formatted only when ``why`` is read, because in a compiled
    block each number that is read adds a guard, and so perhaps a compilation.
    """

    kernel: Kernel
    reason: str
    layout: Layout | None = None

    @property
    def name(self) -> str:
        return getattr(self.kernel, "__name__", type(self.kernel).__name__)

    @property
    def why(self) -> str:
        """The reason, with the numbers of a layout. They are formatted only here, since reading them adds guards."""
        if self.layout is None:
            return self.reason
        live, total, size = self.layout.live, self.layout.total, f"{self.layout.block} × {self.layout.block}"
        return f"{self.reason}: {live:,} of {total:,} blocks of {size} tokens hold a visible pair ({live / total:.1%})"

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def choose(
    q: Tensor, visible: Visible, *, biased: bool = False, soft_cap: float | None = None, listening: bool = False
) -> Choice:
    """The kernel for a call, from what is asked and what the mask is; no value of a tensor is read."""
    if listening:
        return Choice(reference, "someone listens to scores or pattern, which no other kernel ever holds")
    if visible.layout is not None and not biased:
        if visible.block_mask is not None and fits(q):
            return Choice(flex, "FlexAttention writes a kernel for this mask and its blocks", visible.layout)
        return Choice(blocked, "only blocks that the mask allows are computed", visible.layout)
    if soft_cap is not None:
        return Choice(reference, "a soft cap bends the scores between product and softmax; the fused kernel cannot")
    if biased:
        return Choice(sdpa, "fused; a bias is added to the scores, and carries the mask")
    if visible.proof is not None:
        known = (
            "nothing is hidden, so there is no mask" if visible.proof == "full" else "the mask is proved to be causal"
        )
        return Choice(sdpa, f"fused; {known}")
    return Choice(sdpa, "fused, with the mask as a tensor: rows are short, or too few blocks of the mask are empty")


def kernel_for(
    attention: AttentionSpec,
    time: int,
    *,
    biased: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Choice:
    """The kernel for one row of ``time`` tokens that attend to each other by this spec, and why.

    ``biased``: whether the stack adds a term to the scores. Makes no tensor as long as the row.
    """
    tokens = Tokens.plain(1, time, device=device)
    q = torch.empty((), dtype=dtype, device=device).expand(1, attention.n_heads, time, attention.head_dim)
    visible = lower(attention.mask, tokens, tokens, sparse=not biased)
    return choose(q, visible, biased=biased, soft_cap=attention.soft_cap)


@overload
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    *,
    bias: Tensor | None = None,
    scale: float,
    soft_cap: float | None = None,
    listen: Listen | None = None,
    explain: Literal[False] = False,
) -> Tensor: ...
@overload
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    *,
    bias: Tensor | None = None,
    scale: float,
    soft_cap: float | None = None,
    listen: Listen | None = None,
    explain: Literal[True],
) -> tuple[Tensor, Choice]: ...
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
    explain: bool = False,
) -> Float[Tensor, "batch heads query head_dim"] | tuple[Float[Tensor, "batch heads query head_dim"], Choice]:
    """z = softmax(soft_cap(q·kᵀ · scale) + bias, over visible keys) · v (Vaswani et al. 2017, equation 1).

    A query that sees nothing gives zeros. ``listen``, when given, is called with ("scores", x) and ("pattern", x), both
    (batch, heads, query, key), and may replace them. With ``explain``, (z, Choice): ``print(choice)`` says which kernel
    ran and why.
    """
    choice = choose(q, visible, biased=bias is not None, soft_cap=soft_cap, listening=listen is not None)
    heard: dict[str, Any] = {} if listen is None else {"listen": listen}  # the kernel chosen for a listener takes it
    z = choice.kernel(q, k, v, visible, bias=bias, scale=scale, soft_cap=soft_cap, **heard)
    return (z, choice) if explain else z
