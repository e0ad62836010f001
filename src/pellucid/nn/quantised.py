"""Modules whose matrix stays quantised in memory: the same names and the same forward as the plain ones.

The codes are a buffer called ``weight``, of bytes: it is saved, moved and copied like any buffer, and has no gradient.
The gradient with respect to what enters the module is exact. ``model.to(dtype)`` changes the type in which the numbers
are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Size, Tensor, nn
from torch.nn import functional as F

from pellucid.nn.moe import ExpertLinear
from pellucid.nn.products import linear, quantised_grouped, quantised_rows
from pellucid.nn.stored import Plain, Quantised, Stored, row_bytes


class Matrix(nn.Module):
    """A module with a matrix ``weight`` of its own: plain numbers, or blocks in the format ``kind``."""

    weight: Tensor | None
    kind: str | None = None

    @property
    def stored(self) -> Stored:
        """Its numbers as they are kept: plain, or blocks of codes."""
        assert self.weight is not None
        return Plain(self.weight) if self.kind is None else Quantised(self.weight, self.kind)

    def multiply(self, x: Float[Tensor, "*axes d_in"]) -> Float[Tensor, "*axes d_out"]:
        """x · Wᵀ."""
        return linear(x, self.stored)

    def hold(self, shape: Size, kind: str) -> None:
        """Put blocks in the place of a plain weight of this shape; they hold anything until they are copied in."""
        if "weight" in self._parameters:
            del self.weight
        self.register_buffer("weight", torch.empty(*shape[:-1], row_bytes(shape[-1], kind), dtype=torch.uint8))
        self.kind = kind

    def opened(self, dtype: torch.dtype) -> nn.Module:
        """The plain module that gives the same numbers, in this type; where none is needed, this one, made plain."""
        weight = nn.Parameter(self.stored.opened(dtype))
        del self.weight
        self.weight, self.kind = weight, None
        return self

    def extra_repr(self) -> str:
        """Shape and kind of what is quantised, for torch's printed form of a module."""
        return "" if self.kind is None else f"{tuple(self.stored.shape)}, {self.kind}"


class QuantisedLinear(Matrix):
    """x · Wᵀ + b, as ``nn.Linear``."""

    def __init__(self, plain: nn.Linear, kind: str):
        super().__init__()
        self.hold(plain.weight.shape, kind)
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias

    def opened(self, dtype: torch.dtype) -> nn.Linear:
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(self.stored.opened(dtype)), self.bias
        return plain

    def forward(self, x: Float[Tensor, "*axes d_in"]) -> Float[Tensor, "*axes d_out"]:
        return linear(x, self.stored, self.bias)


class QuantisedEmbedding(Matrix):
    """The rows of W that ids name, as ``nn.Embedding``: only these are opened."""

    like: Tensor

    def __init__(self, plain: nn.Embedding, kind: str):
        super().__init__()
        self.hold(plain.weight.shape, kind)
        self.num_embeddings, self.embedding_dim = plain.num_embeddings, plain.embedding_dim
        # what is opened has its type, which model.to(dtype) changes
        self.register_buffer("like", plain.weight.detach().new_empty(0), persistent=False)

    @property
    def product(self) -> Tensor | Callable[[Tensor], Tensor]:
        """What a tied head multiplies by."""
        return self.multiply

    def opened(self, dtype: torch.dtype) -> nn.Embedding:
        plain = nn.Embedding(self.num_embeddings, self.embedding_dim, device="meta")
        plain.weight = nn.Parameter(self.stored.opened(dtype))
        return plain

    def forward(self, ids: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes width"]:
        assert self.weight is not None and self.kind is not None
        return quantised_rows(self.weight, ids, self.kind, self.like.dtype)


class QuantisedExperts(Matrix):
    """One linear map for each expert, as ``ExpertLinear``: only those that are chosen are opened."""

    def __init__(self, plain: ExpertLinear, kind: str):
        super().__init__()
        self.hold(plain.weight.shape, kind)
        self.bias = plain.bias

    def forward(
        self, x: Float[Tensor, "pairs d_in"], expert: Int[Tensor, " pairs"], ends: Int[Tensor, " experts"]
    ) -> Float[Tensor, "pairs d_out"]:
        assert self.weight is not None and self.kind is not None
        y = quantised_grouped(x, self.weight, ends, self.kind)
        return y if self.bias is None else y + F.embedding(expert, self.bias).to(y.dtype)

    def opened(self, dtype: torch.dtype) -> ExpertLinear:
        with torch.device("meta"):
            plain = ExpertLinear(*self.stored.shape[:1], *reversed(self.stored.shape[1:]), bias=False)
        plain.weight, plain.bias = nn.Parameter(self.stored.opened(dtype)), self.bias
        return plain


# --- a model whose weights are quantised -----------------------------------------------------------------------------


def quantisable(model: nn.Module) -> set[str]:
    """The weights that a model can hold quantised: matrices that are multiplied by, and the table of tokens."""
    return {
        f"{path}.weight"
        for path, module in model.named_modules()
        if _form_of(path, module) is not None or (isinstance(module, Matrix) and module.weight is not None)
    }


def _form_of(path: str, module: nn.Module) -> Callable[[Any, str], Matrix] | None:
    """The class that takes a plain module's place; None where there is none, or none is needed."""
    if type(module) is nn.Linear:
        return QuantisedLinear
    if type(module) is ExpertLinear:
        return QuantisedExperts
    table = type(module) is nn.Embedding and path.endswith("tokens")  # of other embeddings, all rows are read
    return QuantisedEmbedding if table else None


def hold_quantised(model: nn.Module, kinds: Mapping[str, str]) -> None:
    """Put blocks of these formats in the place of these weights; the blocks hold anything until they are copied in.

    Raises KeyError for a weight that is not ``quantisable``.
    """
    for name, kind in kinds.items():
        path = name.removesuffix(".weight")
        parent, _, leaf = path.rpartition(".")
        plain = model.get_submodule(path)
        if (form := _form_of(path, plain)) is not None:
            setattr(model.get_submodule(parent), leaf, form(plain, kind))
        elif isinstance(plain, Matrix) and plain.weight is not None:
            plain.hold(plain.weight.shape, kind)
        else:
            raise KeyError(name)


def open_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Put plain weights of this type in the place of all quantised ones; they need more memory, and have gradients."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Matrix) and module.kind is not None:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.opened(dtype))


def stored_of(model: nn.Module) -> dict[str, Stored]:
    """All that a model keeps, by name: parameters, and buffers that are persistent.

    What several places share has one name, its first.
    """
    kinds = {f"{path}.weight": each.kind for path, each in model.named_modules() if isinstance(each, Matrix)}
    kept = model.state_dict(keep_vars=True).keys()
    return {
        name: Plain(tensor) if (kind := kinds.get(name)) is None else Quantised(tensor, kind)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name in kept
    }
