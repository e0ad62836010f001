"""From the activations of one text to the values of a look: measures of the first row, as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.errors import shown
from pellucid.interpret.lens import Lens
from pellucid.interpret.measures import cosines, expert_load, lengths, likeness, shares, strongest_links
from pellucid.look.seen import NATS_TO_BITS, Attention, Encoding, Experts, Guesses, Head, Layer, LensRow, Pooled
from pellucid.nn.models import Encoder
from pellucid.spec import (
    BlockSpec,
    ClassifierHeadSpec,
    MoESpec,
    PoolerHeadSpec,
    StackSpec,
    TaggerHeadSpec,
)

# what is measured of each layer -> the points that may hold it, by the kind of layer
STREAMS = {
    "resid_pre": ("resid_pre",),
    "mixer_out": ("attn_out", "rnn_out"),
    "cross_out": ("cross_out",),
    "ffn_out": ("ffn_out",),
    "resid_post": ("resid_post",),
    "state": ("rnn.h",),
}
# where patterns stand: over the text itself, and over an encoder's (a recurrence that looks back has them as its own)
OWN, ACROSS = ("attn.pattern",), ("cross.pattern", "rnn.pattern")
# everything that a look tells the point of, under the name that it has there
POINTS = {**STREAMS, "pattern": OWN, "cross": ACROSS, "experts": ("expert_ids",)}
Acts = Mapping[str, Tensor]  # by the points' names within one stack; (1, ...) each


def layer_facts(spec: BlockSpec) -> Layer:
    """What a layer is made of, in words."""
    return Layer(spec.mixer.name, "" if spec.ffn is None else spec.ffn.name)


def norms(acts: Acts, n_layers: int) -> dict[str, Float[np.ndarray, "layer time"]]:
    """Lengths of every layer's vectors, as ``Look.norms`` has them."""
    time = acts["embed"].shape[1]
    found: dict[str, np.ndarray] = {}
    for stream, points in STREAMS.items():
        rows = np.full((n_layers, time), np.nan, np.float32)
        for layer in range(n_layers):
            if name := _point(acts, layer, points):
                rows[layer] = lengths(acts[name])[0].cpu().numpy()
        if not np.isnan(rows).all():
            found[stream] = rows
    return found


def points(acts: Acts, n_layers: int, path: str) -> dict[str, tuple[str, ...]]:
    """Where each measure is read, layer by layer, as ``Look.points`` has it. path: of the stack within the model."""
    names = {what: [_point(acts, layer, each) for layer in range(n_layers)] for what, each in POINTS.items()}
    return {what: tuple(path + name if name else "" for name in each) for what, each in names.items() if any(each)}


def _point(acts: Acts, layer: int, points: Sequence[str]) -> str:
    """The first of ``points`` that this layer has, by its name within the stack; "" where it has none."""
    return next((name for point in points if (name := f"blocks.{layer}.{point}") in acts), "")


def experts(stack: StackSpec, acts: Acts) -> tuple[Experts, ...]:
    """Where each token was sent, in layers that have experts."""
    found: list[Experts] = []
    for layer, spec in enumerate(stack.blocks):
        if isinstance(spec.ffn, MoESpec):
            ids, weights = (acts[f"blocks.{layer}.expert_{what}"] for what in ("ids", "weights"))
            load = expert_load(ids, spec.ffn.n_experts)
            arrays = (x[0].cpu().numpy() for x in (ids, weights.float(), load))
            found.append(Experts(layer, spec.ffn.n_experts, *arrays))
    return tuple(found)


def attention(acts: Acts, n_layers: int, n_keys: int, *, both_ways: bool) -> Attention:
    """Every layer's patterns over its own text, and where each head looks."""
    found = _patterns(acts, n_layers, OWN, n_keys)
    heads: list[Head] = []
    for layer, pattern in enumerate(found):
        if pattern.shape[1]:
            links = strongest_links(pattern, first=False, last=not both_ways)
            looks = shares(pattern, both_ways=both_ways)
            heads += _heads(layer, {**vars(looks), **vars(links)})
    return Attention(tuple(pattern[0].numpy() for pattern in found), tuple(heads))


