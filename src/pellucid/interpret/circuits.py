"""Heads as pairs of low-rank matrices (Elhage et al. 2021): QK says where a head looks, OV what it then writes.

Both are kept as two thin factors: a product of d_model × d_model numbers is never needed for norms and eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pellucid.arguments import checked
from pellucid.errors import UsageError
from pellucid.interpret.choice import numbers
from pellucid.interpret.linear_parts import matrix_of
from pellucid.nn.attention import Attention
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.wide import wide


@dataclass(frozen=True)
class Factored:
    """left · right, a matrix of rank r at most: left (d, r), right (r, d)."""

    left: Float[Tensor, "d r"]
    right: Float[Tensor, "r d"]

    @property
    def T(self) -> Factored:  # noqa: N802
        """The transpose."""
        return Factored(self.right.T, self.left.T)

    def __matmul__(self, other: Factored) -> Factored:
        return Factored(self.left, (self.right @ other.left) @ other.right)

    def matrix(self) -> Float[Tensor, "d d"]:
        """The product, written out."""
        return self.left @ self.right

    def norm(self) -> Float[Tensor, ""]:
        """The Frobenius norm, from the factors' Gram matrices."""
        return ((self.left.T @ self.left) * (self.right @ self.right.T)).sum().clamp(min=0).sqrt()

    def eigenvalues(self) -> Complex[Tensor, " r"]:
        """Those that are not zero by rank."""
        return torch.linalg.eigvals(self.right @ self.left)


@dataclass(frozen=True)
class HeadCircuit:
    """The weights of one head: what it asks for, q; what is asked of a token, k; what it takes there, v, and writes, o.

    Biases, norms and rotary positions are no part of them: they are the head's part of the linear maps alone.
    """

    q: Float[Tensor, "head_dim d_model"]
    k: Float[Tensor, "head_dim d_model"]
    v: Float[Tensor, "head_dim d_model"]
    o: Float[Tensor, "d_model head_dim"]

    @property
    def qk(self) -> Factored:
        """x_queryᵀ · QK · x_key is the score of two tokens, before scale and rotation."""
        return Factored(self.q.T, self.k)

    @property
    def ov(self) -> Factored:
        """OV · x_key is what the head writes where it looks at one token alone."""
        return Factored(self.o, self.v)


@torch.no_grad()
def circuits_of(model: Decoder | Encoder, layer: int) -> list[HeadCircuit]:
    """The weights of each head of a layer. Raises UsageError for a layer that there is not, or that has no heads."""
    (layer,) = numbers([layer], model.spec.n_layers, "layer", "the model")
    attention = model.layers[layer].mixer
    if not isinstance(attention, Attention):
        raise UsageError(f"blocks.{layer} has no attention heads", "choose a layer that has")
    d_model, head_dim = model.spec.d_model, attention.head_dim
    q, k, v = (wide(matrix_of(part, d_model, model.dtype)) for part in (attention.q, attention.k, attention.v))
    n_heads = q.shape[0] // head_dim
    o = wide(matrix_of(attention.o, n_heads * head_dim, model.dtype))
    group = n_heads // attention.n_kv_heads

    def rows(x: Tensor, head: int) -> Tensor:
        return x[head * head_dim : (head + 1) * head_dim]

    return [
        HeadCircuit(rows(q, head), rows(k, head // group), rows(v, head // group), rows(o.T, head).T)
        for head in range(n_heads)
    ]


@dataclass(frozen=True)
class Composition:
    """How much each head of a later layer reads, by its queries, keys and values, of what each earlier one writes.

    |A · B| / (|A| · |B|), Frobenius norms: 0 where they share no direction. ``chance``: what random matrices of these
    shapes give, 1 / √d_model.
    """

    q: Float[Tensor, "later earlier"]
    k: Float[Tensor, "later earlier"]
    v: Float[Tensor, "later earlier"]
    chance: float


@checked(model="give a decoder, e.g. of pellucid.load")
@torch.no_grad()
def composition(model: Decoder | Encoder, earlier: int, later: int) -> Composition:
    """The composition scores of the heads of two layers (Elhage et al. 2021, *Two-layer attention-only transformers*).

    Raises UsageError where ``earlier`` does not stand before ``later``, and for layers without heads.
    """
    early, late = circuits_of(model, earlier), circuits_of(model, later)
    first, second = numbers([earlier, later], model.spec.n_layers, "layer", "the model")
    if first >= second:
        raise UsageError(f"earlier = {earlier}, later = {later}", "a head reads what layers before it wrote")

    def scores(readers: list[Factored]) -> Float[Tensor, "later earlier"]:
        return torch.stack([torch.stack([_share(reader, head.ov) for head in early]) for reader in readers])

    return Composition(
        q=scores([head.qk.T for head in late]),
        k=scores([head.qk for head in late]),
        v=scores([head.ov for head in late]),
        chance=model.spec.d_model**-0.5,
    )


def _share(reader: Factored, writer: Factored) -> Float[Tensor, ""]:
    size = reader.norm() * writer.norm()
    return (reader @ writer).norm() / torch.where(size > 0, size, torch.ones_like(size))
