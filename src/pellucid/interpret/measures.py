"""Numbers that describe activations, for whole batches: lengths, likeness, where heads look, how experts are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.nn.wide import wide, wide_dtype


def lengths(x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes"]:
    """Euclidean length of each vector, in float32 at least."""
    return wide(x).norm(dim=-1)


def cosines(x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time time"]:
    """Cosine between the vectors of every two tokens of a row, in [-1, 1]."""
    direction = F.normalize(wide(x), dim=-1)
    return (direction @ direction.mT).clamp(-1, 1)


def likeness(states: Float[Tensor, "batch time d"], vector: Float[Tensor, "batch d"]) -> Float[Tensor, "batch time"]:
    """Cosine between each token's state and the one vector of its row."""
    return F.cosine_similarity(wide(states), vector.to(wide_dtype(states.dtype))[:, None], dim=-1)


def expert_load(ids: Int[Tensor, "batch time top_k"], n_experts: int) -> Float[Tensor, "batch n_experts"]:
    """Share of each row's choices that fell on each expert."""
    flat = ids.flatten(1)
    return F.one_hot(flat, n_experts).sum(1).double() / max(1, flat.shape[1])


@dataclass(frozen=True)
class Shares:
    """Where each head looks: its mean attention to some places, over the queries for which they are different ones.

    first, last: the row's first and last token; previous, itself, following: relative to the query.
    """

    first: Float[Tensor, "batch heads"]
    previous: Float[Tensor, "batch heads"]
    itself: Float[Tensor, "batch heads"]
    following: Float[Tensor, "batch heads"]
    last: Float[Tensor, "batch heads"]


def shares(pattern: Float[Tensor, "batch heads time time"], *, both_ways: bool = False) -> Shares:
    """The shares of attention within a row.

    both_ways: the model sees what follows; otherwise the last two shares are 0.

    Left out, where the row is long enough: queries for which some of the places coincide (the first two and, both
    ways, the last two).
    """
    time = pattern.shape[-1]
    least, beyond = (2, 2) if both_ways and time > 4 else (min(2, time - 1), 0)
    queries = torch.arange(least, time - beyond, device=pattern.device)

    def mean(keys: Tensor) -> Tensor:
        return pattern[..., queries, keys].mean(-1)

    none = torch.zeros_like(pattern[..., 0, 0])
    return Shares(
        first=mean(torch.zeros_like(queries)),
        previous=mean((queries - 1).clamp(min=0)),
        itself=mean(queries),
        following=mean((queries + 1).clamp(max=time - 1)) if both_ways else none,
        last=mean(torch.full_like(queries, time - 1)) if both_ways else none,
    )


def rollout(
    patterns: Sequence[Float[Tensor, "batch _ time time"]], *, kept: float = 0.5
) -> Float[Tensor, "batch layer time time"]:
    """How much each token's state holds of each token that was read, after each layer: the product of all layers'
    mean patterns, of which a share ``kept`` stays where it is, as the residual stream does (Abnar & Zuidema 2020).

    patterns: of each layer, shallow to deep; its heads are averaged. Rows sum to 1 where those of the patterns do.
    """
    found: list[Tensor] = []
    for pattern in patterns:
        here = (1 - kept) * wide(pattern).mean(1)
        here = here + kept * torch.eye(here.shape[-1], dtype=here.dtype, device=here.device)
        found.append(here @ found[-1] if found else here)
    return torch.stack(found, 1)


@dataclass(frozen=True)
class Links:
    """The largest single weight of each head: from which query to which key."""

    query: Int[Tensor, "batch heads"]
    key: Int[Tensor, "batch heads"]
    weight: Float[Tensor, "batch heads"]


def strongest_links(
    pattern: Float[Tensor, "batch heads query key"], *, itself: bool = False, first: bool = False, last: bool = True
) -> Links:
    """The strongest link of each head. itself, first, last: whether a query's own key, the row's first and its last
    key count as well (the latter two often mark a beginning and an end; of fewer than three keys they always count).
    """
    n_queries, n_keys = pattern.shape[-2:]
    hidden = torch.zeros(n_queries, n_keys, dtype=torch.bool, device=pattern.device)
    if not itself:
        hidden.fill_diagonal_(True)
    if n_keys > 2:
        hidden[:, 0] |= not first
        hidden[:, -1] |= not last
    weight, at = pattern.masked_fill(hidden, 0.0).flatten(-2).max(-1)
    return Links(at // n_keys, at % n_keys, weight)
