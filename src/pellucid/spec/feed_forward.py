"""Feed-forward layers: plain, gated, and many with a router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pellucid.spec.costs import Cost
from pellucid.spec.parts import require
from pellucid.spec.words import Part
from pellucid.values import Value

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu"]

PLAIN: dict[Activation, str] = {
    "relu": "ReLU",
    "relu2": "ReLU²",
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "silu": "SiLU",
}
GATED: dict[Activation, str] = {"relu": "ReGLU", "gelu": "GeGLU", "gelu_tanh": "GeGLU (tanh)", "silu": "SwiGLU"}


@dataclass(frozen=True)
class FeedForwardSpec(Value, abstract=True):
    """What a block does to each token by itself. Its module is found in ``nn.registry``."""

    @property
    def name(self) -> str:
        """In a word or two."""
        return "feed-forward"

    def cost(self, d_model: int) -> Cost:
        """What it has and does on a stream of this width."""
        raise NotImplementedError

    def part(self, d_model: int) -> Part:
        """In words."""
        raise NotImplementedError


@dataclass(frozen=True)
class FFNSpec(FeedForwardSpec):
    """down(activation(up(x))), Vaswani et al. 2017, equation 2."""

    d_ff: int
    activation: Activation = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.d_ff >= 1, self, f"d_ff = {self.d_ff} must be >= 1")

    @property
    def words(self) -> list[str]:
        """Activation and width."""
        return [f"{PLAIN[self.activation]} of {self.d_ff}", *["biases"] * self.bias]

    def matrices(self, d_model: int) -> tuple[str, ...]:
        """Its matrices, in words."""
        return f"up {d_model}→{self.d_ff}", f"down {self.d_ff}→{d_model}"

    def cost(self, d_model: int) -> Cost:
        bias = self.d_ff + d_model if self.bias else 0
        return Cost(2 * d_model * self.d_ff, bias, inner=2 * self.d_ff)

    def part(self, d_model: int) -> Part:
        return Part("ffn", self.name, tuple(self.words), self.matrices(d_model))


@dataclass(frozen=True)
class GatedFFNSpec(FeedForwardSpec):
    """down(activation(gate(x)) · up(x)), Shazeer 2020: SwiGLU with silu, GeGLU with gelu."""

    d_ff: int
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        require(self.d_ff >= 1, self, f"d_ff = {self.d_ff} must be >= 1")

    @property
    def words(self) -> list[str]:
        """Activation and width."""
        name = GATED.get(self.activation, f"gated {PLAIN[self.activation]}")
        return [f"{name} of {self.d_ff}", *["biases"] * self.bias]

    def matrices(self, d_model: int) -> tuple[str, ...]:
        """Its matrices, in words."""
        return f"up, gate {d_model}→{self.d_ff}", f"down {self.d_ff}→{d_model}"

    def cost(self, d_model: int) -> Cost:
        bias = 2 * self.d_ff + d_model if self.bias else 0
        return Cost(3 * d_model * self.d_ff, bias, inner=4 * self.d_ff)

    def part(self, d_model: int) -> Part:
        return Part("ffn", self.name, tuple(self.words), self.matrices(d_model))


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
