"""What one look saw, as data: guesses and losses, attention, norms, likeness, what the head says."""

from __future__ import annotations

import html
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from pellucid.look.numbers import Brief, plain

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


@dataclass(frozen=True, repr=False)
class LensRow(Brief):
    """One layer of the logit lens (``interpret.lens.Lens`` without batch; entropy and kl in bits)."""

    point: str
    ids: Int[np.ndarray, "time rank"]
    probs: Float[np.ndarray, "time rank"]
    actual_rank: Int[np.ndarray, " next"]
    correct: tuple[bool, ...]
    entropy: Float[np.ndarray, " time"]
    kl: Float[np.ndarray, " time"]


@dataclass(frozen=True, repr=False)
class Guesses(Brief):
    """What a model guesses. Position t of each field is the distribution that the model gives there.

    ahead: how far it looks: 1, the next token, after reading 0..t; 0, the token in this very place, seeing the whole
    text (a masked-LM head).
    top_ids, top_probs: the likeliest tokens, best first. entropy: of that distribution, bits.
    loss, rank: of the token that really stands there (nats; 1 is the best guess): with ``ahead`` 1 one fewer than
    tokens; NaN and 0 where a mask hides it. masked: those places.
    lens: shallow to deep, the last row being the model's output.
    """

    ahead: int
    top_ids: Int[np.ndarray, "time rank"]
    top_probs: Float[np.ndarray, "time rank"]
    entropy: Float[np.ndarray, " time"]
    loss: Float[np.ndarray, " next"]
    rank: Int[np.ndarray, " next"]
    lens: tuple[LensRow, ...]
    masked: tuple[int, ...] = ()

    @property
    def bits(self) -> Float[np.ndarray, " next"]:
        """Surprisal of each token that is guessed: its loss in bits."""
        return self.loss * NATS_TO_BITS


_GUESSES = tuple(field.name for field in fields(Guesses))


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


@dataclass(frozen=True, repr=False)
class Attention(Brief):
    """patterns: one array a layer, rows sum to 1; no heads where a layer has no softmax attention. heads: of all."""

    patterns: tuple[Float[np.ndarray, "_ query key"], ...]
    heads: tuple[Head, ...]


@dataclass(frozen=True, repr=False)
class Experts(Brief):
    """Which experts a layer gave each token to, best first (numbered from 0), and what each one's word weighed.

    load: the share of all choices that fell on each expert.
    """

    layer: int
    n_experts: int
    ids: Int[np.ndarray, "time top_k"]
    weights: Float[np.ndarray, "time top_k"]
    load: Float[np.ndarray, " experts"]


@dataclass(frozen=True, repr=False)
class Pooled(Brief):
    """The one vector that an encoder's head makes of a text: of whose states, how long, how near to each token's.

    likeness: cosine between the vector and each token's last state; empty where a dense layer stands between them.
    """

    take: Literal["first", "last", "mean", "max"]
    dense: bool
    norm: float
    likeness: Float[np.ndarray, " _"]


@dataclass(frozen=True, repr=False)
class Encoding(Brief):
    """What an encoder makes of a text, all of which it sees at once.

    alike: cosines between its tokens' states, at the embedding and after each layer.
    pooled, classes: what its head says: a vector; probabilities (1 or time, classes). class_names: of the classes.
    """

    alike: tuple[Float[np.ndarray, "time time"], ...]
    pooled: Pooled | None = None
    classes: Float[np.ndarray, "_ classes"] | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Panel(Brief):
    """A table of shares, 0 to 1 for the most part. rows: shallow to deep, or the best first where ``ranked``.

    words: what is said of each row, behind its cells; none where there is nothing to say.
    """

    title: str
    note: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[np.ndarray, "row column"]
    ranked: bool = False
    words: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Across(Brief):
    """The other side of an encoder–decoder: what its encoder read, and how the decoder's layers attend to that."""

    source: Look
    attention: Attention


@dataclass(frozen=True, repr=False)
class Look:
    """What ``look`` saw. Layers, heads and experts are numbered from 0, as the model's points are.

    labels: how to write every token id that occurs as a token or guess.
    norms: Euclidean lengths of each layer's vectors: the stream before and after it (``resid_pre``, ``resid_post``),
    what its token mixer, its attention to an encoder and its feed-forward layer add (``mixer_out``, ``cross_out``,
    ``ffn_out``), and the ``state`` of a recurrent one; NaN for a layer without it, left out where no layer has it.
    points: names of the model's points where each of these, the "pattern", the "cross" pattern and the chosen "experts"
    are read, layer by layer; "" for a layer without it.
    experts: of the layers that have some. guesses: None where the model guesses no tokens. encoding: of an encoder.
    across: of an encoder–decoder, whose decoder's side this look is. panels: what else was asked for (``look.panels``).
    """

    model: ModelFacts
    layers: tuple[Layer, ...]
    tokens: tuple[Token, ...]
    labels: dict[int, str]
    attention: Attention
    norms: dict[str, Float[np.ndarray, "layer time"]]
    points: dict[str, tuple[str, ...]]
    experts: tuple[Experts, ...] = ()
    guesses: Guesses | None = None
    encoding: Encoding | None = None
    across: Across | None = None
    panels: tuple[Panel, ...] = ()

    @property
    def both_ways(self) -> bool:
        """Whether each token sees those behind it as well."""
        return self.encoding is not None

    def __repr__(self) -> str:
        """What was seen, in a line."""
        facts = self.model
        heads = f" × {facts.n_heads} heads" if facts.n_heads else ""
        bits = self.guesses.bits if self.guesses is not None and self.guesses.ahead else ()
        mean = f", mean {np.mean(bits):.2f} bits a token" if len(bits) else ""
        return f"<Look: {facts.name} reads {len(self.tokens)} tokens; {facts.n_layers} layers{heads}{mean}>"

    def _repr_html_(self) -> str:
        """The page, in a frame of its own: a notebook shows it where the look is a cell's value."""
        from pellucid.look.page.html import to_html

        page = html.escape(to_html(self), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="pellucid look"'
            ' style="width:100%;height:760px;border:0"></iframe>'
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, floats to four significant digits; causal pattern rows end at their query.

        The fields of all parts stand side by side. What this model does not have is empty or null.
        """
        across = self.across
        told = plain(
            {
                "model": self.model,
                "layers": self.layers,
                "tokens": self.tokens,
                "labels": self.labels,
                **(vars(self.guesses) if self.guesses else dict.fromkeys(_GUESSES, ()) | {"ahead": 0}),
                **vars(self.attention),
                "norms": self.norms,
                "points": self.points,
                "experts": self.experts,
                **vars(self.encoding or Encoding(alike=())),
                "cross": across.attention.patterns if across else (),
                "cross_heads": across.attention.heads if across else (),
                "panels": self.panels,
            }
        )
        told["patterns"] = [
            [[plain(row[: _row_end(row, q)]) for q, row in enumerate(head)] for head in layer]
            for layer in self.attention.patterns
        ]
        told["source"] = across.source.to_json() if across else None
        return told


def _row_end(row: Float[np.ndarray, " key"], query: int) -> int:
    return len(row) if row[query + 1 :].any() else query + 1