def attention_across(acts: Acts, n_layers: int, n_keys: int) -> Attention:
    """Every layer's patterns over another text, and where each head looks in it."""
    found = _patterns(acts, n_layers, ACROSS, n_keys)
    heads: list[Head] = []
    for layer, pattern in enumerate(found):
        if pattern.shape[1]:
            links = strongest_links(pattern, itself=True, first=False, last=False)
            ends = {"first": pattern[..., 0].mean(-1), "last": pattern[..., -1].mean(-1)}
            inside = dict.fromkeys(("previous", "itself", "following"), pattern.new_zeros(pattern.shape[:2]))
            heads += _heads(layer, {**ends, **inside, **vars(links)})
    return Attention(tuple(pattern[0].numpy() for pattern in found), tuple(heads))


def _heads(layer: int, measured: Mapping[str, Tensor]) -> list[Head]:
    columns = {name: values[0].tolist() for name, values in measured.items()}
    n_heads = len(columns["weight"])
    return [Head(layer, head, **{name: column[head] for name, column in columns.items()}) for head in range(n_heads)]


def _patterns(acts: Acts, n_layers: int, points: Sequence[str], n_keys: int) -> list[Float[Tensor, "1 _ query key"]]:
    """The patterns of every layer, at whichever of ``points`` it has; no heads where it has none."""
    found: list[Tensor] = []
    for layer in range(n_layers):
        name, none = _point(acts, layer, points), acts["embed"].new_zeros(1, 0, acts["embed"].shape[1], n_keys)
        found.append((acts[name] if name else none).float().cpu())
    return found


def guesses(lens: Lens, ids: Int[Tensor, " time"], ahead: int, masked: Sequence[int]) -> Guesses:
    """What the model guesses, after each layer and at last, from its logit lens."""
    rows = _lens_rows(lens, ids, ahead)
    loss, rank = lens.actual_nll[-1, 0].numpy().copy(), rows[-1].actual_rank.copy()
    hidden = list(masked)  # what stands there is the mask, which is no guess at what it hides
    loss[hidden], rank[hidden] = np.nan, 0
    return Guesses(ahead, rows[-1].ids, rows[-1].probs, rows[-1].entropy, loss, rank, rows, tuple(masked))


def _lens_rows(lens: Lens, ids: Int[Tensor, " time"], ahead: int) -> tuple[LensRow, ...]:
    """The lens without batch, in bits."""
    guessing = len(ids) - ahead
    return tuple(
        LensRow(
            point,
            lens.ids[row, 0].numpy(),
            lens.probs[row, 0].numpy(),
            lens.actual_rank[row, 0].numpy(),
            tuple((lens.ids[row, 0, :guessing, 0] == ids[ahead:].cpu()).tolist()),
            lens.entropy[row, 0].numpy() * NATS_TO_BITS,
            lens.kl[row, 0].numpy() * NATS_TO_BITS,
        )
        for row, point in enumerate(lens.points)
    )


def encoding(model: Encoder, acts: Acts, points: Sequence[str]) -> Encoding:
    """How alike tokens become along ``points``, and what the head says of the text."""
    alike = tuple(cosines(acts[point])[0].cpu().numpy() for point in points)
    classes, head = None, model.spec.head
    names: tuple[str, ...] = ()
    if isinstance(head, ClassifierHeadSpec | TaggerHeadSpec) and head.n_classes > 1:
        classes = acts["logits"][0].float().softmax(-1).cpu().numpy()
        names = tuple(map(shown, model.class_names or map(str, range(head.n_classes))))
    return Encoding(alike, _pooled(model, acts), classes, names)


def _pooled(model: Encoder, acts: Acts) -> Pooled | None:
    """The vector that the head makes of the text; None for a head that makes none."""
    head = model.spec.head
    pooler = head.pooler if isinstance(head, ClassifierHeadSpec) else head
    if not isinstance(pooler, PoolerHeadSpec):
        return None
    vector = next(x for name, x in acts.items() if name.endswith("pooled"))
    near = likeness(acts["final_norm"], vector)[0].cpu().numpy()
    return Pooled(pooler.take, pooler.dense, float(lengths(vector)[0]), near[:0] if pooler.dense else near)
