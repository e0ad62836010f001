"""An adapter merged into the weights: the model is a plain one then, as fast as before; and it can be taken out again.

W' is made in float32 at least and rounded once to the type of W. A sum cannot be undone by a difference: of weights in
bfloat16, less than half would be what they were. So the originals are kept until the merge is undone or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pellucid.arguments import checked
from pellucid.errors import UsageError
from pellucid.nn.base import Model
from pellucid.nn.moe import ExpertLinear
from pellucid.nn.quantised import Matrix, QuantisedEmbedding, QuantisedExperts, QuantisedLinear
from pellucid.surgery.adapted import Adapted, become
from pellucid.surgery.holding import active, detach, held
from pellucid.surgery.ties import tied_head

Undo: TypeAlias = Callable[[], None]
# what a quantised module is when its weight is plain
OPENED: dict[type[nn.Module], type[nn.Module]] = {
    QuantisedLinear: nn.Linear,
    QuantisedEmbedding: nn.Embedding,
    QuantisedExperts: ExpertLinear,
}


class Merged:
    """What a merge took out of a model. ``undo`` puts it back: weights to the bit, and all adapters."""

    def __init__(self, undos: list[Undo]):
        self._undos, self._undone = undos, False

    def undo(self) -> None:
        """The model as it was before the merge. Raises UsageError the second time."""
        if self._undone:
            raise UsageError("this merge is undone already", "merge again first")
        for undo in reversed(self._undos):
            undo()
        self._undone = True


@checked()
def merge(model: Model) -> Merged:
    """Put the active adapter into the weights and take all adapters off; its logits stay the same up to rounding.

    A quantised weight becomes a plain one. Raises UsageError where no adapter is active, or where one acts on one side
    only of a table that two use (``ties.untie`` gives the head a matrix of its own).
    """
    if active(model) is None:
        raise UsageError("no adapter is active, so there is nothing to merge", "switch to one first")
    return _merge(model)


@contextmanager
def plain(model: Model) -> Iterator[None]:
    """The model without adapters for a while, as other tools know it: the active one is merged, if there is one.

    Afterwards it is what it was, to the bit. Raises UsageError as ``merge`` does.
    """
    merged = _merge(model)
    try:
        yield
    finally:
        merged.undo()


def _merge(model: Model) -> Merged:
    _refuse_one_sided(model)
    merged = {path: _merged_weight(module) for path, module, _ in held(model)}
    undos: list[Undo] = []
    for path, module, _ in held(model):
        weight = merged[path]
        undos.append(_reattach(module))
        if weight is not None:
            undos.append(_replace(module, weight))
    return Merged(undos)


def _refuse_one_sided(model: Model) -> None:
    if (found := tied_head(model)) is None:
        return
    path, head, embed = found
    of_head = head.adapters.acting() if isinstance(head, Adapted) else None
    of_table = embed.tokens.adapters.acting() if isinstance(embed.tokens, Adapted) else None
    if of_head is not None or (of_table is not None and not of_table.shared):
        raise UsageError(
            f"{path} and the table of tokens are one matrix, and the adapter acts in one of them only",
            "pellucid.surgery.ties.untie(model) makes two of it first",
        )


@torch.no_grad()
def _merged_weight(module: nn.Module) -> Tensor | None:
    """W' of a module, in its type; None where only whole parameters are changed, which stand in their place already."""
    change = module.adapters.acting() if isinstance(module, Adapted) else None
    if change is None:
        return None
    assert isinstance(module, Adapted)
    weight = module.opened_weight()
    total = weight + change.difference().to(weight.dtype)
    if change.magnitude is not None:
        total = total * module.gain(change).unsqueeze(module.axis).to(weight.dtype)
    kept = module.weight
    assert isinstance(kept, Tensor)
    return total.to(kept.dtype if kept.is_floating_point() else change.factors[0].dtype)


def _reattach(module: nn.Module) -> Undo:
    kind = type(module)
    adapters = detach(module)
    assert adapters is not None

    def undo() -> None:
        module.adapters = adapters
        become(module, kind)

    return undo


def _replace(module: nn.Module, weight: Tensor) -> Undo:
    """Put a plain weight into a module that may hold a quantised one; its class is then the plain one, too."""
    kind, before = type(module), dict(module.named_parameters(recurse=False)).get("weight")
    parameter = nn.Parameter(weight, requires_grad=before is not None and before.requires_grad)
    if before is not None:
        module.weight = parameter

        def undo() -> None:
            module.weight = before

        return undo
    assert isinstance(module, Matrix)
    blocks, form = module.weight, module.kind
    assert blocks is not None
    del module.weight
    module.weight, module.kind = parameter, None
    added: list[str] = []
    if (plain := OPENED.get(kind)) is not None:
        if plain is nn.Embedding:  # it has settings that the quantised table does not know
            missing = {name: value for name, value in vars(nn.Embedding(1, 1)).items() if name not in vars(module)}
            vars(module).update(missing)
            added = list(missing)
        become(module, plain)

    def close() -> None:
        for name in added:
            del vars(module)[name]
        become(module, kind)
        del module.weight
        module.register_buffer("weight", blocks)
        module.kind = form

    return close
