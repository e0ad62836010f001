"""Attention to an encoder as it was before 2017: one head, and no projection of what is averaged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pellucid.spec.costs import Cost
from pellucid.spec.mixers import CrossSpec
from pellucid.spec.parts import require
from pellucid.spec.words import Part


@dataclass(frozen=True)
class AlignmentSpec(CrossSpec):
    """Attention of one head over an encoder's states, as it was before 2017: context c = Σ softmax(score(h, s_j)) s_j.

    score: "dot" (h·s), "general" (h·W s), both Luong et al. 2015, or "additive" (vᵀ tanh(W h + U s), Bahdanau et al.
    2015, with ``d_align`` rows). As a block's ``cross`` it adds tanh(W_c [c; h]) (Luong et al., equation 5).
    """

    score: Literal["dot", "general", "additive"] = "general"
    d_align: int = 0

    def __post_init__(self) -> None:
        ok = (self.d_align >= 1) == (self.score == "additive")
        require(
            ok, self, f"d_align = {self.d_align} with {self.score} scores", "additive scores have it, others do not"
        )

    @property
    def words(self) -> str:
        """The scores in words."""
        return f"additive scores of {self.d_align}" if self.score == "additive" else f"{self.score} scores"

    def matrices(self, d_query: int, d_memory: int) -> tuple[str, ...]:
        """The matrices of the scores, in words."""
        if self.score == "additive":
            return f"W {d_query}→{self.d_align}", f"U {d_memory}→{self.d_align}", f"v {self.d_align}→1"
        return (f"W {d_query}→{d_memory}",) if self.score == "general" else ()

    def scores_cost(self, d_query: int, d_memory: int) -> Cost:
        """The cost of the scores and the context; what is done with the context is the caller's cost."""
        if self.score == "additive":
            return Cost(
                self.d_align * (d_query + d_memory),
                others=self.d_align,  # v meets pairs, not tokens
                memory_matrices=d_memory * self.d_align,
                pair_flops=2 * self.d_align + 2 * d_memory,
            )
        own = d_query * d_memory if self.score == "general" else 0
        return Cost(own, memory_matrices=own, pair_flops=2 * d_query + 2 * d_memory)

    def scores_kept_bytes(self, d_query: int, source_time: int, bytes_per_value: int) -> int:
        """Bytes of the memory's projection; dot scores keep none beside the memory itself."""
        return 0 if self.score == "dot" else source_time * (self.d_align or d_query) * bytes_per_value

    def cost_across(self, d_model: int) -> Cost:
        scores = self.scores_cost(d_model, d_model)
        return replace(scores, matrices=scores.matrices + 2 * d_model**2, inner=3 * d_model)  # tanh(W [context; h])

    def kept_bytes_across(self, d_model: int, source_time: int, bytes_per_value: int) -> int:
        return self.scores_kept_bytes(d_model, source_time, bytes_per_value)

    def part_across(self, d_model: int) -> Part:
        return Part(
            "attention",
            "alignment",
            (self.words, "tanh of both"),
            (*self.matrices(d_model, d_model), f"o {2 * d_model}→{d_model}"),
            reads_encoder=True,
            computed="one product over all that was read",
        )
