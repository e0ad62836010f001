"""Recurrence: a state that is handed from token to token, alone or with attention to an encoder before each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pellucid.predicates import Ahead
from pellucid.spec.alignment import AlignmentSpec
from pellucid.spec.costs import Cost
from pellucid.spec.mixers import MixerSpec
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
