"""A model, described: a tree of frozen values. No torch, no devices, no run settings; hashable; JSON in and out.

Read from the bottom up to see a whole model: ``DecoderSpec`` has a ``StackSpec`` of ``BlockSpec``s, each with a mixer
and a feed-forward layer. What is irrelevant does not exist: a gated layer is another type than a plain one, not a flag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pellucid.errors import SpecError

# Named again: whoever writes a spec finds its masks here.
from pellucid.predicates import And as And
from pellucid.predicates import Causal as Causal
from pellucid.predicates import Full as Full
from pellucid.predicates import Mask as Mask
from pellucid.predicates import Not as Not
from pellucid.predicates import Or as Or
from pellucid.predicates import Prefix as Prefix
from pellucid.predicates import SameSegment as SameSegment
from pellucid.predicates import Window as Window
from pellucid.values import Value

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu"]
InitRule = Literal["normal", "fan_in", "xavier"]  # the columns of the table in nn.init


def _require(ok: bool, spec: Value, problem: str, remedy: str = "") -> None:
    if not ok:
        raise SpecError(f"{type(spec).__name__}: {problem}", remedy)


# --- normalisation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerNormSpec(Value):
    """Ba et al. 2016: subtract the mean, divide by the standard deviation, then scale (and shift, with ``bias``)."""

    eps: float = 1e-5
    bias: bool = True


@dataclass(frozen=True)
class RMSNormSpec(Value):
    """Zhang & Sennrich 2019: divide by the root mean square, multiply by ``offset + weight``."""

    eps: float = 1e-6
    offset: float = 0.0


NormSpec: TypeAlias = LayerNormSpec | RMSNormSpec

# --- positions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SinusoidalSpec(Value):
    """Vaswani et al. 2017, section 3.5: fixed sines and cosines added to the embedding."""


@dataclass(frozen=True)
class LearnedSpec(Value):
    """A learned vector for each position, added to the embedding."""


@dataclass(frozen=True)
class LinearScaling(Value):
    """Chen et al. 2023: positions divided by ``factor``."""

    factor: float


@dataclass(frozen=True)
class NTKScaling(Value):
    """NTK-aware: the base grows so that the slowest frequency slows by ``factor``, the fastest not at all."""

    factor: float


@dataclass(frozen=True)
class YaRNScaling(Value):
    """Peng et al. 2023: interpolate frequency by frequency, and sharpen attention by ``0.1 ln(factor) + 1``."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class ByPartsScaling(Value):
    """The Llama 3 rule: long wavelengths divided by ``factor``, short ones kept, a linear blend between."""

    factor: float
    original_context: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        _require(self.low_freq_factor < self.high_freq_factor, self, "low_freq_factor must be below high_freq_factor")


RotaryScaling: TypeAlias = LinearScaling | NTKScaling | YaRNScaling | ByPartsScaling


