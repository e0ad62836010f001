"""What mixes tokens in a block: attention, linearised attention, recurrence. One slot; any of them, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pellucid.predicates import Causal, Mask
from pellucid.spec.parts import NormSpec, RotarySpec, require
from pellucid.values import Value

CAUSAL = Causal()


@dataclass(frozen=True)
class AttentionSpec(Value):
    """Multi-head attention; ``n_kv_heads`` < ``n_heads`` shares keys and values (grouped-query; 1: multi-query).

    scale: factor on q·k, 1/sqrt(head_dim) when None. soft_cap: scores become cap·tanh(scores/cap).
    qk_norm: normalises each head's q and k before rotation. bias: on q, k, v; out_bias: on the output projection.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    mask: Mask = CAUSAL
    rotary: RotarySpec | None = None
    qk_norm: NormSpec | None = None
    bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        n, kv = self.n_heads, self.n_kv_heads
        sizes = f"n_heads = {n}, n_kv_heads = {kv}, head_dim = {self.head_dim}: all must be >= 1"
        require(min(n, kv, self.head_dim) >= 1, self, sizes)
        require(n % kv == 0, self, f"n_heads = {n} is no multiple of n_kv_heads = {kv}", "groups of heads are equal")
        _require_pairs(self, self.rotary, self.head_dim)
        require(self.soft_cap is None or self.soft_cap > 0, self, f"soft_cap = {self.soft_cap} must be positive")


def _require_pairs(spec: Value, rotary: RotarySpec | None, head_dim: int) -> None:
    if rotary is not None:
        dims = rotary.dims(head_dim)
        ok = 2 <= dims <= head_dim and dims % 2 == 0
        require(ok, spec, f"rotary turns pairs of dimensions, not {dims} of {head_dim}", "choose an even head_dim")


# --- linearised attention: a running sum of k vᵀ in place of all past keys -------------------------------------------


@dataclass(frozen=True)
class KernelRule(Value):
    """S += φ(k) vᵀ, φ = elu + 1, divided by q·Σφ(k): softmax's kernel replaced (Katharopoulos et al. 2020, equation 9).

    causal: else everyone sees everyone, as in an encoder.
    """

    causal: bool = True


@dataclass(frozen=True)
class DecayRule(Value):
    """S = γ S + k vᵀ, with γ = 1 − 2^(−5−h) fixed for head h (Sun et al. 2023, equations 6 and 8)."""


@dataclass(frozen=True)
class GatedDecayRule(Value):
    """S = diag(α) S + k vᵀ, where the token decides α for each key channel (Yang et al. 2024a, equation 3).

    α = sigmoid(x W₁ W₂ + b)^(1/temperature), W₁ of ``rank`` columns: a high temperature keeps α near 1.
    """

    rank: int = 16
    temperature: float = 16.0

    def __post_init__(self) -> None:
        require(self.rank >= 1, self, f"rank = {self.rank} must be >= 1")
        require(self.temperature > 0, self, f"temperature = {self.temperature} must be positive")


@dataclass(frozen=True)
class DeltaRule(Value):
    """S = S + β k (v − Sᵀk)ᵀ: what k stored is replaced, not added to (Schlag et al. 2021, Yang et al. 2024b).

    q and k have length 1; β = sigmoid(x w), one a head.
    """


UpdateRule: TypeAlias = KernelRule | DecayRule | GatedDecayRule | DeltaRule


@dataclass(frozen=True)
class LinearAttentionSpec(Value):
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
        _require_pairs(self, self.rotary, self.head_dim)
        ok = self.rotary is None or not isinstance(self.rule, KernelRule)
        require(ok, self, "rotary makes features negative, and KernelRule divides by their sum", "use another rule")


# --- recurrence, and attention as it was added to it -----------------------------------------------------------------

Cell = Literal["lstm", "gru"]


@dataclass(frozen=True)
class RecurrentSpec(Value):
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


@dataclass(frozen=True)
class AlignmentSpec(Value):
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


@dataclass(frozen=True)
class AttentiveRecurrentSpec(Value):
    """A decoder's recurrence that looks before each step: the last state asks, the cell reads [x; c].

    Bahdanau et al. 2015, section 3.1 and appendix A.1.2.
    """

    cell: Cell
    d_hidden: int
    alignment: AlignmentSpec

    def __post_init__(self) -> None:
        require(self.d_hidden >= 1, self, f"d_hidden = {self.d_hidden} must be >= 1")


MixerSpec: TypeAlias = AttentionSpec | LinearAttentionSpec | RecurrentSpec | AttentiveRecurrentSpec
CrossSpec: TypeAlias = AttentionSpec | AlignmentSpec
