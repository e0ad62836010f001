"""From captured activations to the numbers of a look: patterns and their habits, norms, experts, likeness, poolings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.interpret.lens import Lens
from pellucid.look.seen import NATS_TO_BITS, Experts, Head, Layer, LensRow, Pooled
from pellucid.nn.models import Encoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    ClassifierHeadSpec,
    LinearAttentionSpec,
    MoESpec,
    PoolerHeadSpec,
    StackSpec,
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
Acts = Mapping[str, Tensor]  # by the points' names within one stack


def layer_facts(spec: BlockSpec) -> Layer:
    """What a layer is made of, in words."""
    mixer = spec.mixer
    if isinstance(mixer, AttentionSpec):
        mixes = "attention"
    else:
        mixes = "linear attention" if isinstance(mixer, LinearAttentionSpec) else mixer.cell.upper()
    return Layer(mixes, "" if spec.ffn is None else "experts" if isinstance(spec.ffn, MoESpec) else "feed-forward")


def norms(acts: Acts, n_layers: int) -> dict[str, Float[np.ndarray, "layer time"]]:
    """Lengths of every layer's vectors, as ``Look.norms`` has them."""
    time = acts["embed"].shape[1]
    found: dict[str, np.ndarray] = {}
    for stream, points in STREAMS.items():
        rows = np.full((n_layers, time), np.nan, np.float32)
        for layer in range(n_layers):
            for name in (f"blocks.{layer}.{point}" for point in points):
                if name in acts:
                    rows[layer] = acts[name][0].float().norm(dim=-1).cpu().numpy()
        if not np.isnan(rows).all():
            found[stream] = rows
    return found


def experts(stack: StackSpec, acts: Acts) -> tuple[Experts, ...]:
    """Where each token was sent, in layers that have experts."""
    return tuple(
        Experts(
            layer,
            spec.ffn.n_experts,
            acts[f"blocks.{layer}.expert_ids"][0].cpu().numpy(),
            acts[f"blocks.{layer}.expert_weights"][0].float().cpu().numpy(),
        )
        for layer, spec in enumerate(stack.blocks)
        if isinstance(spec.ffn, MoESpec)
    )


def patterns(
    acts: Acts, n_layers: int, points: tuple[str, ...], n_keys: int
) -> tuple[Float[np.ndarray, "_ query key"], ...]:
    """Attention (heads, query, key) of every layer at whichever of ``points`` it has; no heads where it has none."""
    found: list[np.ndarray] = []
    for layer in range(n_layers):
        names = [name for point in points if (name := f"blocks.{layer}.{point}") in acts]
        none = np.zeros((0, acts["embed"].shape[1], n_keys), np.float32)
        found.append(acts[names[0]][0].float().cpu().numpy() if names else none)
    return tuple(found)


def habits(layer: int, head: int, pattern: Float[np.ndarray, "query key"], both_ways: bool) -> Head:
    """Where a head looks within its own text."""
    time = len(pattern)
    # with few tokens in view "first", "previous", "itself" and so on are not yet different ones
    least, beyond = (2, 2) if both_ways and time > 4 else (min(2, time - 1), 0)
    queries = np.arange(least, time - beyond)
    after = np.minimum(queries + 1, time - 1)
    query, key, weight = _strongest(pattern, both_ways, own=True)
    return Head(
        layer,
        head,
        first=float(pattern[queries, 0].mean()),
        previous=float(pattern[queries, np.maximum(queries - 1, 0)].mean()),
        itself=float(pattern[queries, queries].mean()),
        query=query,
        key=key,
        weight=weight,
        following=float(pattern[queries, after].mean()) if both_ways else 0.0,
        last=float(pattern[queries, -1].mean()) if both_ways else 0.0,
    )


def cross_habits(layer: int, head: int, pattern: Float[np.ndarray, "query key"]) -> Head:
    """Where a head looks in another text."""
    query, key, weight = _strongest(pattern, both_ways=True, own=False)
    first, last = float(pattern[:, 0].mean()), float(pattern[:, -1].mean())
    return Head(layer, head, first, 0.0, 0.0, query, key, weight, 0.0, last)


def _strongest(pattern: Float[np.ndarray, "query key"], both_ways: bool, own: bool) -> tuple[int, int, float]:
    """The largest weight but on keys that mark a beginning or an end, and on the query ``own`` self."""
    others = pattern.copy()
    if own:
        np.fill_diagonal(others, 0.0)
    if others.shape[1] > 2:
        others[:, 0] = 0.0
        if both_ways:
            others[:, -1] = 0.0
    query, key = np.unravel_index(int(others.argmax()), others.shape)
    return int(query), int(key), float(others[query, key])


def lens_rows(lens: Lens, ids: Int[Tensor, " time"], ahead: int) -> tuple[LensRow, ...]:
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


def alike(acts: Acts, points: list[str]) -> tuple[Float[np.ndarray, "time time"], ...]:
    """Cosines between the states of all tokens, at each point."""
    directions = (F.normalize(acts[point][0].float(), dim=-1) for point in points)
    return tuple((x @ x.mT).clamp(-1, 1).cpu().numpy() for x in directions)


def pooled(model: Encoder, acts: Acts) -> Pooled | None:
    """The vector that the head makes of the text; None for a head that makes none."""
    head = model.spec.head
    pooler = head.pooler if isinstance(head, ClassifierHeadSpec) else head
    if not isinstance(pooler, PoolerHeadSpec):
        return None
    vector = next(x for name, x in acts.items() if name.endswith("pooled"))[0].float()
    states = acts["final_norm"][0].float()
    near = F.cosine_similarity(states, vector[None], dim=-1).cpu().numpy()
    return Pooled(pooler.take, pooler.dense, float(vector.norm()), near[:0] if pooler.dense else near)
