"""What one look saw, as data: guesses, losses, logit lens, attention patterns, norms, likeness, what the head says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

NATS_TO_BITS = 1 / np.log(2.0)


@dataclass(frozen=True)
class ModelFacts:
    """The model in one line: its name and sizes. ``n_heads``: of the layer that attends with most, 0 without any."""

    name: str
    n_parameters: int
    n_layers: int
    n_heads: int
    d_model: int
    vocab_size: int
    context: int


@dataclass(frozen=True)
class Layer:
    """What a layer is made of: "attention", "linear attention", "LSTM" or "GRU"; "feed-forward", "experts" or ""."""

    mixer: str
    feed_forward: str


@dataclass(frozen=True)
class Token:
    """One token of the text: its id, how it is written in running text, and in a table (whitespace visible).

    special: it stands for no text, but for a beginning, an end, a mask.
    """

    id: int
    prose: str
    label: str
    special: bool = False


@dataclass(frozen=True)
class LensRow:
    """One layer of the logit lens (lens.Lens without batch; entropy and kl in bits)."""

    point: str
    ids: Int[np.ndarray, "time rank"]
    probs: Float[np.ndarray, "time rank"]
    actual_rank: Int[np.ndarray, " next"]
    correct: tuple[bool, ...]
    entropy: Float[np.ndarray, " time"]
    kl: Float[np.ndarray, " time"]


@dataclass(frozen=True)
class Head:
    """Where one attention head looks, averaged over the queries that have a choice, and its strongest link.

    first, previous, itself, following, last: share of attention on the first token, the token before, the token itself,
    the one after it, the last (0 to 1); of these, cross-attention knows the first and the last.
    query, key, weight: the largest weight between two different tokens; keys that mark a beginning or an end left out.
    """

    layer: int
    head: int
    first: float
    previous: float
    itself: float
    query: int
    key: int
    weight: float
    following: float = 0.0
    last: float = 0.0


@dataclass(frozen=True)
class Experts:
    """Which experts a layer gave each token to, best first (numbered from 0), and what each one's word weighed."""

    layer: int
    n_experts: int
    ids: Int[np.ndarray, "time top_k"]
    weights: Float[np.ndarray, "time top_k"]

    @property
    def load(self) -> Float[np.ndarray, " experts"]:
        """Share of all choices that fell on each expert."""
        return np.bincount(self.ids.ravel(), minlength=self.n_experts) / self.ids.size


@dataclass(frozen=True)
class Pooled:
    """The one vector that an encoder's head makes of a text: of whose states, how long, how near to each token's.

    likeness: cosine between the vector and each token's last state; empty where a dense layer stands between them.
    """

    take: Literal["first", "last", "mean", "max"]
    dense: bool
    norm: float
    likeness: Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Look:
    """What ``look`` saw. Position t of a per-position field is the distribution that the model gives there.

    ahead: how far it looks: 1, the next token, after reading 0..t; 0, the token in this very place, seeing the whole
    text (a masked-LM head). Where a model guesses no tokens, no layer has a lens and nobody a guess.
    labels: how to write every token id that occurs as a guess.
    top_ids, top_probs: the likeliest tokens, best first. entropy: of that distribution, bits.
    loss, rank: of the token that really stands there (nats; 1 is the best guess): with ``ahead`` 1 one fewer than
    tokens; NaN and 0 where a mask hides it. masked: those places.
    lens: shallow to deep, the last row being the model's output.
    patterns: one array (heads, query, key) a layer, rows sum to 1; no heads where the layer has no softmax attention.
    alike: of an encoder, cosines between its tokens' states, at the embedding and after each layer.
    pooled, classes: what an encoder's head says: a vector; probabilities (1 or time, classes). class_names: theirs.
    source, cross, cross_heads: of an encoder–decoder, what its encoder read, and how the decoder's layers look at that:
    arrays (heads, query, source).
    norms: Euclidean lengths of each layer's vectors: the stream before and after it (``resid_pre``, ``resid_post``),
    what its token mixer and its feed-forward layer add (``mixer_out``, ``ffn_out``), and the ``state`` of a recurrent
    one; NaN for a layer without it, left out where no layer has it.
    experts: of the layers that have some.
    """

    model: ModelFacts
    layers: tuple[Layer, ...]
    tokens: tuple[Token, ...]
    labels: dict[int, str]
    top_ids: Int[np.ndarray, "places rank"]
    top_probs: Float[np.ndarray, "places rank"]
    entropy: Float[np.ndarray, " places"]
    loss: Float[np.ndarray, " next"]
    rank: Int[np.ndarray, " next"]
    lens: tuple[LensRow, ...]
    patterns: tuple[Float[np.ndarray, "_ query key"], ...]
    heads: tuple[Head, ...]
    norms: dict[str, Float[np.ndarray, "layer time"]]
    experts: tuple[Experts, ...] = ()
    ahead: int = 1
    masked: tuple[int, ...] = ()
    alike: tuple[Float[np.ndarray, "time time"], ...] = ()
    pooled: Pooled | None = None
    classes: Float[np.ndarray, "_ classes"] | None = None
    class_names: tuple[str, ...] = ()
    source: Look | None = None
    cross: tuple[Float[np.ndarray, "_ time source"], ...] = ()
    cross_heads: tuple[Head, ...] = ()

    @property
    def bits(self) -> Float[np.ndarray, " next"]:
        """Surprisal of each token that is guessed: its loss in bits."""
        return self.loss * NATS_TO_BITS

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, floats to four significant digits; causal pattern rows end at their query."""
        shown: dict[str, Any] = _plain(asdict(self))
        shown["patterns"] = [
            [[_plain(row[: _row_end(row, q)]) for q, row in enumerate(head)] for head in layer]
            for layer in self.patterns
        ]
        if self.source is not None:
            shown["source"] = self.source.to_json()
        return shown


def _row_end(row: Float[np.ndarray, " key"], query: int) -> int:
    return len(row) if row[query + 1 :].any() else query + 1


def _round(value: float) -> float | None:
    """Four significant digits; infinities and NaN, which JSON has no word for, become null."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _round(value) if isinstance(value, float) else value
