"""Modules that an adapter acts on: W' = W + s · B A in the place of a frozen W (Hu et al. 2021, section 4.1).

The module stays the object that it was, and its class becomes a subclass of the one that it had; so all names stay.
What adapters add stands under ``adapters``, a ``Change`` for each by its name, of which at most one is active::

    blocks.0.attn.q.weight                   W (d_out, d_in)      as before
    blocks.0.attn.q.adapters.mine.a          A (rank, d_in)       drawn
    blocks.0.attn.q.adapters.mine.b          B (d_out, rank)      0, so that an adapter begins as nothing
    blocks.0.attn.q.adapters.mine.magnitude  m (d_out,)           of DoRA only

With DoRA, W' = m · (W + s · B A) / ‖W + s · B A‖, a norm for each output (Liu et al. 2024, equation 5). The norm counts
as a constant in the backward (section 4.3 there). A table of tokens has its norm for each column, as peft has it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nn.grouped import grouped_linear
from pellucid.nn.heads import LMHead, MaskedLMHead
from pellucid.nn.loss import Product, logits_of
from pellucid.nn.moe import ExpertLinear
from pellucid.nn.quantised import Matrix, QuantisedEmbedding, QuantisedExperts, QuantisedLinear

INSTEAD = "instead_"  # before the name of a parameter whose other value a change keeps


class Change(nn.Module):
    """What one adapter does to one module.

    a, b, magnitude: as above; None where only whole parameters change. scaling: s. dropout: of what A reads, in
    training. shared: whether a table of tokens is changed in a tied head, too. The buffers ``instead_NAME`` hold the
    values of whole parameters: those of the adapter while it is not active, those of the base while it is.
    """

    a: nn.Parameter | None
    b: nn.Parameter | None
    magnitude: nn.Parameter | None

    def __init__(self, scaling: float = 1.0, dropout: float = 0.0, shared: bool = True):
        super().__init__()
        self.scaling, self.dropout, self.shared = scaling, dropout, shared
        self.a, self.b, self.magnitude = None, None, None

    @property
    def rank(self) -> int:
        """Columns of B; 0 where there are no factors."""
        return 0 if self.b is None else self.b.shape[-1]

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) of a change that has them."""
        assert self.a is not None and self.b is not None
        return self.a, self.b

    @property
    def instead(self) -> list[str]:
        """The names of the whole parameters that it changes."""
        return [name.removeprefix(INSTEAD) for name in self._buffers if name.startswith(INSTEAD)]

    def dropped(self, x: Tensor) -> Tensor:
        """What A reads, in the type of A."""
        a, _ = self.factors
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(a.dtype)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def update(self, x: Float[Tensor, "*axes d_in"]) -> Float[Tensor, "*axes d_out"]:
        """s · B A x."""
        a, b = self.factors
        return F.linear(F.linear(self.dropped(x), a), b) * self.scaling

    def difference(self) -> Float[Tensor, ...]:
        """s · B A, in float32 at least; for experts, that of each."""
        a, b = (factor.float() if factor.itemsize < 4 else factor for factor in self.factors)
        return self.scaling * (b @ a)

    @torch.no_grad()
    def gain(self, weight: Tensor, axis: int) -> Float[Tensor, " width"]:
        """1 / ‖W + s · B A‖ over ``axis``, by which the magnitude is multiplied."""
        return 1.0 / torch.linalg.vector_norm(weight + self.difference(), dim=axis)


class Adapters(nn.ModuleDict):
    """The changes of one module by the adapter's name. active: the one that acts; None: the module is as it was."""

    active: str | None = None

    def acting(self) -> Change | None:
        """The active change, if it has factors."""
        if self.active is None or self.active not in self:
            return None
        change = self[self.active]
        assert isinstance(change, Change)
        return change if change.a is not None else None


class Adapted(nn.Module):
    """Base of the classes that stand in for others. plain: the class of the module when nothing is adapted."""

    plain: ClassVar[type[nn.Module]]
    adapters: Adapters

    axis: ClassVar[int] = 1  # over which DoRA's norm goes

    def changes(self) -> list[Change]:
        """What each adapter does to it."""
        return [change for change in self.adapters.values() if isinstance(change, Change)]

    def multiplied(self, x: Tensor) -> Tensor:
        """x · Wᵀ, of W as it was before."""
        raise NotImplementedError

    def opened_weight(self) -> Tensor:
        """W in plain numbers, float32 at least."""
        weight = self.stored.opened(torch.float32) if isinstance(self, Matrix) else self.weight
        assert isinstance(weight, Tensor)
        return weight if weight.itemsize >= 4 else weight.float()

    def gain(self, change: Change) -> Tensor:
        """What DoRA multiplies each output by (or each column of a table of tokens)."""
        assert change.magnitude is not None
        return change.magnitude * change.gain(self.opened_weight().detach(), self.axis)

    def changed(self, x: Tensor, change: Change) -> Tensor:
        """x · W'ᵀ."""
        y = self.multiplied(x)
        y = y + change.update(x).to(y.dtype)
        return y if change.magnitude is None else y * self.gain(change).to(y.dtype)