@dataclass(frozen=True)
class RotarySpec(Value):
    """Su et al. 2021: rotate ``fraction`` of each head of q and k by angles proportional to position (half layout)."""

    base: float = 10_000.0
    fraction: float = 1.0
    scaling: RotaryScaling | None = None

    def __post_init__(self) -> None:
        _require(self.base > 1, self, f"base = {self.base} must be above 1")
        factor = 1.0 if self.scaling is None else self.scaling.factor
        _require(factor >= 1, self, f"factor = {factor} must be at least 1: a context grows")

    def dims(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated."""
        return int(head_dim * self.fraction)


@dataclass(frozen=True)
class ALiBiSpec(Value):
    """Press et al. 2021: scores fall linearly with distance, at a fixed slope a head."""


@dataclass(frozen=True)
class BucketedBiasSpec(Value):
    """Raffel et al. 2019: a learned score for each head and (logarithmic) bucket of relative distance."""

    n_buckets: int = 32
    max_distance: int = 128
    both_directions: bool = False

    def __post_init__(self) -> None:
        exact = self.n_buckets // (4 if self.both_directions else 2)  # half of a side's buckets hold one distance each
        ok = 1 <= exact < self.max_distance
        _require(ok, self, f"n_buckets = {self.n_buckets} do not divide up to max_distance = {self.max_distance}")


PositionSpec: TypeAlias = SinusoidalSpec | LearnedSpec
BiasSpec: TypeAlias = ALiBiSpec | BucketedBiasSpec

# --- layers ----------------------------------------------------------------------------------------------------------


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
        _require(min(n, kv, self.head_dim) >= 1, self, "n_heads, n_kv_heads, head_dim must be >= 1")
        _require(n % kv == 0, self, f"n_heads = {n} is no multiple of n_kv_heads = {kv}", "groups of heads are equal")
        if self.rotary is not None:
            dims, of = self.rotary.dims(self.head_dim), self.head_dim
            ok = 2 <= dims <= of and dims % 2 == 0
            _require(ok, self, f"rotary turns pairs of dimensions, not {dims} of {of}", "choose an even head_dim")
        _require(self.soft_cap is None or self.soft_cap > 0, self, f"soft_cap = {self.soft_cap} must be positive")


MixerSpec: TypeAlias = AttentionSpec


@dataclass(frozen=True)
class FFNSpec(Value):
    """down(activation(up(x))), Vaswani et al. 2017, equation 2."""

    d_ff: int
    activation: Activation = "gelu"
    bias: bool = True


@dataclass(frozen=True)
class GatedFFNSpec(Value):
    """down(activation(gate(x)) · up(x)), Shazeer 2020: SwiGLU with silu, GeGLU with gelu."""

    d_ff: int
    activation: Activation = "silu"
    bias: bool = False


FeedForwardSpec: TypeAlias = FFNSpec | GatedFFNSpec


@dataclass(frozen=True)
class Placement(Value):
    """Which of the three places of ``out(x + post(f(pre(x))))`` hold a norm."""

    pre: bool = True
    post: bool = False
    out: bool = False


PRE_NORM = Placement(pre=True)
POST_NORM = Placement(pre=False, out=True)  # the 2017 model
SANDWICH_NORM = Placement(pre=True, post=True)
REORDERED_NORM = Placement(pre=False, post=True)


@dataclass(frozen=True)
class BlockSpec(Value):
    """One layer: a token mixer, then a feed-forward layer, each a sublayer on the residual stream.

    parallel: both read the same input and are added together (GPT-NeoX) instead of one after the other.
    """

    mixer: MixerSpec
    ffn: FeedForwardSpec
    norm: NormSpec
    placement: Placement = PRE_NORM
    parallel: bool = False

    def __post_init__(self) -> None:
        _require(not (self.parallel and self.placement.out), self, "a parallel block has no norm after each sublayer")
        _require(self.ffn.d_ff >= 1, self, f"d_ff = {self.ffn.d_ff} must be >= 1")


@dataclass(frozen=True)
class StackSpec(Value):
    """Blocks on one residual stream of width ``d_model``. ``bias`` is a score term that all blocks share."""

    d_model: int
    blocks: tuple[BlockSpec, ...]
    final_norm: NormSpec | None
    bias: BiasSpec | None = None

    def __post_init__(self) -> None:
        _require(self.d_model >= 1, self, f"d_model = {self.d_model} must be >= 1")
        _require(len(self.blocks) >= 1, self, "blocks is empty", "a stack has at least one block")
        heads = sorted({block.mixer.n_heads for block in self.blocks})
        _require(self.bias is None or len(heads) == 1, self, f"a shared bias needs one n_heads, not {heads}")


@dataclass(frozen=True)
class EmbedSpec(Value):
    """Token vectors times ``scale`` (sqrt(d_model) in the 2017 model), plus positions, then ``norm``."""

    positions: PositionSpec | None = None
    scale: float = 1.0
    norm: NormSpec | None = None


@dataclass(frozen=True)
class LMHeadSpec(Value):
    """Logits over the vocabulary; ``tied`` uses the embedding's vectors (Press & Wolf 2016)."""

    tied: bool = True
    bias: bool = False
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        _require(self.soft_cap is None or self.soft_cap > 0, self, f"soft_cap = {self.soft_cap} must be positive")


@dataclass(frozen=True)
class DecoderSpec(Value):
    """A decoder-only language model. ``context`` is the longest sequence, in tokens, that it is trained on."""

    vocab_size: int
    context: int
    embed: EmbedSpec
    stack: StackSpec
    head: LMHeadSpec = LMHeadSpec()

    def __post_init__(self) -> None:
        sizes = f"vocab_size = {self.vocab_size}, context = {self.context}: both must be >= 2"
        _require(min(self.vocab_size, self.context) >= 2, self, sizes)
        ok = self.d_model % 2 == 0 or not isinstance(self.embed.positions, SinusoidalSpec)
        _require(ok, self, f"sinusoidal positions need an even d_model, not {self.d_model}")

    @property
    def n_layers(self) -> int:
        return len(self.stack.blocks)

    @property
    def d_model(self) -> int:
        return self.stack.d_model


ModelSpec: TypeAlias = DecoderSpec
