"""Recurrence, and attention as it was added to it: a state that is handed from token to token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pellucid.predicates import Ahead
from pellucid.spec.costs import Cost
from pellucid.spec.mixers import CrossSpec, MixerSpec
from pellucid.spec.parts import BiasSpec, require
from pellucid.spec.words import Part

Cell = Literal["lstm", "gru"]
GATES: dict[Cell, int] = {"lstm": 4, "gru": 3}
STATES: dict[Cell, int] = {"lstm": 2, "gru": 1}  # vectors: h and c; h


@dataclass(frozen=True)
class RecurrentSpec(MixerSpec):
    """An LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) of width ``d_hidden``, in torch's formulation.

    both_directions: a second one reads backwards, and both outputs stand side by side (an encoder's). project: a matrix
    back to d_model; without it the output must have that width already.
    """

    cell: Cell
    d_hidden: int
    both_directions: bool = False
    project: bool = True

    def __post_init__(self) -> None:
        require(self.d_hidden >= 1, self, f"d_hidden = {self.d_hidden} must be >= 1")

    @property
    def d_out(self) -> int:
        """Width before the projection."""
        return self.d_hidden * (2 if self.both_directions else 1)

    @property
    def name(self) -> str:
        return self.cell.upper()

    @property
    def ahead(self) -> Ahead | None:
        return None if self.both_directions else Ahead()

    def problem_in(self, block: str, d_model: int) -> tuple[str, str] | None:
        if self.project or self.d_out == d_model:
            return None
        problem = f"{block} gives {self.d_out} values a token to a stream of {d_model}"
        return problem, "RecurrentSpec(project=True), or fit d_hidden"

    def cost(self, d_model: int) -> Cost:
        gates, ways = GATES[self.cell], 2 if self.both_directions else 1
        return Cost(
            matrices=ways * gates * self.d_hidden * (d_model + self.d_hidden)
            + (self.d_out * d_model if self.project else 0),
            others=ways * 2 * gates * self.d_hidden,
            inner=ways * (gates + 2) * self.d_hidden,
        )

    def kept_bytes(self, d_model: int, time: int, source_time: int, bytes_per_value: int) -> int:
        return STATES[self.cell] * self.d_hidden * bytes_per_value

    def part(self, d_model: int, bias: BiasSpec | None = None) -> Part:
        gates, h = GATES[self.cell], self.d_hidden
        copies = "2 × " if self.both_directions else ""
        return Part(
            "recurrent",
            self.name,
            (f"state of {h}", *["both directions"] * self.both_directions),
            (
                f"{copies}x {d_model}→{gates}·{h}",
                f"{copies}h {h}→{gates}·{h}",
                *[f"o {self.d_out}→{d_model}"] * self.project,
            ),
            computed="torch's own, which cannot compute a token before the one that it follows",
        )


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
        """Of the scores and the context; what is done with the context belongs to whoever asked for it."""
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
        """Of the memory's projection; dot scores keep none beside the memory itself."""
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


@dataclass(frozen=True)
class AttentiveRecurrentSpec(MixerSpec):
    """A decoder's recurrence that looks before each step: the last state asks, the cell reads [x; c].

    Bahdanau et al. 2015, section 3.1 and appendix A.1.2.
    """

    reads_memory: ClassVar[bool] = True

    cell: Cell
    d_hidden: int
    alignment: AlignmentSpec

    def __post_init__(self) -> None:
        require(self.d_hidden >= 1, self, f"d_hidden = {self.d_hidden} must be >= 1")

    @property
    def name(self) -> str:
        return self.cell.upper()

    def problem_in(self, block: str, d_model: int) -> tuple[str, str] | None:
        if self.alignment.score != "dot" or self.d_hidden == d_model:
            return None
        problem = f"{block}: dot scores compare d_hidden = {self.d_hidden} with d_model = {d_model}"
        return problem, "use general or additive scores, or make them equal"

    def cost(self, d_model: int) -> Cost:
        gates, scores = GATES[self.cell], self.alignment.scores_cost(self.d_hidden, d_model)
        cell = gates * self.d_hidden * (2 * d_model + self.d_hidden)  # it reads [x; context], each d_model wide
        return replace(
            scores,
            matrices=cell + scores.matrices + self.d_hidden * d_model,
            others=2 * gates * self.d_hidden + scores.others,
            inner=(gates + 2) * self.d_hidden + d_model,
        )

    def kept_bytes(self, d_model: int, time: int, source_time: int, bytes_per_value: int) -> int:
        state = STATES[self.cell] * self.d_hidden * bytes_per_value
        return state + self.alignment.scores_kept_bytes(self.d_hidden, source_time, bytes_per_value)

    def part(self, d_model: int, bias: BiasSpec | None = None) -> Part:
        gates, h = GATES[self.cell], self.d_hidden
        return Part(
            "recurrent",
            f"attentive {self.name}",
            (f"state of {h}", "looks before each step", self.alignment.words),
            (
                f"[x; c] {2 * d_model}→{gates}·{h}",
                f"h {h}→{gates}·{h}",
                *self.alignment.matrices(h, d_model),
                f"o {h}→{d_model}",
            ),
            reads_encoder=True,
            computed="a loop over tokens: each step needs the one before, and looks back before it",
        )
