"""Adapters put into a model: which modules by name, at which rank, and what is trained beside (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Literal, TypeVar

import torch
from torch import Size, nn

from pellucid.arguments import checked
from pellucid.errors import UsageError, suggest
from pellucid.nn.base import Model
from pellucid.nn.heads import LMHead
from pellucid.nn.moe import ExpertLinear
from pellucid.nn.quantised import Matrix, QuantisedExperts
from pellucid.surgery.adapted import Adapted, Adapters, Change, form_of
from pellucid.surgery.holding import attach, keep_whole, names, switch
from pellucid.surgery.ties import table_of, tied_head, untie
from pellucid.values import Value

M = TypeVar("M", bound=Model)

TOKENS = "embed.tokens"


@dataclass(frozen=True, kw_only=True)
class Ranked(Value):
    """Modules that match ``pattern`` have a rank or a strength of their own; None: the adapter's."""

    pattern: str
    rank: int | None = None
    alpha: float | None = None


@checked()
@dataclass(frozen=True, kw_only=True)
class LoRA(Value):
    """What is asked of an adapter. Raises UsageError for what none can be.

    targets, exclude: modules by name or pattern, of a model's own names (``adaptable`` lists them). rank: of A and B.
    alpha: the strength s = alpha / rank; with rslora alpha / √rank (Kalajdzievski 2023). ranked: other ranks and alphas
    for some modules; the first that matches decides. dora: see ``surgery.adapted``. dropout: of what A reads.
    also: parameters that are trained as a whole, by name or pattern, as "*.bias" or "head.weight".
    ties: what becomes of a table of tokens that a tied head uses too. "keep": it stays one matrix, and an adapter of
    either acts in both, once. "cut": an adapter acts only where it is named; when it is merged, the head becomes a
    matrix of its own first, as it does at once where ``also`` names head or table.
    """

    targets: tuple[str, ...] = ("*blocks.*",)
    exclude: tuple[str, ...] = ("*.router",)
    rank: int = 8
    alpha: float = 16.0
    ranked: tuple[Ranked, ...] = ()
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    also: tuple[str, ...] = ()
    ties: Literal["keep", "cut"] = "keep"

    def __post_init__(self) -> None:
        for rank in (self.rank, *(each.rank for each in self.ranked)):
            if rank is not None and rank < 1:
                raise UsageError(f"rank = {rank} cannot be used", "a rank is at least 1")
        for alpha in (self.alpha, *(each.alpha for each in self.ranked)):
            if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
                raise UsageError(f"alpha = {alpha} cannot be used", "a strength is greater than 0, and finite")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout = {self.dropout} cannot be used", "it must be from 0 up to, not including, 1")
        if not self.targets and not self.also:
            raise UsageError("the adapter changes nothing: targets and also are empty", "name modules")

    def strength(self, path: str) -> tuple[int, float]:
        """(rank, s) of the module of this name."""
        own = next((each for each in self.ranked if fnmatchcase(path, each.pattern)), Ranked(pattern=path))
        rank = self.rank if own.rank is None else own.rank
        alpha = self.alpha if own.alpha is None else own.alpha
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that an adapter can act on, by name: linear maps, experts, the table of tokens, the head."""
    return {path: module for path, module in model.named_modules() if form_of(path, module) is not None}


@checked()
def adapt(model: M, lora: LoRA = LoRA(), *, name: str = "adapter", seed: int = 0) -> M:
    """The model itself, with a new adapter that is active and changes nothing yet; ``train_only`` says that it learns.

    A is drawn by ``seed`` as ``nn.Linear`` draws, that of a table from N(0, 1); B is 0. Adapters are float32, whatever
    the base is. Raises UsageError for a pattern that matches nothing, a name that is taken, and what cannot be adapted.
    """
    refuse_name(model, name)
    chosen, whole = _chosen(model, lora), _whole(model, lora)
    for path, module in chosen.items():
        _refuse_unfit(path, module, lora)
    tied = tied_head(model)
    halves = () if tied is None else (f"{TOKENS}.weight", f"{tied[0]}.weight")
    if lora.ties == "cut" and any(path.endswith(halves) for path in whole):
        untie(model)
        tied = None
    generator = torch.Generator().manual_seed(seed)
    for path, module in chosen.items():
        rank, scaling = lora.strength(path)
        change = Change(scaling, lora.dropout, shared=tied is not None and lora.ties == "keep")
        shape = shape_of(model, path, module)
        attach(path, module, name, change)
        draw(module, change, shape, rank, generator, dora=lora.dora)
    for path in whole:
        keep_whole(model, path, name)
    switch(model, name)
    return model


def refuse_name(model: nn.Module, name: str) -> None:
    """Raise UsageError for a name that an adapter of this model cannot have."""
    if not name.isidentifier() or hasattr(Adapters(), name):
        raise UsageError(f"{name!r} is no name for an adapter", "use letters, digits and _, as in english_2")
    if name in names(model):
        raise UsageError(f"the model has an adapter {name!r} already", "choose another name, or remove that one first")


def _matching(patterns: tuple[str, ...], known: Iterable[str], what: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in known if fnmatchcase(name, pattern)}
        if not matched:
            raise UsageError(f"{what}: the model has nothing that {pattern!r} names", suggest(pattern, known))
        found |= matched
    return found


def _chosen(model: Model, lora: LoRA) -> dict[str, nn.Module]:
    """The modules that get factors; of a pair that stays tied, the table stands for both."""
    known, tied = adaptable(model), tied_head(model)
    found = _matching(lora.targets, list(known), "targets")
    found -= {path for path in found if any(fnmatchcase(path, pattern) for pattern in lora.exclude)}
    if lora.targets and not found:
        raise UsageError("targets: all that they name is excluded", "name others, or exclude fewer")
    if tied is not None and lora.ties == "keep" and tied[0] in found:
        path, _, embed = tied
        found = (found - {path}) | {path for path, module in known.items() if module is embed.tokens}
    return {path: module for path, module in known.items() if path in found}


def _whole(model: Model, lora: LoRA) -> list[str]:
    """The parameters of the base that are trained as a whole, in the model's order."""
    known = [path for path, _ in model.named_parameters() if "adapters" not in path.split(".")]
    tied = tied_head(model)
    if tied is not None and lora.ties == "cut":  # it is made as soon as it is needed
        known.append(f"{tied[0]}.weight")
    found = _matching(lora.also, known, "also")
    return [path for path in known if path in found]


