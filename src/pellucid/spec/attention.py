"""Multi-head attention, to each other or to an encoder's states."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pellucid.predicates import Ahead, Causal, Full, Mask
from pellucid.spec.costs import Cost
from pellucid.spec.mixers import CrossSpec, MixerSpec
from pellucid.spec.parts import BiasSpec, NormSpec, RotarySpec, norm_parameters, require, require_pairs
from pellucid.spec.words import Part, bias_words, describe, projection_biases, rotary_words, times

CAUSAL = Causal()


@dataclass(frozen=True)
class AttentionSpec(MixerSpec, CrossSpec):
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
        require_pairs(self, self.rotary, self.head_dim)
        require(self.soft_cap is None or self.soft_cap > 0, self, f"soft_cap = {self.soft_cap} must be positive")

    @property
    def name(self) -> str:
        return "attention"

    @property
    def visible(self) -> Mask:
        return self.mask

    @property
    def ahead(self) -> Ahead | None:
        return self.mask.ahead()

    @property
    def asks_part(self) -> bool:
        return self.mask.asks_part

    @property
    def score_heads(self) -> int:
        return self.n_heads

    def cost(self, d_model: int) -> Cost:
        width, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return Cost(
            matrices=2 * d_model * (width + kv),  # q and o; k and v
            others=(width + 2 * kv if self.bias else 0) + (d_model if self.out_bias else 0),
            norms=2 * norm_parameters(self.qk_norm, self.head_dim),
            pair_flops=4 * width,  # q·k, and pattern · v
            inner=2 * (width + kv),
        )

    def kept_bytes(self, d_model: int, time: int, source_time: int, bytes_per_value: int) -> int:
        reach = self.mask.reach()
        kept = time if reach is None or reach >= time else reach + 1  # a ring has one more slot, for padding
        return 2 * kept * self.n_kv_heads * self.head_dim * bytes_per_value

    def part(self, d_model: int, bias: BiasSpec | None = None) -> Part:
        return self._part("attention", d_model, bias)

    def _part(self, title: str, d: int, bias: BiasSpec | None, *, across: bool = False) -> Part:
        width, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        details = [f"{self.n_heads} head{'s' * (self.n_heads > 1)} of {self.head_dim}"]
        if self.n_kv_heads != self.n_heads:
            details.append(f"{self.n_kv_heads} for keys and values")
        details += [describe(self.mask), *rotary_words(self.rotary), *bias_words(bias)]
        details += ["q and k normalised"] if self.qk_norm else []
        if self.scale is not None and abs(self.scale - self.head_dim**-0.5) > 1e-12:
            details.append("scores not scaled" if self.scale == 1 else f"scores × {times(self.scale)}")
        details += [f"scores capped at {self.soft_cap:g}"] if self.soft_cap else []
        details += projection_biases(self.bias, self.out_bias)
        matrices = [f"q {d}→{width}", f"k, v {d}→{kv}"] if kv != width else [f"q, k, v {d}→{width}"]
        return Part("attention", title, tuple(details), (*matrices, f"o {width}→{d}"), self.mask, across)

    # --- as a sublayer that attends to an encoder -----------------------------------------------------------------

    def problem_across(self) -> tuple[str, str] | None:
        if self.rotary is not None:
            problem = "cross-attention has no rotary positions: its two sides count their own"
            return problem, "cross=replace(cross, rotary=None)"
        if not isinstance(self.mask, Full):
            problem = f"cross has {self.mask}, but an encoder's positions are not the decoder's"
            return problem, "cross=replace(cross, mask=Full())"
        return None

    def cost_across(self, d_model: int) -> Cost:
        return replace(self.cost(d_model), memory_matrices=2 * d_model * self.n_kv_heads * self.head_dim)

    def kept_bytes_across(self, d_model: int, source_time: int, bytes_per_value: int) -> int:
        return 2 * source_time * self.n_kv_heads * self.head_dim * bytes_per_value

    def part_across(self, d_model: int) -> Part:
        return self._part("cross-attention", d_model, None, across=True)
