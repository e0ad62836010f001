"""Linearised attention: a running sum of k vᵀ in place of all past keys, and the rules by which it is updated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pellucid.predicates import Ahead
from pellucid.spec.costs import Cost
from pellucid.spec.mixers import MixerSpec
from pellucid.spec.parts import BiasSpec, NormSpec, RotarySpec, norm_parameters, require, require_pairs
from pellucid.spec.words import Part, norm_name, projection_biases, rotary_words
from pellucid.values import Value


@dataclass(frozen=True)
class UpdateRule(Value, abstract=True):
    """How the state S is updated by a token, and what the rule needs beside q, k and v.

    normalises: z is divided by a sum of weights, for which S has one more column. touches: how often a token's products
    go over all of S (to write it and to read it: 2).
    """

    normalises: ClassVar[bool] = False
    touches: ClassVar[int] = 2

    @property
    def words(self) -> str:
        """The rule in words."""
        raise NotImplementedError

    @property
    def ahead(self) -> Ahead | None:
        """Which later tokens a token sees; None: all of them."""
        return Ahead()

    def gates(self, d_model: int, n_heads: int, width: int) -> tuple[int, int]:
        """Values of the matrices of its gates, and of their biases."""
        return 0, 0

    def matrices(self, d_model: int, n_heads: int, width: int) -> list[str]:
        """The matrices of its gates, in words."""
        return []


@dataclass(frozen=True)
class KernelRule(UpdateRule):
    """S += φ(k) vᵀ, φ = elu + 1, divided by q·Σφ(k): softmax's kernel replaced (Katharopoulos et al. 2020, equation 9).

    causal: else everyone sees everyone, as in an encoder.
    """

    normalises: ClassVar[bool] = True
    causal: bool = True

    @property
    def words(self) -> str:
        return "kernel elu + 1" if self.causal else "kernel elu + 1, sees all"

    @property
    def ahead(self) -> Ahead | None:
        return Ahead() if self.causal else None


@dataclass(frozen=True)
class DecayRule(UpdateRule):
    """S = γ S + k vᵀ, with γ = 1 − 2^(−5−h) fixed for head h (Sun et al. 2023, equations 6 and 8)."""

    @property
    def words(self) -> str:
        return "fixed decay a head"


@dataclass(frozen=True)
class GatedDecayRule(UpdateRule):
    """S = diag(α) S + k vᵀ, where the token decides α for each key channel (Yang et al. 2024a, equation 3).

    α = sigmoid(x W₁ W₂ + b)^(1/temperature), W₁ of ``rank`` columns: a high temperature keeps α near 1.
    """

    rank: int = 16
    temperature: float = 16.0

    def __post_init__(self) -> None:
        require(self.rank >= 1, self, f"rank = {self.rank} must be >= 1")
        require(self.temperature > 0, self, f"temperature = {self.temperature} must be positive")

    @property
    def words(self) -> str:
        return "gated decay"

    def gates(self, d_model: int, n_heads: int, width: int) -> tuple[int, int]:
        return self.rank * (d_model + width), width

    def matrices(self, d_model: int, n_heads: int, width: int) -> list[str]:
        return [f"α {d_model}→{self.rank}→{width}"]


@dataclass(frozen=True)
class DeltaRule(UpdateRule):
    """S = S + β k (v − Sᵀk)ᵀ: what k stored is replaced, not added to (Schlag et al. 2021, Yang et al. 2024b).

    q and k have length 1; β = sigmoid(x w), one a head.
    """

    touches: ClassVar[int] = 3  # it also reads what it replaces

    @property
    def words(self) -> str:
        return "delta rule"

    def gates(self, d_model: int, n_heads: int, width: int) -> tuple[int, int]:
        return d_model * n_heads, 0

    def matrices(self, d_model: int, n_heads: int, width: int) -> list[str]:
        return [f"β {d_model}→{n_heads}"]


@dataclass(frozen=True)
class LinearAttentionSpec(MixerSpec):
    """Linearised attention: z = Sᵀq, with a state S of head_dim × head_dim a head that ``rule`` updates token by token.

    out_norm: on each head's z. out_gate: z · silu(x W) before the output projection. bias: on q, k, v.
    """

    n_heads: int
    head_dim: int
    rule: UpdateRule = KernelRule()
    rotary: RotarySpec | None = None
    out_norm: NormSpec | None = None
    out_gate: bool = False
    bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        sizes = f"n_heads = {self.n_heads}, head_dim = {self.head_dim}: both must be >= 1"
        require(min(self.n_heads, self.head_dim) >= 1, self, sizes)
        require_pairs(self, self.rotary, self.head_dim)
        ok = self.rotary is None or not isinstance(self.rule, KernelRule)
        require(ok, self, "rotary makes features negative, and KernelRule divides by their sum", "use another rule")

    @property
    def name(self) -> str:
        return "linear attention"

    @property
    def ahead(self) -> Ahead | None:
        return self.rule.ahead

    def cost(self, d_model: int) -> Cost:
        width = self.n_heads * self.head_dim
        gates, gate_biases = self.rule.gates(d_model, self.n_heads, width)
        columns = self.head_dim + self.rule.normalises  # one more for what is divided by
        return Cost(
            matrices=4 * d_model * width + (d_model * width if self.out_gate else 0) + gates,
            others=(3 * width if self.bias else 0) + (d_model if self.out_bias else 0) + gate_biases,
            norms=norm_parameters(self.out_norm, self.head_dim),
            state_flops=2 * self.rule.touches * self.n_heads * self.head_dim * columns,
            inner=(6 if self.out_gate else 4) * width,
        )

    def kept_bytes(self, d_model: int, time: int, source_time: int, bytes_per_value: int) -> int:
        columns = self.head_dim + self.rule.normalises
        return self.n_heads * self.head_dim * columns * max(4, bytes_per_value)  # float32 or wider

    def part(self, d_model: int, bias: BiasSpec | None = None) -> Part:
        width = self.n_heads * self.head_dim
        details = [self.rule.words, f"state {self.n_heads} × {self.head_dim} × {self.head_dim}"]
        details += rotary_words(self.rotary)
        details += [f"{norm_name(self.out_norm)} a head"] if self.out_norm else []
        details += ["output gate"] if self.out_gate else []
        details += projection_biases(self.bias, self.out_bias)
        gates = [*self.rule.matrices(d_model, self.n_heads, width), *[f"gate {d_model}→{width}"] * self.out_gate]
        return Part(
            "linear",
            "linear attention",
            tuple(details),
            (f"q, k, v {d_model}→{width}", *gates, f"o {width}→{d_model}"),
            computed="in chunks, which are products of matrices; one token after another when it writes",
        )
