"""Mixture of experts: many feed-forward layers, of which a router gives each token a few; and the router's losses."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import UsageError
from pellucid.nn.feed_forward import ACTIVATIONS
from pellucid.nn.grouped import grouped_linear
from pellucid.nn.registry import computes
from pellucid.nn.wide import wide, wide_dtype
from pellucid.spec import MoESpec
from pellucid.taps import Tapped


class ExpertLinear(nn.Module):
    """A linear map for each expert: weight (n_experts, d_out, d_in), bias (n_experts, d_out)."""

    def __init__(self, n_experts: int, d_in: int, d_out: int, bias: bool):
        super().__init__()
        bound = d_in**-0.5  # each as nn.Linear starts
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(n_experts, d_out, d_in), -bound, bound))
        self.bias = nn.Parameter(torch.zeros(n_experts, d_out)) if bias else None

    def forward(
        self, x: Float[Tensor, "pairs d_in"], expert: Int[Tensor, " pairs"], ends: Int[Tensor, " experts"]
    ) -> Float[Tensor, "pairs d_out"]:
        """Each row through its expert's map; rows are sorted by expert, and those of expert e stop before ends[e]."""
        y = grouped_linear(x, self.weight.to(x.dtype), ends)
        return y if self.bias is None else y + F.embedding(expert, self.bias).to(y.dtype)


@computes(MoESpec)
class MixtureOfExperts(Tapped):
    """Σ p_e · expert_e(x) over the top_k experts e of each token, p = softmax(router(x)) (Shazeer et al. 2017, eq. 1).

    With ``renormalise`` the chosen p_e are divided by their sum, the same as a softmax over the chosen logits (Jiang et
    al. 2024, section 2.1); a single choice then weighs 1, and only the losses below teach the router. Grouped: all
    (token, expert) pairs are sorted by expert, and a matrix product is one call for all experts. Dropless: an expert
    takes what comes, be it nothing or everything.

    Points: ``router_logits`` (batch, time, n_experts); ``expert_ids`` (batch, time, top_k), who is chosen, best first;
    ``expert_weights`` (batch, time, top_k), their p_e; ``expert_out`` (batch, time, top_k, d_model), what each gives.
    """

    def __init__(self, spec: MoESpec, d_model: int):
        super().__init__()
        expert, n = spec.expert, spec.n_experts
        self.n_experts, self.top_k, self.renormalise = n, spec.top_k, spec.renormalise
        self.activation = ACTIVATIONS[expert.activation]
        self.router = nn.Linear(d_model, n, bias=False)
        self.up = ExpertLinear(n, d_model, expert.d_ff, expert.bias)
        self.gate = ExpertLinear(n, d_model, expert.d_ff, expert.bias) if expert.gated else None
        self.down = ExpertLinear(n, expert.d_ff, d_model, expert.bias)

    def points(self) -> dict[str, str]:
        choices = dict.fromkeys(("expert_ids", "expert_weights"), "batch time top_k")
        return {"router_logits": "batch time experts", **choices, "expert_out": "batch time top_k d_model"}

    def route(
        self, logits: Float[Tensor, "batch time experts"]
    ) -> tuple[Int[Tensor, "batch time top_k"], Float[Tensor, "batch time top_k"]]:
        """Which experts each token goes to, and with what weights; in float32 at least."""
        p = _probabilities(logits)
        ids = self.tap("expert_ids", p.topk(self.top_k, -1).indices)
        weights = p.gather(-1, ids)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return ids, self.tap("expert_weights", weights)

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        """The sum of what each token's experts give, weighed by the router; padding is computed and ignored."""
        logits = self.router(x)
        x = x.to(logits.dtype)  # under autocast the experts' products are made as the router's was
        ids, weights = self.route(self.tap("router_logits", logits))
        expert, order = ids.flatten().sort(stable=True)
        ends = torch.searchsorted(expert, torch.arange(self.n_experts, device=x.device), right=True, out_int32=True)
        # a copy a choice, then a permutation: its gradient is one too, so nothing is added in an order that may vary
        copies = x[:, :, None].expand(*ids.shape, x.shape[-1]).reshape(-1, x.shape[-1])
        given = self._experts(copies.index_select(0, order), expert, ends)
        out = self.tap("expert_out", given.index_select(0, order.argsort()).view(*ids.shape, x.shape[-1]))
        return (out * weights[..., None]).sum(2).to(x.dtype)

    def _experts(
        self, x: Float[Tensor, "pairs d_model"], expert: Int[Tensor, " pairs"], ends: Int[Tensor, " experts"]
    ) -> Float[Tensor, "pairs d_model"]:
        up = self.up(x, expert, ends)
        act = self.activation(up) if self.gate is None else self.activation(self.gate(x, expert, ends)) * up
        return self.down(act, expert, ends)


def _probabilities(logits: Float[Tensor, "*axes experts"]) -> Float[Tensor, "*axes experts"]:
    return logits.softmax(-1, dtype=wide_dtype(logits.dtype))


def load_balance(
    router_logits: Float[Tensor, "batch time experts"], top_k: int, valid: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, ""]:
    """n_experts · Σ f_e P_e: f_e is the share of all choices that fell on expert e, P_e the mean of its probability.

    Over the tokens that are ``valid`` (all, when None; 0 where there is none). 1 when both are even; with one choice a
    token n_experts when all fall on one expert. The gradient goes through P only. Fedus et al. 2021, equations 4 to 6,
    where top_k = 1. Raises UsageError for a top_k that is not from 1 to n_experts.
    """
    n_experts = router_logits.shape[-1]
    if not 1 <= top_k <= n_experts:
        raise UsageError(f"load_balance: top_k = {top_k} of n_experts = {n_experts}", "1 <= top_k <= n_experts")
    logits, weight = _counted(router_logits, valid)
    p = _probabilities(logits)
    chosen = F.one_hot(p.topk(top_k, -1).indices, n_experts).sum(-2)
    share = (weight * chosen).sum((0, 1)) / top_k
    return n_experts * (share * (weight * p).sum((0, 1))).sum()


def router_z(
    router_logits: Float[Tensor, "batch time experts"], valid: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, ""]:
    """The mean over tokens of (ln Σ exp(logits))², which keeps logits small (Zoph et al. 2022, equation 5).

    Over the tokens that are ``valid``: all, when None; 0 where there is none.
    """
    logits, weight = _counted(router_logits, valid)
    return (weight[..., 0] * logits.logsumexp(-1).square()).sum()


def _counted(
    logits: Float[Tensor, "batch time experts"], valid: Bool[Tensor, "batch time"] | None
) -> tuple[Float[Tensor, "batch time experts"], Float[Tensor, "batch time 1"]]:
    """Logits in float32 at least, 0 for padding (whatever stood there), and weights that make a sum a mean."""
    logits = wide(logits)
    if valid is None:
        valid = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    weight = valid.to(logits.dtype)[..., None]
    return logits.masked_fill(~valid[..., None], 0.0), weight / weight.sum().clamp(min=1.0)
