"""Linearised attention: without a softmax, all past keys and values fit into one matrix a head.

::

    softmax attention                          linearised
    z_t = Σ_s softmax_s(q_t·k_s) v_s           z_t = Σ_s (q_t·k_s) v_s = Sᵀ q_t,   S = Σ_s k_s v_sᵀ
    n queries, n keys each: n² products        each token updates S and reads it: n products

How S is updated is the rule's: ``running_sum`` has the formula and its two forms, this file each rule's keys and gates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import UsageError
from pellucid.nn.documents import Documents
from pellucid.nn.mixer import RunningState, merge_heads, split_heads
from pellucid.nn.norms import build_norm
from pellucid.nn.registry import computes
from pellucid.nn.rope import Rotation, rotate
from pellucid.nn.running_sum import Decay, Heads, Written, by_chunks, by_steps
from pellucid.nn.stores import StateCache
from pellucid.nn.wide import wide, wide_dtype
from pellucid.spec import DecayRule, DeltaRule, GatedDecayRule, KernelRule, LinearAttentionSpec, UpdateRule

STEPS_UP_TO = 4  # so many tokens are read sooner one by one than as a chunk (measured on a CPU)


@computes(LinearAttentionSpec)
class LinearAttention(RunningState):
    """o(norm(z) · silu(gate(x))), z = Sᵀ q(x), where S sums up k(x) v(x)ᵀ (Katharopoulos et al. 2020, section 3.3).

    Rules and their papers: ``KernelRule``, ``DecayRule``, ``GatedDecayRule`` and ``DeltaRule`` of ``spec``.
    Points, (batch, heads, time, head_dim) each: ``q`` and ``k`` as S meets them, after feature map and rotation; ``v``;
    ``z``, before the norm; ``gate``, after silu. Of a gated decay: ``decay``, the α of each token. Of the delta rule:
    ``beta`` (batch, heads, time).
    """

    kind: ClassVar[str] = "attn"

    def __init__(self, spec: LinearAttentionSpec, d_model: int):
        super().__init__()
        self.rule, self.n_heads, self.head_dim, self.rotary = spec.rule, spec.n_heads, spec.head_dim, spec.rotary
        width, rule = spec.n_heads * spec.head_dim, spec.rule
        self.q = nn.Linear(d_model, width, bias=spec.bias)
        self.k = nn.Linear(d_model, width, bias=spec.bias)
        self.v = nn.Linear(d_model, width, bias=spec.bias)
        self.o = nn.Linear(width, d_model, bias=spec.out_bias)
        self.out_norm = build_norm(spec.out_norm, spec.head_dim)
        self.gate = nn.Linear(d_model, width, bias=False) if spec.out_gate else None
        self.beta = nn.Linear(d_model, spec.n_heads, bias=False) if isinstance(rule, DeltaRule) else None
        self.decay = None
        if isinstance(rule, GatedDecayRule):
            self.decay = nn.Sequential(nn.Linear(d_model, rule.rank, bias=False), nn.Linear(rule.rank, width))

    def points(self) -> dict[str, str]:
        optional = {"gate": self.gate, "beta": self.beta, "decay": self.decay}
        names = [p for p in ("q", "k", "v", "decay", "beta", "z", "gate") if optional.get(p, self) is not None]
        return {p: "batch heads time" if p == "beta" else "batch heads time head_dim" for p in names}

    def empty_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """S of rows that have read nothing, (batch, heads, head_dim, head_dim), in float32 or wider.

        The kernel rule's S has one more column: Σ φ(k), for what it divides by.
        """
        width = self.head_dim + self.rule.normalises
        shape = batch, self.n_heads, self.head_dim, width
        return (torch.zeros(shape, dtype=wide_dtype(like.dtype), device=like.device),)

    def forward(
        self, x: Float[Tensor, "batch time d_model"], view: Documents, past: StateCache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """``view``: which tokens share a state. ``past``: the state that each row goes on from; it becomes the newest.

        Raises UsageError for ``past`` where everyone sees everyone: such a state is never complete.
        """
        if past is not None and self.rule.ahead is None:
            raise UsageError("tokens that see both sides have no state to go on from", "use KernelRule(causal=True)")
        q, k, v = (split_heads(project(x), self.head_dim) for project in (self.q, self.k, self.v))
        dtype = v.dtype
        q, k = _features(self.rule, wide(q), wide(k), view.rotation)  # sums are long
        q, k, v = self.tap("q", q), self.tap("k", k), self.tap("v", wide(v))
        if view.valid is not None:
            k = k.masked_fill(~view.valid[:, None, :, None], 0.0)
        z = self.tap("z", self._mix(x, q, k, v, view, past).to(dtype))
        z = self.out_norm(z)
        if self.gate is not None:
            z = z * self.tap("gate", F.silu(split_heads(self.gate(x), self.head_dim)))
        out = self.o(merge_heads(z))
        return out if view.valid is None else out.masked_fill(~view.valid[..., None], 0.0)

    def _mix(self, x: Tensor, q: Heads, k: Heads, v: Heads, view: Documents, past: StateCache | None) -> Heads:
        """z of each token, from the rule's gates and the running sum."""
        begins, decay = _begins(view), self._decay(x, q)
        beta = None if self.beta is None else self.tap("beta", self.beta(x).transpose(1, 2).to(q.dtype).sigmoid())
        if self.rule.normalises:
            v = F.pad(v, (0, 1), value=1.0)
        with torch.autocast(x.device.type, enabled=False):  # it would round what is summed
            if self.rule.ahead is None:
                z = _both_sides(q, k, v, begins)
                return _normalised(z) if self.rule.normalises else z
            state = (self.empty_state(len(q), q) if past is None else past.tensors)[0]
            form = by_steps if q.shape[2] <= STEPS_UP_TO else by_chunks
            z, state = form(q, k, v, _at_borders(decay, view.valid, begins, q.dtype), beta, state)
        if past is not None:
            past.tensors = (state,)
        return _normalised(z) if self.rule.normalises else z

    def _decay(self, x: Tensor, like: Tensor) -> Decay | None:
        """α of each token, as if there were neither padding nor documents."""
        if isinstance(self.rule, DecayRule):
            head = torch.arange(self.n_heads, dtype=like.dtype, device=like.device)
            return (1 - 2 ** (-5 - head))[None, :, None, None]
        if self.decay is None or not isinstance(self.rule, GatedDecayRule):
            return None
        open_ = split_heads(self.decay(x), self.head_dim).to(like.dtype)
        return self.tap("decay", (F.logsigmoid(open_) / self.rule.temperature).exp())


