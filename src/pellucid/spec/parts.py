"""What layers are made of: norms and positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from pellucid.errors import SpecError
from pellucid.values import Value, later


def require(ok: bool, spec: Value, problem: str, remedy: str = "") -> None:
    """Raise SpecError naming the spec's type, unless ``ok``."""
    if not ok:
        raise SpecError(f"{type(spec).__name__}: {problem}", remedy)


# --- normalisation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerNormSpec(Value):
    """Ba et al. 2016: subtract the mean, divide by the standard deviation, then scale (and shift, with ``bias``)."""

    name: ClassVar[str] = "LayerNorm"
    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.eps >= 0, self, f"eps = {self.eps} must not be negative")

    def parameters(self, width: int) -> int:
        """Trained values over vectors of this width."""
        return 2 * width if self.bias else width


@dataclass(frozen=True)
class RMSNormSpec(Value):
    """Zhang & Sennrich 2019: divide by the root mean square, multiply by ``offset + weight``."""

    name: ClassVar[str] = "RMSNorm"
    eps: float = 1e-6
    offset: float = 0.0

    def __post_init__(self) -> None:
        require(self.eps >= 0, self, f"eps = {self.eps} must not be negative")

    def parameters(self, width: int) -> int:
        """Trained values over vectors of this width."""
        return width


NormSpec: TypeAlias = LayerNormSpec | RMSNormSpec


def norm_parameters(spec: NormSpec | None, width: int) -> int:
    """Trained values of a norm over vectors of this width; 0 for None."""
    return 0 if spec is None else spec.parameters(width)


# --- positions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SinusoidalSpec(Value):
    """Vaswani et al. 2017, section 3.5: fixed sines and cosines added to the embedding.

    layout: each sine beside the cosine of its angle, as in the paper, or all sines and then all cosines, as in the
    authors' code.
    """

    words: ClassVar[str] = "+ sines of positions"
    layout: Literal["pairs", "halves"] = "pairs"

    def rows(self, context: int) -> int:
        """Trained vectors: none."""
        return 0


@dataclass(frozen=True)
class LearnedSpec(Value):
    """A learned vector for each position, added to the embedding; the table's first ``offset`` rows are never used."""

    words: ClassVar[str] = "+ learned positions"
    offset: int = 0

    def __post_init__(self) -> None:
        require(self.offset >= 0, self, f"offset = {self.offset} must be >= 0")

    def rows(self, context: int) -> int:
        """Trained vectors."""
        return context + self.offset


@dataclass(frozen=True)
class LinearScaling(Value):
    """Chen et al. 2023: positions divided by ``factor``."""

    name: ClassVar[str] = "linear"
    factor: float


@dataclass(frozen=True)
class NTKScaling(Value):
    """NTK-aware: the base grows so that the slowest frequency slows by ``factor``, the fastest not at all.

    Peng et al. 2023, section 3.1; found before it by an author known as bloc97.
    """

    name: ClassVar[str] = "NTK"
    factor: float


@dataclass(frozen=True)
class YaRNScaling(Value):
    """Peng et al. 2023: interpolate frequency by frequency, and sharpen attention by ``attention_factor``.

    Pairs that turn more than ``beta_fast`` times within the original context are kept, those that turn less than
    ``beta_slow`` times divided by ``factor``. Both q and k get the sharpening, so scores get its square.
    attention_factor: None for the paper's 0.1 ln(factor) + 1. truncate: whether both limits are rounded to whole pairs,
    as in the authors' code.
    """

    name: ClassVar[str] = "YaRN"
    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = later(None)
    truncate: bool = later(True)

    @property
    def sharpening(self) -> float:
        """The factor on q and on k."""
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def __post_init__(self) -> None:
        require(self.original_context >= 1, self, f"original_context = {self.original_context} must be >= 1")
        said = self.attention_factor
        require(said is None or said > 0, self, f"attention_factor = {said} must be above 0")
        fast, slow = self.beta_fast, self.beta_slow
        require(0 < slow < fast, self, f"beta_slow = {slow}, beta_fast = {fast}", "0 < beta_slow < beta_fast")


@dataclass(frozen=True)
class ByPartsScaling(Value):
    """Long wavelengths divided by ``factor``, short ones kept, a blend between that is linear in turns.

    NTK-by-parts (Peng et al. 2023, section 3.2), as in the code of Llama 3.1, whose names the fields have.
    """

    name: ClassVar[str] = "by parts"
    factor: float
    original_context: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        require(self.original_context >= 1, self, f"original_context = {self.original_context} must be >= 1")
        low, high = self.low_freq_factor, self.high_freq_factor
        require(low < high, self, f"low_freq_factor = {low} must be below high_freq_factor = {high}")


RotaryScaling: TypeAlias = LinearScaling | NTKScaling | YaRNScaling | ByPartsScaling


@dataclass(frozen=True)
class RotarySpec(Value):
    """Su et al. 2021: rotate ``fraction`` of each head of q and k by angles proportional to position (half layout)."""

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: RotaryScaling | None = None

    def __post_init__(self) -> None:
        require(self.base > 1, self, f"base = {self.base} must be above 1")
        factor = 1.0 if self.scaling is None else self.scaling.factor
        require(factor >= 1, self, f"factor = {factor} must be at least 1: a context grows")

    def dims(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated."""
        return int(head_dim * self.fraction)


def require_pairs(spec: Value, rotary: RotarySpec | None, head_dim: int) -> None:
    """Raise SpecError where ``rotary`` would not turn whole pairs of a head's dimensions."""
    if rotary is not None:
        dims = rotary.dims(head_dim)
        ok = 2 <= dims <= head_dim and dims % 2 == 0
        require(ok, spec, f"rotary turns pairs of dimensions, not {dims} of {head_dim}", "choose an even head_dim")


@dataclass(frozen=True)
class ALiBiSpec(Value):
    """Press et al. 2021: scores fall linearly with distance, at a fixed slope a head."""

    words: ClassVar[str] = "ALiBi"

    def parameters(self, n_heads: int) -> int:
        """Trained values: none."""
        return 0


@dataclass(frozen=True)
class BucketedBiasSpec(Value):
    """Raffel et al. 2019: a learned score for each head and (logarithmic) bucket of relative distance."""

    n_buckets: int = 32
    max_distance: int = 128
    both_directions: bool = False

    def __post_init__(self) -> None:
        exact = self.n_buckets // (4 if self.both_directions else 2)  # half of a side's buckets hold one distance each
        ok = 1 <= exact < self.max_distance
        require(ok, self, f"n_buckets = {self.n_buckets} do not divide up to max_distance = {self.max_distance}")

    @property
    def words(self) -> str:
        """The score term in a few words."""
        return f"{self.n_buckets} distance buckets"

    def parameters(self, n_heads: int) -> int:
        """Trained values: a score for each bucket and head."""
        return self.n_buckets * n_heads


PositionSpec: TypeAlias = SinusoidalSpec | LearnedSpec
BiasSpec: TypeAlias = ALiBiSpec | BucketedBiasSpec
