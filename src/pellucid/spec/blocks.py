"""The residual formula, one block, and blocks one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.predicates import Ahead
from pellucid.spec.costs import Cost
from pellucid.spec.feed_forward import FeedForwardSpec
from pellucid.spec.mixers import CrossSpec, MixerSpec
from pellucid.spec.parts import BiasSpec, NormSpec, norm_parameters, require
from pellucid.spec.words import Part
from pellucid.values import Value


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
        if self.cross is not None:
            problem, remedy = self.cross.problem_across() or ("", "")
            require(not problem, self, problem, remedy)
        both = self.cross is not None and self.mixer.reads_memory
        require(not both, self, "an attentive recurrence already reads the encoder", "cross=None")

    @property
    def reads_memory(self) -> bool:
        """Whether something in it attends to an encoder's states."""
        return self.cross is not None or self.mixer.reads_memory

    @property
    def ahead(self) -> Ahead | None:
        """Which later tokens its mixer lets a token see at most; None where there is no such bound."""
        return self.mixer.ahead

    @property
    def sees_future(self) -> bool:
        """Whether its mixer lets a token see later ones (those of a prefix excepted)."""
        return self.ahead is None

    def costs(self, d_model: int) -> list[Cost]:
        """The costs of its sublayers in their order: mixer, then cross-attention and feed-forward if it has them."""
        found = [self.mixer.cost(d_model)]
        found += [self.cross.cost_across(d_model)] if self.cross else []
        return [*found, self.ffn.cost(d_model)] if self.ffn else found

    def parts(self, d_model: int, bias: BiasSpec | None = None) -> list[Part]:
        """Its sublayers in words, in the order of ``costs``; ``bias``: the stack's score term."""
        found = [self.mixer.part(d_model, bias)]
        found += [self.cross.part_across(d_model)] if self.cross else []
        return [*found, self.ffn.part(d_model)] if self.ffn else found

    def norm_parameters(self, d_model: int) -> int:
        """How many trained values all norms and gains around its sublayers have, and those inside them."""
        place, costs = self.placement, self.costs(d_model)
        each = (place.pre + place.post + place.out) * norm_parameters(self.norm, d_model)
        each += 0 if self.residual.layer_scale is None else d_model
        return len(costs) * each + sum(cost.norms for cost in costs)


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
        heads = sorted({block.mixer.score_heads for block in self.blocks} - {0})
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
            problem, remedy = block.mixer.problem_in(f"blocks[{i}]", self.d_model) or ("", "")
            require(not problem, self, problem, remedy)

    @property
    def score_heads(self) -> int:
        """Heads of each attention layer, to whose scores ``bias`` is added; 0 where no layer has scores."""
        return max(block.mixer.score_heads for block in self.blocks)

    @property
    def owners(self) -> tuple[int, ...]:
        """For each block the number of the one whose weights it uses."""
        return self.shared or tuple(range(len(self.blocks)))
