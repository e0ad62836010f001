"""Mixture of experts: many feed-forward layers, and a router that chooses a few of them for each token."""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.spec.costs import Cost
from pellucid.spec.feed_forward import FeedForwardSpec, FFNSpec, GatedFFNSpec
from pellucid.spec.parts import require
from pellucid.spec.words import Part


@dataclass(frozen=True)
class MoESpec(FeedForwardSpec):
    """``n_experts`` feed-forward layers, of which a router gives each token its ``top_k`` (Shazeer et al. 2017).

    None is ever full: no token is dropped. renormalise: the chosen experts' weights sum to one; of a single one it is
    then always one, so that only the balance and z losses train its router, as in published models of that kind.
    """

    expert: FFNSpec | GatedFFNSpec
    n_experts: int
    top_k: int
    renormalise: bool = True

    def __post_init__(self) -> None:
        ok = 1 <= self.top_k <= self.n_experts
        require(ok, self, f"top_k = {self.top_k} of n_experts = {self.n_experts}", "1 <= top_k <= n_experts")

    @property
    def name(self) -> str:
        return "experts"

    def cost(self, d_model: int) -> Cost:
        """Each token meets ``top_k`` of the experts, and all of the router."""
        each = self.expert.cost(d_model)
        return Cost(
            self.top_k * each.matrices + d_model * self.n_experts,
            others=self.n_experts * each.others,
            idle=(self.n_experts - self.top_k) * each.matrices,
            inner=self.top_k * (each.inner + 2 * d_model) + self.n_experts,
        )

    def part(self, d_model: int) -> Part:
        weighed = [] if self.renormalise else ["weights not renormalised"]
        details = (f"{self.n_experts} experts, {self.top_k} a token", *self.expert.words, *weighed)
        each = (f"{self.n_experts} × {matrix}" for matrix in self.expert.matrices(d_model))
        return Part("ffn", "mixture of experts", details, (f"router {d_model}→{self.n_experts}", *each))
