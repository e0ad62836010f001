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
from pellucid.families.source import Source
from pellucid.nn.init import build_undrawn
from pellucid.spec import ModelSpec

MOST_PARTS = 4096  # experts, of which each has a name: a damaged config must not ask for billions


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

    rows: all that a model can have. ignored: names that may occur and that it has no use for; ``**`` stands for any
    rest. copies: (name, original), what a tied checkpoint may repeat, and must then equal bit for bit. base: a prefix
    that bare models leave out. versions: the same weights as other releases of their library name them; read where they
    fit better, never written.
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

    def wanted(self, shapes: Mapping[str, Size]) -> list[Size]:
        """The shapes of what the transform takes and gives, of our weights' shapes."""
        return [shapes[name] if self.part is None else shapes[name][1:] for name in self.ours]


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
                if held[0][0] > MOST_PARTS:
                    raise CheckpointError(f"the config asks for {held[0][0]:,} of {theirs}", "the config is damaged")
                parts = range(held[0][0])
                links += [_Link(theirs.replace("*", str(part)), targets, row.transform, part) for part in parts]
            elif held:
                links.append(_Link(theirs, targets, row.transform))
    linked = {name for link in links for name in link.ours}
    if linked != set(ours):
        raise CheckpointError(
            f"this model and the table of the family do not fit: {few(linked ^ set(ours))}",
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


def few(names: Iterable[str]) -> str:
    """The first of these names, in alphabetical order, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _doubles(theirs: Collection[str], links: Sequence[_Link], table: Table, bare: str) -> list[tuple[str, str]]:
    """The tied (copy, original) that are both there. Raises for any weight missing, or with no place in the model."""
    known = {link.theirs for link in links}
    missing, unmapped = known - set(theirs), set(theirs) - known
    pairs = ((copy.removeprefix(bare), original.removeprefix(bare)) for copy, original in table.copies)
    doubles = [(copy, original) for copy, original in pairs if copy in unmapped and original in known - missing]
    unmapped -= {copy for copy, _ in doubles}
    forgiven = [
        re.escape(name.removeprefix(bare)).replace(r"\#", r"\d+").replace(r"\*\*", ".+") for name in table.ignored
    ]
    unmapped = {name for name in unmapped if not any(re.fullmatch(pattern, name) for pattern in forgiven)}
    if missing and unmapped:
        raise CheckpointError(
            f"the checkpoint lacks {few(missing)}; and this model has no place for {few(unmapped)}",
            f"was one renamed? For {min(missing)}: {suggest(min(missing), unmapped)}",
        )
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {few(missing)}",
            "it is incomplete, was saved without that part, or its config is of another model",
        )
    if unmapped:
        raise CheckpointError(
            f"this model has no place for {few(unmapped)}", "the config describes another model than the weights do"
        )
    return doubles


@dataclass(frozen=True)
class Plan:
    """What is to be read, in which order, and which repeated weights must equal which; nothing has been read yet."""

    links: tuple[_Link, ...]
    doubles: tuple[tuple[str, str], ...]


def plan(theirs: Mapping[str, Size], ours: Mapping[str, Size], table: Table) -> Plan:
    """How weights of ``theirs`` names and shapes become those of ``ours``.

    Raises CheckpointError naming each weight that is unmapped, missing, or of another shape.
    """
    table = _version(theirs, ours, table)
    bare = _bare(theirs, table)
    links = [replace(link, theirs=link.theirs.removeprefix(bare)) for link in _links(table, ours)]
    doubles = _doubles(theirs, links, table, bare)
    for link in links:
        shape = link.transform.give([torch.empty(size, device="meta") for size in link.wanted(ours)]).shape
        if theirs[link.theirs] != shape:
            raise CheckpointError(
                f"{link.theirs} has the shape {tuple(theirs[link.theirs])}, but the config makes it {tuple(shape)}",
                "the config describes another model than the weights do",
            )
    return Plan(tuple(links), tuple(doubles))


def _refuse_untied(copy: Tensor, original: Tensor, names: tuple[str, str]) -> None:
    if not torch.equal(copy, original):
        raise CheckpointError(
            f"{names[0]} differs from {names[1]}, but the config says that they are tied",
            "set tie_word_embeddings to false in the config if the checkpoint really has both",
        )


def to_ours(theirs: Mapping[str, Tensor], shapes: Mapping[str, Size], table: Table) -> dict[str, Tensor]:
    """Their tensors under our names, as views where that is possible. ``shapes``: those of our weights, by name.

    Raises CheckpointError naming each weight that is unmapped, missing, of another shape, or not of floating point.
    """
    found = plan({name: tensor.shape for name, tensor in theirs.items()}, shapes, table)
    for copy, original in found.doubles:
        _refuse_untied(theirs[copy], theirs[original], (copy, original))
    taken: dict[str, list[Tensor]] = {}
    for link in found.links:
        tensor = theirs[link.theirs]
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{link.theirs} is {tensor.dtype}, not floating point", "load an unquantised checkpoint"
            )
        for name, ours in zip(link.ours, link.transform.take(tensor, link.wanted(shapes)), strict=True):
            taken.setdefault(name, []).append(ours)
    sliced = {name for link in found.links if link.part is not None for name in link.ours}
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


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every weight by its name; one that several places share, by its first."""
    return dict(model.named_parameters())


def shapes_of(spec: ModelSpec) -> dict[str, Size]:
    """The shapes that a model of this spec has, by name; none of its memory is taken.

    Raises CheckpointError for a size whose product no number of torch holds.
    """
    try:
        with torch.device("meta"):
            return {name: weight.shape for name, weight in weights_of(build_undrawn(spec)).items()}
    except RuntimeError as error:
        raise CheckpointError(f"a model of these sizes is too large for any memory: {error}", "restore it") from error


def load_weights(model: nn.Module, theirs: Mapping[str, Tensor], table: Table) -> None:
    """Copy a checkpoint's weights into the model, all of them or, on an error, none; the model's dtype stays.

    Raises CheckpointError naming each weight that is unmapped, missing, of another shape, or not of floating point.
    """
    ours = weights_of(model)
    taken = to_ours(theirs, {name: weight.shape for name, weight in ours.items()}, table)
    with torch.no_grad():
        for name, tensor in taken.items():
            ours[name].copy_(tensor)


def stream_weights(model: nn.Module, source: Source, found: Plan, dtype: torch.dtype) -> None:
    """Read a planned checkpoint into the model, tensor by tensor; what is read becomes the weight, without a copy.

    So no more is held at once than the model and what one tensor's transform needs. Raises CheckpointError naming a
    tensor that is not of floating point or not finite; the model is then not to be used.
    """
    ours = weights_of(model)
    shapes = {name: weight.shape for name, weight in ours.items()}
    for weight in ours.values():
        weight.data = torch.empty(0, dtype=dtype)
    doubles: dict[str, list[str]] = {}
    for copy, original in found.doubles:
        doubles.setdefault(original, []).append(copy)
    for link in found.links:
        tensor = refuse_nonfinite(source.read(link.theirs, dtype), f"{source.where}: {link.theirs}")
        for copy in doubles.get(link.theirs, []):
            _refuse_untied(source.read(copy, dtype), tensor, (copy, link.theirs))
        for name, taken in zip(link.ours, link.transform.take(tensor, link.wanted(shapes)), strict=True):
            weight = ours[name]
            if link.part is None:
                weight.data = _alone(taken)
                continue
            if weight.numel() == 0:
                weight.data = torch.empty(shapes[name], dtype=dtype)
            weight.data[link.part] = taken


def refuse_nonfinite(tensor: Tensor, what: str) -> Tensor:
    """The tensor itself. Raises CheckpointError where it holds NaN, infinity, or what its type cannot hold."""
    if tensor.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor)):  # NaN is both extremes
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{what} holds NaN or infinite numbers in {kind}", "use another copy, or a type of larger range"
        )
    return tensor


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory that it shares with no other, and with its rows in order."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def export_weights(model: nn.Module, table: Table) -> dict[str, Tensor]:
    """The weights under the family's names, as ``load_weights`` takes them; they may share memory with the model."""
    return to_theirs({name: weight.detach() for name, weight in weights_of(model).items()}, table)
