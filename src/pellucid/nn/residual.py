"""The residual stream: one formula for every place a norm can stand.

::

    pre-norm             post-norm            sandwich             reordered
    x ─┬─ norm ─ f ─┐    x ─┬─ f ─┐           x ─┬─ norm ─ f ─ norm ─┐    x ─┬─ f ─ norm ─┐
       └────────── + ──     └─── + ─ norm ──     └───────────────── + ──     └────────── + ──
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nn.norms import build_norm
from pellucid.spec import NormSpec, Placement


class Sublayer(nn.Module):
    """out(x + post(f(pre(x)))), where each of pre, post and out is a norm or nothing.

    ``branch`` is what a sublayer adds, ``join`` the addition; a parallel block joins two branches at once.
    """

    def __init__(self, norm: NormSpec, placement: Placement, d_model: int):
        super().__init__()
        self.pre = build_norm(norm if placement.pre else None, d_model)
        self.post = build_norm(norm if placement.post else None, d_model)
        self.out = build_norm(norm if placement.out else None, d_model)
        self.dropout = 0.0  # on the branch (Vaswani et al. 2017, section 5.4); a setting of training, not of the model

    def branch(
        self, x: Float[Tensor, "batch time d_model"], f: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch time d_model"]:
        y = self.post(f(self.pre(x)))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def join(
        self, x: Float[Tensor, "batch time d_model"], branch: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        return self.out(x + branch)
