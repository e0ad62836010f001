"""One look into a model that reads one text, as data: guesses, losses, logit lens, attention patterns, norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.interpret.capture import capture
from pellucid.interpret.display import label, prose, reader
from pellucid.interpret.lens import Lens, logit_lens
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder
from pellucid.spec import AttentionSpec, BlockSpec, MoESpec, RecurrentSpec

NATS_TO_BITS = 1 / np.log(2.0)
# what is measured of each layer -> the points that may hold it, by the kind of layer
_STREAMS = {
    "resid_pre": ("resid_pre",),
    "mixer_out": ("attn_out", "rnn_out"),
    "ffn_out": ("ffn_out",),
    "resid_post": ("resid_post",),
    "state": ("rnn.h",),
}


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
    """One token of the text: its id, how it is written in running text, and in a table (whitespace visible)."""

    id: int
    prose: str
    label: str


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

    first, previous, itself: share of attention on the first token, the token before, the token itself (0 to 1).
    query, key, weight: the largest weight between two different tokens, the first token as key left out.
    """

    layer: int
    head: int
    first: float
    previous: float
    itself: float
    query: int
    key: int
    weight: float


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
class Look:
    """What ``look`` saw. Position t of a per-position field is the distribution after reading tokens 0..t.

    labels: how to write every token id that occurs as a guess.
    top_ids, top_probs: the likeliest next tokens, best first. entropy: of that distribution, bits.
    loss, rank: of the token that really comes next (nats; 1 is the best guess); nothing follows the last token.
    lens: shallow to deep, the last row being the model's output.
    patterns: one array (heads, query, key) a layer, rows sum to 1; no heads where the layer has no softmax attention.
    norms: Euclidean lengths of each layer's vectors: the stream before and after it (``resid_pre``, ``resid_post``),
    what its token mixer and its feed-forward layer add (``mixer_out``, ``ffn_out``), and the ``state`` of a recurrent
    one; NaN for a layer without it, left out where no layer has it.
    experts: of the layers that have some.
    """

    model: ModelFacts
    layers: tuple[Layer, ...]
    tokens: tuple[Token, ...]
    labels: dict[int, str]
    top_ids: Int[np.ndarray, "time rank"]
    top_probs: Float[np.ndarray, "time rank"]
    entropy: Float[np.ndarray, " time"]
    loss: Float[np.ndarray, " next"]
    rank: Int[np.ndarray, " next"]
    lens: tuple[LensRow, ...]
    patterns: tuple[Float[np.ndarray, "_ query key"], ...]
    heads: tuple[Head, ...]
    norms: dict[str, Float[np.ndarray, "layer time"]]
    experts: tuple[Experts, ...] = ()

    @property
    def bits(self) -> Float[np.ndarray, " next"]:
        """Surprisal of each next token: its loss in bits."""
        return self.loss * NATS_TO_BITS

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, floats to four significant digits; causal pattern rows end at their query."""
        shown: dict[str, Any] = _plain(asdict(self))
        shown["patterns"] = [
            [[_plain(row[: _row_end(row, q)]) for q, row in enumerate(head)] for head in layer]
            for layer in self.patterns
        ]
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


def _read(model: Decoder, text_or_ids: str | Sequence[int]) -> list[int]:
    """The ids to look at; raises UsageError for what cannot be looked at."""
    if isinstance(text_or_ids, str):
        if not text_or_ids:
            raise UsageError("the text is empty", "give at least one character to look at")
        if model.tokenizer is None:
            raise UsageError("this model has no tokenizer, so it cannot read a text", "give token ids instead")
        ids = model.tokenizer.encode(text_or_ids, bos=True)
    else:
        ids = [int(token) for token in text_or_ids]
        if not ids:
            raise UsageError("there are no token ids", "give at least one token to look at")
    vocab_size, context = model.spec.vocab_size, model.spec.context
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UsageError(
                f"token id {token} (at place {place}) is not in the vocabulary of {vocab_size}",
                f"ids run from 0 to {vocab_size - 1}; was the text encoded with another tokenizer?",
            )
    if len(ids) > context:
        raise UsageError(
            f"the text is {len(ids)} tokens long, but the model's context is {context}",
            f"cut the text by at least {len(ids) - context} tokens",
        )
    return ids


def _reads_on(model: AnyModel) -> Decoder:
    """The model, if it guesses what comes next; raises UsageError for one that does something else."""
    if isinstance(model, Encoder):
        why = "an encoder sees all of the text at once"
    elif isinstance(model, EncoderDecoder) or any(block.reads_memory for block in model.spec.stack.blocks):
        why = "this one answers what an encoder reads"
    else:
        return model
    raise UsageError(
        f"look shows what a model that reads on expects next; {why}",
        "read its patterns and streams with model.taps(read=...); model.point_names() lists them",
    )


def _layer(spec: BlockSpec) -> Layer:
    mixer = spec.mixer
    mixes = "attention" if isinstance(mixer, AttentionSpec) else "linear attention"
    mixes = mixer.cell.upper() if isinstance(mixer, RecurrentSpec) else mixes
    return Layer(mixes, "" if spec.ffn is None else "experts" if isinstance(spec.ffn, MoESpec) else "feed-forward")


def _norms(acts: Mapping[str, Tensor], n_layers: int) -> dict[str, Float[np.ndarray, "layer time"]]:
    time = acts["embed"].shape[1]
    norms: dict[str, np.ndarray] = {}
    for stream, points in _STREAMS.items():
        rows = np.full((n_layers, time), np.nan, np.float32)
        for layer in range(n_layers):
            for name in (f"blocks.{layer}.{point}" for point in points):
                if name in acts:
                    rows[layer] = acts[name][0].float().norm(dim=-1).cpu().numpy()
        if not np.isnan(rows).all():
            norms[stream] = rows
    return norms


def _experts(model: Decoder, acts: Mapping[str, Tensor]) -> tuple[Experts, ...]:
    return tuple(
        Experts(
            layer,
            spec.ffn.n_experts,
            acts[f"blocks.{layer}.expert_ids"][0].cpu().numpy(),
            acts[f"blocks.{layer}.expert_weights"][0].float().cpu().numpy(),
        )
        for layer, spec in enumerate(model.spec.stack.blocks)
        if isinstance(spec.ffn, MoESpec)
    )


def _patterns(acts: Mapping[str, Tensor], n_layers: int) -> tuple[Float[np.ndarray, "_ query key"], ...]:
    time = acts["embed"].shape[1]
    none = np.zeros((0, time, time), np.float32)
    names = [f"blocks.{layer}.attn.pattern" for layer in range(n_layers)]
    return tuple(acts[name][0].float().cpu().numpy() if name in acts else none for name in names)


def _summary(layer: int, head: int, pattern: Float[np.ndarray, "query key"]) -> Head:
    time = len(pattern)
    # with fewer than three tokens in view "first", "previous" and "itself" are not yet three different ones
    queries = np.arange(min(2, time - 1), time)
    before = np.maximum(queries - 1, 0)
    others = pattern.copy()
    np.fill_diagonal(others, 0.0)
    if time > 2:
        others[:, 0] = 0.0
    query, key = np.unravel_index(int(others.argmax()), others.shape)
    return Head(
        layer,
        head,
        first=float(pattern[queries, 0].mean()),
        previous=float(pattern[queries, before].mean()),
        itself=float(pattern[queries, queries].mean()),
        query=int(query),
        key=int(key),
        weight=float(others[query, key]),
    )


def _lens_rows(lens: Lens, ids: Int[Tensor, " time"]) -> tuple[LensRow, ...]:
    return tuple(
        LensRow(
            point,
            lens.ids[row, 0].numpy(),
            lens.probs[row, 0].numpy(),
            lens.actual_rank[row, 0].numpy(),
            tuple((lens.ids[row, 0, :-1, 0] == ids[1:].cpu()).tolist()),
            lens.entropy[row, 0].numpy() * NATS_TO_BITS,
            lens.kl[row, 0].numpy() * NATS_TO_BITS,
        )
        for row, point in enumerate(lens.points)
    )


def look(model: AnyModel, text_or_ids: str | Sequence[int], top: int = 10, name: str = "model") -> Look:
    """Read a text (or token ids) once and keep everything worth seeing.

    A text is begun with the model's <|endoftext|>, as every training document was. Raises UsageError for a model that
    is no language model reading on, an empty text, one longer than the model's context, ids outside the vocabulary,
    and ``top`` below 1.
    """
    if top < 1:
        raise UsageError(f"top = {top}", "show at least 1 guess")
    model = _reads_on(model)
    device = next(model.parameters()).device
    ids = torch.tensor([_read(model, text_or_ids)], device=device)
    n_layers = len(model.spec.stack.blocks)
    wanted = {point for points in _STREAMS.values() for point in points}
    wanted |= {"attn.pattern", "expert_ids", "expert_weights"}
    names = [name for name in model.point_names() if name.startswith("blocks.") and name.split(".", 2)[2] in wanted]
    acts = capture(model, ids, ["embed", *names])
    residuals = {name: acts[name] for name in ("embed", *(f"blocks.{i}.resid_post" for i in range(n_layers)))}
    lens = logit_lens(model, residuals, ids, top=top)
    patterns = _patterns(acts, n_layers)

    read = reader(model.tokenizer)
    written = [read(token) for token in ids[0].tolist()]
    guessed = sorted({*ids[0].tolist(), *lens.ids.flatten().tolist()})
    rows = _lens_rows(lens, ids[0])
    return Look(
        model=ModelFacts(
            name,
            sum(parameter.numel() for parameter in model.parameters()),
            n_layers,
            max(len(pattern) for pattern in patterns),
            model.spec.stack.d_model,
            model.spec.vocab_size,
            model.spec.context,
        ),
        layers=tuple(map(_layer, model.spec.stack.blocks)),
        tokens=tuple(Token(i, prose(text), label(text)) for i, text in zip(ids[0].tolist(), written, strict=True)),
        labels={token: label(read(token)) for token in guessed},
        top_ids=rows[-1].ids,
        top_probs=rows[-1].probs,
        entropy=rows[-1].entropy,
        loss=lens.actual_nll[-1, 0].numpy(),
        rank=rows[-1].actual_rank,
        lens=rows,
        patterns=patterns,
        heads=tuple(_summary(i, h, head) for i, layer in enumerate(patterns) for h, head in enumerate(layer)),
        norms=_norms(acts, n_layers),
        experts=_experts(model, acts),
    )
