"""Weight names as data: a table of rows, each from their name to ours, with a transform that has an inverse.

Nothing is forgiven: every weight of the checkpoint and every weight of the model has a row, or is ignored by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size, Tensor, nn

from pellucid.errors import CheckpointError, suggest


@dataclass(frozen=True)
class Transform:
    """take: one tensor of theirs, and the shapes of ours, to the tensors of ours. give: the way back, exactly."""

    take: Callable[[Tensor, Sequence[Size]], Sequence[Tensor]]
    give: Callable[[Sequence[Tensor]], Tensor]

    def then(self, after: Transform) -> Transform:
        """This transform, and ``after`` on its one result."""
        return Transform(
            lambda theirs, shapes: after.take(self.take(theirs, shapes)[0], shapes),
            lambda ours: self.give([after.give(ours)]),
        )


SAME = Transform(lambda theirs, _: [theirs], lambda ours: ours[0])
TRANSPOSED = Transform(lambda theirs, _: [theirs.mT], lambda ours: ours[0].mT)
ROW = Transform(lambda theirs, _: [theirs[0]], lambda ours: ours[0][None])  # of a matrix with one row
STACKED = Transform(  # several of ours are the rows of one of theirs, as in a fused q, k, v
    lambda theirs, shapes: torch.split(theirs, [shape[0] for shape in shapes]), lambda ours: torch.cat(list(ours))
)


@dataclass(frozen=True)
class Row:
    """``theirs`` is ``ours`` after the transform; ``#`` stands for the number of a layer.

    ``*`` in ``theirs`` stands for the number of an expert: they have a tensor for each, a slice of ours along its first
    axis. A row counts only where the model has the weight: a table lists biases even if some models of the family have
    none.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Table:
    """A family's weights.

    rows: all that a model can have. ignored: names that may occur and that it has no use for. copies: (name, original),
    what a tied checkpoint may repeat, and must then equal bit for bit. base: a prefix that bare models leave out.
    versions: the same weights as other releases of their library name them; read where they fit better, never written.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    base: str = ""
    versions: tuple[Table, ...] = ()


@dataclass(frozen=True)
class _Link:
    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    part: int | None = None  # which slice of ours, where they have one tensor a slice


def _links(table: Table, ours: Mapping[str, Size]) -> list[_Link]:
    """The rows that count for a model with weights of these shapes, layer by layer. Raises where one has no row."""
    layers = [int(number[1]) for name in ours if (number := re.search(r"\.(\d+)\.", name))]
    links: list[_Link] = []
    for row in table.rows:
        for layer in range(max(layers, default=-1) + 1) if "#" in row.theirs else [0]:
            targets = tuple(name.replace("#", str(layer)) for name in row.targets)
            held = [ours[name] for name in targets if name in ours]
            theirs = row.theirs.replace("#", str(layer))
            if held and "*" in theirs:
                parts = range(held[0][0])
                links += [_Link(theirs.replace("*", str(part)), targets, row.transform, part) for part in parts]
            elif held:
                links.append(_Link(theirs, targets, row.transform))
    linked = {name for link in links for name in link.ours}
    if linked != set(ours):
        raise CheckpointError(
            f"this model and the table of the family do not fit: {_few(linked ^ set(ours))}",
            "build the model from the spec that the family's to_spec makes of the checkpoint's config",
        )
    return links


def _bare(theirs: Iterable[str], table: Table) -> str:
    """The prefix that this checkpoint leaves out."""
    return "" if any(name.startswith(table.base) for name in theirs) else table.base


def _version(theirs: Collection[str], ours: Mapping[str, Size], table: Table) -> Table:
    """Of the table and its other versions the one that knows most of these names; the table where none knows more."""

    def known(version: Table) -> int:
        bare = _bare(theirs, version)
        return sum(link.theirs.removeprefix(bare) in theirs for link in _links(version, ours))

    return max((table, *table.versions), key=known)


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _refuse_leftovers(theirs: Mapping[str, Tensor], links: Sequence[_Link], table: Table, bare: str) -> None:
    known = {link.theirs for link in links}
    missing, unmapped = known - theirs.keys(), theirs.keys() - known
    for copy, original in ((c.removeprefix(bare), o.removeprefix(bare)) for c, o in table.copies):
        if copy in unmapped and original in theirs:
            if not torch.equal(theirs[copy], theirs[original]):
                raise CheckpointError(
                    f"{copy} differs from {original}, but the config says that they are tied",
                    "set tie_word_embeddings to false in the config if the checkpoint really has both",
                )
            unmapped.discard(copy)
    forgiven = [re.escape(name.removeprefix(bare)).replace(r"\#", r"\d+") for name in table.ignored]
    unmapped = {name for name in unmapped if not any(re.fullmatch(pattern, name) for pattern in forgiven)}
    if missing and unmapped:
        raise CheckpointError(
            f"the checkpoint lacks {_few(missing)}; and this model has no place for {_few(unmapped)}",
            f"was one renamed? For {min(missing)}: {suggest(min(missing), unmapped)}",
        )
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {_few(missing)}", "it is incomplete, or its config is of another model"
        )
    if unmapped:
        raise CheckpointError(
            f"this model has no place for {_few(unmapped)}", "the config describes another model than the weights do"
        )


def to_ours(theirs: Mapping[str, Tensor], shapes: Mapping[str, Size], table: Table) -> dict[str, Tensor]:
    """Their tensors under our names, as views where that is possible. ``shapes``: those of our weights, by name.

    Raises CheckpointError naming each weight that is unmapped, missing, of another shape, or not of floating point.
    """
    table = _version(theirs, shapes, table)
    bare = _bare(theirs, table)
    links = [replace(link, theirs=link.theirs.removeprefix(bare)) for link in _links(table, shapes)]
    _refuse_leftovers(theirs, links, table, bare)
    taken: dict[str, list[Tensor]] = {}
    for link in links:
        tensor, wanted = theirs[link.theirs], [shapes[name][0 if link.part is None else 1 :] for name in link.ours]
        shape = link.transform.give([torch.empty(size, device="meta") for size in wanted]).shape
        if tensor.shape != shape:
            raise CheckpointError(
                f"{link.theirs} has the shape {tuple(tensor.shape)}, but the config makes it {tuple(shape)}",
                "the config describes another model than the weights do",
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{link.theirs} is {tensor.dtype}, not floating point", "load an unquantised checkpoint"
            )
        for name, ours in zip(link.ours, link.transform.take(tensor, wanted), strict=True):
            taken.setdefault(name, []).append(ours)
    sliced = {name for link in links if link.part is not None for name in link.ours}
    return {name: torch.stack(parts) if name in sliced else parts[0] for name, parts in taken.items()}


def to_theirs(ours: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The way back, for weights or what else has one tensor a weight, such as gradients. Copies are not repeated."""
    links = _links(table, {name: tensor.shape for name, tensor in ours.items()})
    return {
        link.theirs: link.transform.give(
            [ours[name] if link.part is None else ours[name][link.part] for name in link.ours]
        ).contiguous()
        for link in links
    }


def load_weights(model: nn.Module, theirs: Mapping[str, Tensor], table: Table) -> None:
    """Copy a checkpoint's weights into the model, all of them or, on an error, none; the model's dtype stays.

    Raises CheckpointError naming each weight that is unmapped, missing, of another shape, or not of floating point.
    """
    ours: dict[str, Tensor] = model.state_dict()
    taken = to_ours(theirs, {name: tensor.shape for name, tensor in ours.items()}, table)
    with torch.no_grad():
        for name, tensor in taken.items():
            ours[name].copy_(tensor)


def export_weights(model: nn.Module, table: Table) -> dict[str, Tensor]:
    """The weights under the family's names, as ``load_weights`` takes them; they may share memory with the model."""
    return to_theirs(model.state_dict(), table)
