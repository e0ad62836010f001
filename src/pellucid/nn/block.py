"""One layer: a token mixer, then (in a decoder with an encoder) cross-attention, then feed-forward, on the stream."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pellucid.nn.alignment import Alignment
from pellucid.nn.attention import Attention
from pellucid.nn.cache import LayerCache, MemoryCache, StateCache
from pellucid.nn.ffn import FeedForward
from pellucid.nn.linear_attention import LinearAttention
from pellucid.nn.moe import MixtureOfExperts
from pellucid.nn.recurrent import AttentiveRecurrent, Recurrent
from pellucid.nn.residual import Sublayer
from pellucid.nn.runs import Runs
from pellucid.nn.view import View
from pellucid.spec import (
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    CrossSpec,
    FeedForwardSpec,
    LinearAttentionSpec,
    MixerSpec,
    MoESpec,
)
from pellucid.taps import Tapped

Mixer = Attention | LinearAttention | Recurrent | AttentiveRecurrent


def build_mixer(spec: MixerSpec, d_model: int) -> Mixer:
    """The module that a spec describes."""
    if isinstance(spec, AttentionSpec):
        return Attention(spec, d_model)
    if isinstance(spec, LinearAttentionSpec):
        return LinearAttention(spec, d_model)
    if isinstance(spec, AttentiveRecurrentSpec):
        return AttentiveRecurrent(spec, d_model)
    return Recurrent(spec, d_model)


def build_cross(spec: CrossSpec, d_model: int) -> Attention | Alignment:
    """Attention to an encoder's states."""
    return Alignment(spec, d_model) if isinstance(spec, AlignmentSpec) else Attention(spec, d_model)


def build_feed_forward(spec: FeedForwardSpec, d_model: int) -> FeedForward | MixtureOfExperts:
    """One feed-forward layer, or many with a router."""
    return MixtureOfExperts(spec, d_model) if isinstance(spec, MoESpec) else FeedForward(spec, d_model)


class Block(Tapped):
    """x + mixer, then + cross-attention, then + feed-forward; ``parallel``: x + mixer(x) + feed-forward(x).

    The mixer is called ``attn``, or ``rnn`` where it is recurrent. Points, all (batch, time, d_model): ``resid_pre``;
    what each branch reads, behind its norm: ``attn_in`` (``rnn_in``), ``cross_in``, ``ffn_in``; what it adds:
    ``attn_out`` (``rnn_out``), ``cross_out``, ``ffn_out``; the stream between two branches: ``resid_mid`` and, after
    cross-attention, ``resid_cross``; ``resid_post``.
    """

    def __init__(self, spec: BlockSpec, d_model: int):
        super().__init__()
        self.parallel = spec.parallel
        self.kind = "attn" if isinstance(spec.mixer, AttentionSpec | LinearAttentionSpec) else "rnn"
        self.looks_back = isinstance(spec.mixer, AttentiveRecurrentSpec)  # the mixer itself attends to the encoder

        def sublayer() -> Sublayer:
            return Sublayer(spec.norm, spec.placement, spec.residual, d_model)

        self.add_module(f"{self.kind}_norms", sublayer())
        self.add_module(self.kind, build_mixer(spec.mixer, d_model))
        self.cross_norms = sublayer() if spec.cross else None
        self.cross = build_cross(spec.cross, d_model) if spec.cross else None
        self.ffn_norms = sublayer() if spec.ffn else None
        self.ffn = build_feed_forward(spec.ffn, d_model) if spec.ffn else None

    def points(self) -> dict[str, str]:
        names = ["resid_pre"]
        for i, branch in enumerate([self.kind, *(["cross"] if self.cross else []), *(["ffn"] if self.ffn else [])]):
            if i and not self.parallel:
                names.append("resid_mid" if i == 1 else "resid_cross")
            names += [f"{branch}_in", f"{branch}_out"]
        return dict.fromkeys([*names, "resid_post"], "batch time d_model")

    def prefix(self, child: str) -> str:
        """The feed-forward layer speaks as its block."""
        return "" if child == "ffn" else super().prefix(child)

    @property
    def mixer(self) -> nn.Module:
        """What mixes tokens, whatever its name."""
        return getattr(self, self.kind)

    @property
    def mixer_norms(self) -> Sublayer:
        """The mixer's place on the stream."""
        return getattr(self, f"{self.kind}_norms")

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can take it whole."""
        return all(getattr(module, "compiles", True) for module in self.modules() if module is not self)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        view: View | Runs,
        past: LayerCache | StateCache | None = None,
        cross: View | None = None,
        cross_past: MemoryCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """``view`` and ``past`` are the mixer's: where tokens stand, and what is kept of earlier ones; ``cross`` and
        ``cross_past`` the same for an encoder's."""
        mixer, norms = self.mixer, self.mixer_norms
        memory = (cross, cross_past) if self.looks_back else ()

        def mix(h: Tensor) -> Tensor:
            return mixer(self.tap(f"{self.kind}_in", h), view, past, *memory)

        x = self.tap("resid_pre", x)
        mixed = self.tap(f"{self.kind}_out", norms.branch(x, mix))
        if self.parallel:
            assert self.ffn is not None and self.ffn_norms is not None
            ffn_out = self.tap("ffn_out", self.ffn_norms.branch(x, self._feed_forward))
            return self.tap("resid_post", norms.skip(x) + mixed + ffn_out)
        x, between = norms.join(x, mixed), "resid_mid"
        if self.cross is not None and self.cross_norms is not None:
            attend = self.cross

            def look_across(h: Tensor) -> Tensor:
                return attend(self.tap("cross_in", h), cross, cross_past)

            x, between = self.tap(between, x), "resid_cross"
            x = self.cross_norms.join(x, self.tap("cross_out", self.cross_norms.branch(x, look_across)))
        if self.ffn is not None and self.ffn_norms is not None:
            x = self.tap(between, x)
            ffn_out = self.tap("ffn_out", self.ffn_norms.branch(x, self._feed_forward))
            x = self.ffn_norms.join(x, ffn_out)
        return self.tap("resid_post", x)

    def _feed_forward(self, h: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        assert self.ffn is not None
        return self.ffn(self.tap("ffn_in", h))
