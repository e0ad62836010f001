"""Linearised attention: no softmax, so that all past keys and values fit into one matrix a head.

::

    softmax attention                       linearised
    z = Σ softmax(q·k_s) v_s                z = Σ (q·k_s) v_s = (Σ v_s k_sᵀ) q = Sᵀ q
    n keys, n values: n² products           one S, updated by each token: n products

What a rule changes is how S is updated: ``running_sum`` has the formula. Here are each rule's keys and gates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import UsageError
from pellucid.nn.cache import StateCache
from pellucid.nn.norms import build_norm
from pellucid.nn.rope import rotate
from pellucid.nn.running_sum import Decay, by_chunks, by_steps
from pellucid.nn.runs import Runs
from pellucid.spec import DecayRule, DeltaRule, GatedDecayRule, KernelRule, LinearAttentionSpec, UpdateRule
from pellucid.taps import Tapped

FEW = 4  # as many tokens are read faster one by one (measured)


class LinearAttention(Tapped):
    """o(norm(Sᵀ q(x)) · silu(gate(x))), with S a running sum of k(x) v(x)ᵀ (Katharopoulos et al. 2020, section 3.2).

    The rules, and where they come from: ``spec.KernelRule``, ``DecayRule``, ``GatedDecayRule``, ``DeltaRule``.
    Points, all (batch, heads, time, head_dim): ``q`` and ``k``, after feature map, rotation and normalisation; ``v``;
    ``z`` = Sᵀq, before norm and gate; ``gate``, after silu. Of some rules: ``decay``, the data-dependent α, (batch,
    heads, time, head_dim); ``beta`` (batch, heads, time).
    """

    points: ClassVar[tuple[str, ...]] = ("q", "k", "v", "decay", "beta", "z", "gate")

    def __init__(self, spec: LinearAttentionSpec, d_model: int):
        super().__init__()
        self.rule, self.n_heads, self.head_dim = spec.rule, spec.n_heads, spec.head_dim
        width = spec.n_heads * spec.head_dim
        self.q = nn.Linear(d_model, width, bias=spec.bias)
        self.k = nn.Linear(d_model, width, bias=spec.bias)
        self.v = nn.Linear(d_model, width, bias=spec.bias)
        self.o = nn.Linear(width, d_model, bias=spec.out_bias)
        self.gate = nn.Linear(d_model, width, bias=False) if spec.out_gate else None
        self.out_norm = build_norm(spec.out_norm, spec.head_dim)
        absent = {"gate"} if self.gate is None else set[str]()
        if isinstance(spec.rule, GatedDecayRule):
            self.decay = nn.Sequential(nn.Linear(d_model, spec.rule.rank, bias=False), nn.Linear(spec.rule.rank, width))
        else:
            absent.add("decay")
        if isinstance(spec.rule, DeltaRule):
            self.beta = nn.Linear(d_model, spec.n_heads, bias=False)
        else:
            absent.add("beta")
        self.points = tuple(point for point in LinearAttention.points if point not in absent)  # type: ignore[misc]

    def empty_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """S of a row that has read nothing, (batch, heads, head_dim, head_dim), in float32 or wider.

        The kernel rule's has one more column: Σ φ(k), what it divides by.
        """
        width = self.head_dim + isinstance(self.rule, KernelRule)
        wide = torch.promote_types(like.dtype, torch.float32)
        return (torch.zeros(batch, self.n_heads, self.head_dim, width, dtype=wide, device=like.device),)

    def heads(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch heads time head_dim"]:
        """Cut the last axis into heads, in float32 or wider: long sums follow."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2).to(wide)  # (b, t, h·d) -> (b, h, t, d)

    def forward(
        self, x: Float[Tensor, "batch time d_model"], view: Runs, past: StateCache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """``view``: which tokens share a state. ``past``: the state that the first document of each row goes on from,
        replaced by the newest. Raises UsageError for ``past`` where everyone sees everyone."""
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        alpha = None if not isinstance(self.rule, GatedDecayRule) else self.heads(self.decay(x))
        beta = None if not isinstance(self.rule, DeltaRule) else self.beta(x).to(q.dtype).transpose(1, 2).sigmoid()
        q, k = _features(self.rule, q, k, view)
        q, k, v = self.tap("q", q), self.tap("k", k), self.tap("v", v)
        decay = 
        with torch.autocast(x.device.type, enabled=False):  # which would round what is summed
            z = self._mix(q, k, v, view, past)
