"""One layer: a token mixer, then (in a decoder with an encoder) cross-attention, then feed-forward, on the stream."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from pellucid.nn.documents import Documents
from pellucid.nn.mixer import Mixer
from pellucid.nn.registry import build
from pellucid.nn.residual import Sublayer
from pellucid.nn.stores import LayerCache, MemoryCache, StateCache
from pellucid.nn.view import View
from pellucid.spec import BlockSpec
from pellucid.taps import Tapped


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
        mixer = build(spec.mixer, d_model, Mixer)
        self.kind = mixer.kind

        def sublayer() -> Sublayer:
            return Sublayer(spec.norm, spec.placement, spec.residual, d_model)

        self.add_module(f"{self.kind}_norms", sublayer())
        self.add_module(self.kind, mixer)
        self.cross_norms = sublayer() if spec.cross else None
        self.cross = build(spec.cross, d_model) if spec.cross else None
        self.ffn_norms = sublayer() if spec.ffn else None
        self.ffn = build(spec.ffn, d_model) if spec.ffn else None

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
    def mixer(self) -> Mixer:
        """What mixes tokens, whatever its name."""
        return getattr(self, self.kind)

    @property
    def mixer_norms(self) -> Sublayer:
        """The mixer's place on the stream."""
        return getattr(self, f"{self.kind}_norms")

    @property
    def reads_memory(self) -> bool:
        """Whether something in it attends to an encoder's states."""
        return self.cross is not None or self.mixer.reads_memory

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can take it whole."""
        return all(getattr(module, "compiles", True) for module in self.modules() if module is not self)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        view: View | Documents,
        past: LayerCache | StateCache | None = None,
        cross: View | None = None,
        cross_past: MemoryCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """``view`` and ``past`` are the mixer's: where tokens stand, and what is kept of earlier ones; ``cross`` and
        ``cross_past`` the same for an encoder's."""
        mixer = self.mixer
        memory = (cross, cross_past) if mixer.reads_memory else ()

        def mix(h: Tensor) -> Tensor:
            return mixer(self.tap(f"{self.kind}_in", h), view, past, *memory)

        x = self.tap("resid_pre", x)
        mixed = self.tap(f"{self.kind}_out", self.mixer_norms.branch(x, mix))
        if self.parallel:
            ffn_out = self._feed_forward(x)
            return self.tap("resid_post", self.mixer_norms.skip(x) + mixed + ffn_out)
        x = self.mixer_norms.join(x, mixed)
        if self.cross is not None and self.cross_norms is not None:
            attend = self.cross

            def attend_across(h: Tensor) -> Tensor:
                return attend(self.tap("cross_in", h), cross, cross_past)

            x = self.tap("resid_mid", x)
            crossed = self.tap("cross_out", self.cross_norms.branch(x, attend_across))
            x = self.cross_norms.join(x, crossed)
        if self.ffn_norms is not None:
            x = self.tap("resid_mid" if self.cross is None else "resid_cross", x)
            x = self.ffn_norms.join(x, self._feed_forward(x))
        return self.tap("resid_post", x)

    def _feed_forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        """What the feed-forward layer adds to the stream ``x``."""
        ffn, norms = self.ffn, self.ffn_norms
        assert ffn is not None and norms is not None
        return self.tap("ffn_out", norms.branch(x, lambda h: ffn(self.tap("ffn_in", h))))
