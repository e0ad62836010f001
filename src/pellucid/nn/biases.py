"""Score terms that depend on distance: ALiBi and logarithmic buckets. Floats, added to scores; never masks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.spec import ALiBiSpec, BiasSpec, BucketedBiasSpec


def _distance(queries: Tokens, keys: Tokens) -> Tensor:
    """k_pos - q_pos, (rows, query, key)."""
    if queries.start is not None and keys.start is not None:
        return keys.pos[:1, None, :] - queries.pos[:1, :, None]
    return keys.pos[:, None, :] - queries.pos[:, :, None]


def alibi_slopes(n_heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... for n a power of two; others take in the next power's, as the authors' code.

    Press et al. 2021, section 3."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    extra = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (n_heads - power), 2)]
    return slopes + extra


class ALiBi(nn.Module):
    """-slope · |distance|; one fixed slope a head, nothing learned."""

    slopes: Tensor

    def __init__(self, n_heads: int):
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(n_heads)), persistent=False)

    def forward(self, queries: Tokens, keys: Tokens) -> Float[Tensor, "rows heads query key"]:
        return -self.slopes[:, None, None] * _distance(queries, keys).abs()[:, None]


class BucketedBias(nn.Module):
    """A learned score a head and bucket: one bucket a step when near, logarithmically wider up to ``max_distance``.

    Raffel et al. 2019, section 2.1. Looking back only, or (``both_directions``) half of the buckets for each side.
    """

    def __init__(self, spec: BucketedBiasSpec, n_heads: int):
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(spec.n_buckets, n_heads))

    def buckets(self, distance: Tensor) -> Tensor:
        """Bucket number of each k_pos - q_pos."""
        n, far = self.spec.n_buckets, self.spec.max_distance
        if self.spec.both_directions:
            n //= 2
            base, distance = (distance > 0) * n, distance.abs()
        else:
            base, distance = torch.zeros_like(distance), (-distance).clamp(min=0)
        exact = n // 2
        wide = (distance.clamp(min=1).float() / exact).log() / math.log(far / exact) * (n - exact)
        return base + torch.where(distance < exact, distance, (exact + wide.long()).clamp(max=n - 1))

    def forward(self, queries: Tokens, keys: Tokens) -> Float[Tensor, "rows heads query key"]:
        return nn.functional.embedding(self.buckets(_distance(queries, keys)), self.weight).movedim(-1, 1)


def build_bias(spec: BiasSpec | None, n_heads: int) -> ALiBi | BucketedBias | None:
    """The module that a spec describes."""
    if spec is None:
        return None
    return ALiBi(n_heads) if isinstance(spec, ALiBiSpec) else BucketedBias(spec, n_heads)
