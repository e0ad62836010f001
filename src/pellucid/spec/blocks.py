"""Feed-forward layers, the residual formula, one block, and blocks one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pellucid.predicates import Ahead, Full
from pellucid.spec.mixers import (
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    CrossSpec,
    LinearAttentionSpec,
    MixerSpec,
    RecurrentSpec,
)
from pellucid.spec.parts import BiasSpec, NormSpec, require
from pellucid.values import Value

Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True)
class FFNSpec(Value):
    """down(activation(up(x))), Vaswani et al. 2017, equation 2."""

    d_ff: int
    activation: Activation = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.d_ff >= 1, self, f"d_ff = {self.d_ff} must be >= 1")


@dataclass(frozen=True)
class GatedFFNSpec(Value):
    """down(activation(gate(x)) · up(x)), Shazeer 2020: SwiGLU with silu, GeGLU with gelu."""

    d_ff: int
    activation: Activation = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        require(self.d_ff >= 1, self, f"d_ff = {self.d_ff} must be >= 1")


@dataclass(frozen=True)
class MoESpec(Value):
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


FeedForwardSpec: TypeAlias = FFNSpec | GatedFFNSpec | MoESpec


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
NO_NORM = Placement(pre=False)


@dataclass(frozen=True)
class ResidualSpec(Value):
    """How a branch joins the stream: skip · x + branch · (gain · f(x)).

    skip: 0 leaves the connection out, as before He et al. 2015; above 1 with post-norm: Wang et al. 2022. branch: one
    factor for all. layer_scale: a learned gain a channel that starts at this value (Touvron et al. 2021).
    """

    skip: float = 1.0
    branch: float = 1.0
    layer_scale: float | None = None


@dataclass(frozen=True)
class BlockSpec(Value):
    """One layer: a token mixer, then perhaps attention to an encoder (``cross``), then perhaps a feed-forward layer.

    Each is a sublayer on the residual stream. parallel: mixer and feed-forward read the same input and are added
    together (Wang & Komatsuzaki 2021) instead of one after the other.
    """

    mixer: MixerSpec
    ffn: FeedForwardSpec | None
    norm: NormSpec
    placement: Placement = PRE_NORM
    parallel: bool = False
    residual: ResidualSpec = ResidualSpec()
    cross: CrossSpec | None = None

    def __post_init__(self) -> None:
        if self.parallel:
            require(not self.placement.out, self, "a parallel block has no norm after each sublayer")
            require(self.ffn is not None, self, "a parallel block has a feed-forward layer beside its mixer")
            require(self.cross is None, self, "a parallel block has no place for cross-attention", "parallel=False")
        if isinstance(self.cross, AttentionSpec):
            problem = "cross-attention has no rotary positions: its two sides count their own"
            require(self.cross.rotary is None, self, problem, "cross=replace(cross, rotary=None)")
            problem = f"cross has {self.cross.mask}, but an encoder's positions are not the decoder's"
            require(isinstance(self.cross.mask, Full), self, problem, "cross=replace(cross, mask=Full())")
        if isinstance(self.mixer, AttentiveRecurrentSpec):
            require(self.cross is None, self, "an attentive recurrence already reads the encoder", "cross=None")

    @property
    def reads_memory(self) -> bool:
        """Whether something in it attends to an encoder's states."""
        return self.cross is not None or isinstance(self.mixer, AttentiveRecurrentSpec)

    @property
    def ahead(self) -> Ahead | None:
        """Which later tokens its mixer lets a token see at most; None where there is no such bound."""
        mixer = self.mixer
        if isinstance(mixer, AttentionSpec):
            return mixer.mask.ahead()
        if isinstance(mixer, LinearAttentionSpec):
            return Ahead() if getattr(mixer.rule, "causal", True) else None
        return None if isinstance(mixer, RecurrentSpec) and mixer.both_directions else Ahead()

    @property
    def sees_future(self) -> bool:
        """Whether its mixer lets a token see later ones (those of a prefix excepted)."""
        return self.ahead is None


@dataclass(frozen=True)
class StackSpec(Value):
    """Blocks on one residual stream of width ``d_model``. ``bias`` is a score term that all attention blocks share.

    shared: for each block the number of the first one with its weights (Dehghani et al. 2019, Lan et al. 2020):
    (0, 0, 0) is one block three times, (0, 1, 0, 1) two in turn; empty: each has its own.
    """

    d_model: int
    blocks: tuple[BlockSpec, ...]
    final_norm: NormSpec | None
    bias: BiasSpec | None = None
    shared: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.d_model >= 1, self, f"d_model = {self.d_model} must be >= 1")
        require(len(self.blocks) >= 1, self, "blocks is empty", "a stack has at least one block")
        heads = sorted({block.mixer.n_heads for block in self.blocks if isinstance(block.mixer, AttentionSpec)})
        require(self.bias is None or len(heads) == 1, self, f"a shared bias needs one n_heads, not {heads}")
        ok = len(self.shared) in (0, len(self.blocks))
        require(ok, self, f"shared = {self.shared} is not one number for each of {len(self.blocks)} blocks")
        ok = not self.shared or len(set(self.shared)) < len(self.shared)
        require(ok, self, f"shared = {self.shared} shares nothing", "shared=()")
        for i, owner in enumerate(self.shared):
            ok = 0 <= owner <= i and self.shared[owner] == owner
            require(ok, self, f"shared[{i}] = {owner}, which is no block above it with weights of its own")
            require(self.blocks[i] == self.blocks[owner], self, f"shared: blocks[{i}] is another than blocks[{owner}]")
        for i, block in enumerate(self.blocks):
            mixer = block.mixer
            if isinstance(mixer, RecurrentSpec) and not mixer.project:
                problem = f"blocks[{i}] gives {mixer.d_out} values a token to a stream of {self.d_model}"
                require(mixer.d_out == self.d_model, self, problem, "RecurrentSpec(project=True), or fit d_hidden")
            alignment = mixer.alignment if isinstance(mixer, AttentiveRecurrentSpec) else block.cross
            if isinstance(mixer, AttentiveRecurrentSpec) and isinstance(alignment, AlignmentSpec):
                ok = alignment.score != "dot" or mixer.d_hidden == self.d_model
                problem = f"blocks[{i}]: dot scores compare d_hidden = {mixer.d_hidden} with d_model = {self.d_model}"
                require(ok, self, problem, "use general or additive scores, or make them equal")

    @property
    def owners(self) -> tuple[int, ...]:
        """For each block the number of the one whose weights it has."""
        return self.shared or tuple(range(len(self.blocks)))
