"""Feed-forward layers: plain and gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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
    """What a block does to each token by itself. ``nn.registry`` finds the module that computes it."""

    @property
    def name(self) -> str:
        """What it is called, in a word or two."""
        return "feed-forward"

    def cost(self, d_model: int) -> Cost:
        """Its parameters, work and activations on a stream of this width."""
        raise NotImplementedError

    def part(self, d_model: int) -> Part:
        """The layer in words, for tables and drawings; ``d_model`` is for the sizes of its matrices."""
        raise NotImplementedError


@dataclass(frozen=True)
class FFNSpec(FeedForwardSpec):
    """down(activation(up(x))), Vaswani et al. 2017, equation 2."""

    gated: ClassVar[bool] = False
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

    gated: ClassVar[bool] = True
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
