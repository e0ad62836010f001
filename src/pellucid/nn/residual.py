"""The residual stream: one formula for every place a norm can stand.

::

    pre-norm             post-norm            sandwich             reordered
    x ─┬─ norm ─ f ─┐    x ─┬─ f ─┐           x ─┬─ norm ─ f ─ norm ─┐    x ─┬─ f ─ norm ─┐
       └────────── + ──     └─── + ─ norm ──     └───────────────── + ──     └────────── + ──
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nn.norms import build_norm
from pellucid.spec import NormSpec, Placement, ResidualSpec


class LayerScale(nn.Module):
    """A learned gain a channel, small at first (Touvron et al. 2021)."""

    keeps_initial_weights: ClassVar = True

    def __init__(self, initial: float, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), initial))

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        return x * self.weight


class Sublayer(nn.Module):
    """out(skip · x + branch · gain · post(f(pre(x)))), where each of pre, post and out is a norm or nothing.

    ``branch`` is what a sublayer adds, ``join`` the addition; a parallel block joins two branches at once.
    """

    def __init__(self, norm: NormSpec, placement: Placement, residual: ResidualSpec, d_model: int):
        super().__init__()
        self.pre = build_norm(norm if placement.pre else None, d_model)
        self.post = build_norm(norm if placement.post else None, d_model)
        self.gain = nn.Identity() if residual.layer_scale is None else LayerScale(residual.layer_scale, d_model)
        self.out = build_norm(norm if placement.out else None, d_model)
        self.skip_factor, self.branch_factor = residual.skip, residual.branch
        self.dropout = 0.0  # on the branch (Vaswani et al. 2017, section 5.4); a setting of training, not of the model

    def branch(
        self, x: Float[Tensor, "batch time d_model"], f: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch time d_model"]:
        """What a sublayer adds to the stream x: branch · gain · post(f(pre(x))), with dropout where it is set."""
        y = self.gain(self.post(f(self.pre(x))))
        if self.branch_factor != 1.0:
            y = y * self.branch_factor
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def join(
        self, x: Float[Tensor, "batch time d_model"], branch: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The stream x with a branch added: out(skip · x + branch)."""
        return self.out(self.skip(x) + branch) if self.skip_factor else self.out(branch)

    def skip(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        """What goes past the branch."""
        return x if self.skip_factor == 1.0 else x * self.skip_factor