def _refuse_unfit(path: str, module: nn.Module, lora: LoRA) -> None:
    if lora.dora and isinstance(module, ExpertLinear | QuantisedExperts):
        raise UsageError(f"{path} holds experts, for which DoRA is not defined", "exclude it, or use LoRA")
    if lora.dora and isinstance(module, LMHead) and module.weight is None:
        raise UsageError(f"{path} is tied: it has no matrix of its own for DoRA", "untie the model first")


def shape_of(model: Model, path: str, module: nn.Module) -> Size:
    """The shape of the matrix that a module multiplies by; of a tied head, that of the table."""
    tied = tied_head(model)
    if tied is not None and path == tied[0]:
        return table_of(tied[2]).shape
    if isinstance(module, Matrix):
        return module.stored.shape
    return module.get_parameter("weight").shape


def draw(module: nn.Module, change: Change, shape: Size, rank: int, generator: torch.Generator, *, dora: bool) -> None:
    """Factors that change nothing yet."""
    assert isinstance(module, Adapted)
    *experts, d_out, d_in = shape
    where = next(chain(module.parameters(), module.buffers()), torch.empty(0)).device
    a, bound = torch.empty(*experts, rank, d_in), d_in**-0.5
    a = a.normal_(generator=generator) if module.axis == 0 else a.uniform_(-bound, bound, generator=generator)
    change.a, change.b = nn.Parameter(a.to(where)), nn.Parameter(torch.zeros(*experts, d_out, rank, device=where))
    if dora:
        norm = torch.linalg.vector_norm(module.opened_weight().detach(), dim=module.axis)
        change.magnitude = nn.Parameter(norm)