def _features(rule: UpdateRule, q: Heads, k: Heads, rotation: Rotation | None) -> tuple[Heads, Heads]:
    """What the rule makes of q and k before they meet S."""
    if isinstance(rule, KernelRule):
        return _positive(q), _positive(k)
    if isinstance(rule, DeltaRule):
        q, k = F.silu(q), F.silu(k)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    if isinstance(rule, DeltaRule):  # last, as some rotations also stretch
        q, k = F.normalize(q, dim=-1, eps=1e-6), F.normalize(k, dim=-1, eps=1e-6)
    return q, k


def _positive(x: Tensor) -> Tensor:
    """elu(x) + 1, which is exp(x) below 0: adding 1 would round small features away."""
    return x.clamp(max=0).exp() + x.relu()


def _normalised(z: Written) -> Heads:
    """Divide by the last column, the sum of weights; what has seen nothing stays zero."""
    weights = z[..., -1:]
    return z[..., :-1] / weights.masked_fill(weights == 0, 1.0)


def _begins(view: Documents) -> Bool[Tensor, "batch time"] | None:
    """True where a document begins, except the one that goes on from the state handed in."""
    return None if view.doc is None else view.doc.diff(prepend=torch.zeros_like(view.doc[:, :1])) != 0


def _at_borders(
    decay: Decay | None,
    valid: Bool[Tensor, "batch time"] | None,
    begins: Bool[Tensor, "batch time"] | None,
    dtype: torch.dtype,
) -> Decay | None:
    """α with 1 at padding, and 0 where a document begins."""
    if decay is not None and valid is not None:
        decay = torch.where(valid[:, None, :, None], decay, 1.0)
    if begins is None:
        return decay
    stays = (~begins)[:, None, :, None].to(dtype)
    return stays if decay is None else decay * stays


def _both_sides(q: Heads, k: Heads, v: Written, begins: Bool[Tensor, "batch time"] | None) -> Written:
    """z where each token of a document sees all of it."""
    if begins is None:
        return q @ (k.mT @ v)
    empty = v.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    ends = torch.cat((begins[:, 1:], begins[:, :1]), 1)  # the last token's has no effect: nothing is read after it
    before = by_chunks(q, k, v, _at_borders(None, None, begins, q.dtype), None, empty)[0]
    back = _at_borders(None, None, ends.flip(1), q.dtype)
    after = by_chunks(q.flip(2), k.flip(2), v.flip(2), back, None, empty)[0].flip(2)
    return before + after - (q * k).sum(-1, keepdim=True) * v  # both have read the token itself