class _Quantised(Adapted, Matrix):
    """The base of W stays quantised."""

    def multiplied(self, x: Tensor) -> Tensor:
        return self.multiply(x)

    def opened(self, dtype: torch.dtype) -> Any:
        """The plain module with the same adapters."""
        module = super().opened(dtype)
        become(module, FORMS[type(module)])
        module.adapters = self.adapters
        return module


class _Linear(Adapted):
    """x · W'ᵀ + b."""

    bias: nn.Parameter | None

    def forward(self, x: Float[Tensor, "*axes d_in"]) -> Float[Tensor, "*axes d_out"]:
        if (change := self.adapters.acting()) is None:
            return super().forward(x)
        y = self.changed(x, change)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class AdaptedLinear(_Linear, nn.Linear):  # pyright: ignore[reportIncompatibleMethodOverride]  (its x is "input")
    """A linear layer with adapters."""

    plain: ClassVar[type[nn.Module]] = nn.Linear

    def multiplied(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class AdaptedQuantisedLinear(_Linear, _Quantised, QuantisedLinear):
    """A quantised linear layer with adapters: its blocks stay as they are, and adapters are plain numbers."""

    plain: ClassVar[type[nn.Module]] = QuantisedLinear


class _Embedding(Adapted):
    """The rows of W' that ids name: B holds a row for each token, A is (rank, width)."""

    axis: ClassVar[int] = 0

    def forward(self, ids: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes width"]:
        rows = super().forward(ids)
        if (change := self.adapters.acting()) is None:
            return rows
        a, b = change.factors
        rows = rows + ((F.embedding(ids, b) @ a) * change.scaling).to(rows.dtype)
        return rows if change.magnitude is None else rows * self.gain(change).to(rows.dtype)

    def changed(self, x: Tensor, change: Change) -> Tensor:
        x = x if change.magnitude is None else x * self.gain(change).to(x.dtype)
        y = self.multiplied(x)
        return y + change.update(x).to(y.dtype)

    @property
    def product(self) -> Product:
        """What a tied head multiplies by: the table as it is adapted, or as it was where the adapter is not shared."""
        change = self.adapters.acting()
        if change is None or not change.shared:
            return self.weight if isinstance(self, nn.Embedding) else self.multiplied
        return lambda x: self.changed(x, change)


class AdaptedEmbedding(_Embedding, nn.Embedding):  # pyright: ignore[reportIncompatibleMethodOverride]  (as above)
    """A table of tokens with adapters."""

    plain: ClassVar[type[nn.Module]] = nn.Embedding

    def multiplied(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class AdaptedQuantisedEmbedding(_Embedding, _Quantised, QuantisedEmbedding):
    """A quantised table of tokens with adapters."""

    plain: ClassVar[type[nn.Module]] = QuantisedEmbedding


class _Experts(Adapted):
    """x · W'ᵀ of the expert that each row goes to: A is (experts, rank, d_in), B is (experts, d_out, rank)."""

    def forward(
        self, x: Float[Tensor, "pairs d_in"], expert: Int[Tensor, " pairs"], ends: Int[Tensor, " experts"]
    ) -> Float[Tensor, "pairs d_out"]:
        y = super().forward(x, expert, ends)
        if (change := self.adapters.acting()) is None:
            return y
        a, b = change.factors
        inner = grouped_linear(change.dropped(x).to(x.dtype), a.to(x.dtype), ends)
        return y + grouped_linear(inner, b.to(x.dtype), ends) * change.scaling


class AdaptedExperts(_Experts, ExpertLinear):
    """Experts' linear maps with adapters."""

    plain: ClassVar[type[nn.Module]] = ExpertLinear


class AdaptedQuantisedExperts(_Experts, _Quantised, QuantisedExperts):
    """Experts' quantised linear maps with adapters."""

    plain: ClassVar[type[nn.Module]] = QuantisedExperts


class _Head(Adapted, LMHead):
    """A head with adapters. A tied one has no W of its own: what is added then acts in the head alone."""

    def table(self, embedding: Product) -> Product:
        base, change = super().table(embedding), self.adapters.acting()
        if change is None:
            return base
        if change.magnitude is not None:
            return lambda x: self.changed(x, change)
        return lambda x: (y := logits_of(x, base)) + change.update(x).to(y.dtype)

    def multiplied(self, x: Tensor) -> Tensor:
        return self.multiply(x)


class AdaptedHead(_Head):
    """A language model's head with adapters."""

    plain: ClassVar[type[nn.Module]] = LMHead


class AdaptedMaskedHead(_Head, MaskedLMHead):
    """A masked language model's head with adapters."""

    plain: ClassVar[type[nn.Module]] = MaskedLMHead


FORMS: dict[type[nn.Module], type[Adapted]] = {
    form.plain: form
    for form in (
        AdaptedLinear,
        AdaptedQuantisedLinear,
        AdaptedEmbedding,
        AdaptedQuantisedEmbedding,
        AdaptedExperts,
        AdaptedQuantisedExperts,
        AdaptedHead,
        AdaptedMaskedHead,
    )
}


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another class; it stays the same object."""
    module.__class__ = kind


def form_of(path: str, module: nn.Module) -> type[Adapted] | None:
    """The class that adapts a module; None where there is none. Of other tables than that of tokens, all rows are read
    at once, so there is none."""
    if isinstance(module, nn.Embedding) and not path.endswith("tokens"):
        return None
    return type(module) if isinstance(module, Adapted) else FORMS.get(type(module))
