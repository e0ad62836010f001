"""Heads: what makes logits, classes or vectors out of a stack's states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from pellucid.spec.feed_forward import PLAIN, Activation
from pellucid.spec.parts import LayerNormSpec, NormSpec, norm_parameters, require
from pellucid.spec.words import norm_name, times
from pellucid.values import Value

LAYER_NORM = LayerNormSpec()


@runtime_checkable
class Sizes(Protocol):
    """What a head must know of its model: vocab_size; d_model, the width of its states; d_embed, that of vectors."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_embed(self) -> int: ...


class HeadCost(NamedTuple):
    """parameters: a head's own, norms excepted. norms: values of its norms. matrices: values each token is multiplied
    with, those of a tied table too."""

    parameters: int
    norms: int
    matrices: int


@dataclass(frozen=True)
class HeadSpec(Value, abstract=True):
    """What makes the result of a model out of its states. ``nn.registry`` finds the module that computes it."""

    @property
    def predicts(self) -> bool:
        """Whether the result is a distribution over tokens or classes."""
        return True

    def cost(self, s: Sizes) -> HeadCost:
        """Its parameters and work in a model of these sizes."""
        raise NotImplementedError

    def words(self, s: Sizes) -> tuple[str, list[str]]:
        """(what it gives, how) in words, in a model of these sizes."""
        raise NotImplementedError


def table_words(tied: bool, width: int, vocab_size: int) -> list[str]:
    """Where logits come from: the embedding's table, or one of the head's own."""
    return ["by the embedding's vectors"] if tied else ["by a matrix of its own", f"{width} × {vocab_size:,}"]


@dataclass(frozen=True)
class LMHeadSpec(HeadSpec):
    """Logits over the vocabulary, times ``scale``; ``tied`` uses the embedding's vectors (Press & Wolf 2016)."""

    tied: bool = True
    bias: bool = False
    soft_cap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.soft_cap is None or self.soft_cap > 0, self, f"soft_cap = {self.soft_cap} must be positive")

    def cost(self, s: Sizes) -> HeadCost:
        own = 0 if self.tied else s.vocab_size * s.d_model
        return HeadCost(own + (s.vocab_size if self.bias else 0), 0, s.vocab_size * s.d_model)

    def words(self, s: Sizes) -> tuple[str, list[str]]:
        how = table_words(self.tied, s.d_model, s.vocab_size)
        how += [f"× {times(self.scale)}"] if self.scale != 1 else []
        return "logits", how + ([f"capped at {self.soft_cap:g}"] if self.soft_cap else [])


TIED_HEAD = LMHeadSpec()


@dataclass(frozen=True)
class MaskedLMHeadSpec(HeadSpec):
    """norm(activation(dense(x))), then logits over the vocabulary (Devlin et al. 2018, in their code)."""

    activation: Activation = "gelu"
    norm: NormSpec = LAYER_NORM
    tied: bool = True
    bias: bool = True

    def cost(self, s: Sizes) -> HeadCost:
        own = (0 if self.tied else s.vocab_size * s.d_embed) + (s.vocab_size if self.bias else 0)
        norm = norm_parameters(self.norm, s.d_embed)
        return HeadCost(own + (s.d_model + 1) * s.d_embed, norm, (s.vocab_size + s.d_model) * s.d_embed)

    def words(self, s: Sizes) -> tuple[str, list[str]]:
        dense = f"dense, {PLAIN[self.activation]}, {norm_name(self.norm)}"
        return "logits", [dense, *table_words(self.tied, s.d_embed, s.vocab_size)]


@dataclass(frozen=True)
class PoolerHeadSpec(HeadSpec):
    """One vector a row: the first or last token's, or the mean or maximum of all.

    dense: then activation(W x + b) (Devlin et al. 2018). normalise: then to length 1, so that a product is a cosine.
    """

    take: Literal["first", "last", "mean", "max"] = "first"
    dense: bool = True
    normalise: bool = False
    activation: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self) -> None:
        ok = self.dense or self.activation == "tanh"
        require(ok, self, f"activation = {self.activation} stands after a matrix that is not there", "dense=True")

    @property
    def predicts(self) -> bool:
        return False

    def cost(self, s: Sizes) -> HeadCost:
        return HeadCost(s.d_model * s.d_model + s.d_model if self.dense else 0, 0, 0)  # once a row: nothing a token

    def words(self, s: Sizes) -> tuple[str, list[str]]:
        return "one vector a row", self.how()

    def how(self) -> list[str]:
        """How tokens become one vector, in words."""
        taken = {"first": "first token", "last": "last token", "mean": "mean of all", "max": "maximum of all"}
        dense = [f"dense, {self.activation}"] if self.dense else []
        return [taken[self.take], *dense, *["length 1"] * self.normalise]


@dataclass(frozen=True)
class ClassifierHeadSpec(HeadSpec):
    """One class a row: logits of a pooled vector. One alone is a score, such as how well two texts fit."""

    n_classes: int
    pooler: PoolerHeadSpec = PoolerHeadSpec()

    def __post_init__(self) -> None:
        require(self.n_classes >= 1, self, f"n_classes = {self.n_classes} must be >= 1")

    @property
    def predicts(self) -> bool:
        return self.n_classes > 1  # a single output is a score: there is no class to predict

    def cost(self, s: Sizes) -> HeadCost:
        return HeadCost(self.pooler.cost(s).parameters + (s.d_model + 1) * self.n_classes, 0, 0)

    def words(self, s: Sizes) -> tuple[str, list[str]]:
        title = f"{self.n_classes} classes a row" if self.n_classes > 1 else "one score a row"
        return title, self.pooler.how()


@dataclass(frozen=True)
class TaggerHeadSpec(HeadSpec):
    """One class a token."""

    n_classes: int

    def __post_init__(self) -> None:
        require(self.n_classes >= 2, self, f"n_classes = {self.n_classes} must be >= 2")

    def cost(self, s: Sizes) -> HeadCost:
        return HeadCost((s.d_model + 1) * self.n_classes, 0, s.d_model * self.n_classes)

    def words(self, s: Sizes) -> tuple[str, list[str]]:
        return f"{self.n_classes} classes a token", ["a matrix and a bias"]


EncoderHeadSpec: TypeAlias = MaskedLMHeadSpec | PoolerHeadSpec | ClassifierHeadSpec | TaggerHeadSpec
