"""Weight names as data: a table of rows, each from their name to ours, with a transform that has an inverse.

Nothing is forgiven: every weight of the checkpoint and every weight of the model has a row, or is ignored by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size, Tensor

from pellucid.errors import CheckpointError, suggest

MOST_PARTS = 4096  # experts: each gets a name, so a damaged config must not ask for billions of them


@dataclass(frozen=True)
class Transform:
    """How one published tensor becomes one or several of ours, and back.

    take: turns their tensor into ours, given the shapes of ours. give: the exact inverse. by_rows: whether both only
    rename, cut, join or move whole rows. A row of quantised blocks goes through such a transform as it is; for any
    other, the tensor must be opened.
    """

    take: Callable[[Tensor, Sequence[Size]], Sequence[Tensor]]
    give: Callable[[Sequence[Tensor]], Tensor]
    by_rows: bool = False

    def then(self, after: Transform) -> Transform:
        """This transform, and ``after`` on its one result."""
        return Transform(
            lambda theirs, shapes: after.take(self.take(theirs, shapes)[0], shapes),
            lambda ours: self.give([after.give(ours)]),
            self.by_rows and after.by_rows,
        )


SAME = Transform(lambda theirs, _: [theirs], lambda ours: ours[0], by_rows=True)
TRANSPOSED = Transform(lambda theirs, _: [theirs.mT], lambda ours: ours[0].mT)
ROW = Transform(lambda theirs, _: [theirs[0]], lambda ours: ours[0][None])  # a matrix with one row becomes a vector
STACKED = Transform(  # a fused tensor, such as q, k and v in one: its rows are cut into several of ours
    lambda theirs, shapes: torch.split(theirs, [shape[0] for shape in shapes]),
    lambda ours: torch.cat(list(ours)),
    by_rows=True,
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


def projection(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a weight and of its bias."""
    return Row(f"{theirs}.weight", f"{ours}.weight"), Row(f"{theirs}.bias", f"{ours}.bias")


@dataclass(frozen=True)
class Table:
    """A family's weights.

    rows: all that a model can have. ignored: names that may occur and that it has no use for; ``**`` stands for any
    rest. copies: (name, original), other names of one tensor: a file may have it under one of them only, or repeat it,
    and then all must be equal bit for bit. base: a prefix that bare models leave out. versions: the same weights as
    other releases of their library name them; read where they fit better, never written.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    base: str = ""
    versions: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Link:
    """A row for one layer, or for one expert of it: a published tensor, and the weights of ours that it becomes."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    part: int | None = None  # which slice of our weight this is, where each slice is a published tensor of its own

    def wanted(self, shapes: Mapping[str, Size]) -> list[Size]:
        """The shapes of what the transform takes and gives, of our weights' shapes."""
        return [shapes[name] if self.part is None else shapes[name][1:] for name in self.ours]


def links_of(table: Table, ours: Mapping[str, Size]) -> list[Link]:
    """The rows that count for a model with weights of these shapes, layer by layer. Raises where one has no row."""
    layers = [int(number[1]) for name in ours if (number := re.search(r"\.(\d+)\.", name))]
    links: list[Link] = []
    for row in table.rows:
        for layer in range(max(layers, default=-1) + 1) if "#" in row.theirs else [0]:
            targets = tuple(name.replace("#", str(layer)) for name in row.targets)
            held = [ours[name] for name in targets if name in ours]
            theirs = row.theirs.replace("#", str(layer))
            if held and "*" in theirs:
                if held[0][0] > MOST_PARTS:
                    raise CheckpointError(f"the config asks for {held[0][0]:,} of {theirs}", "the config is damaged")
                parts = range(held[0][0])
                links += [Link(theirs.replace("*", str(part)), targets, row.transform, part) for part in parts]
            elif held:
                links.append(Link(theirs, targets, row.transform))
    linked = {name for link in links for name in link.ours}
    if linked != set(ours):
        raise CheckpointError(
            f"this model and the table of the family do not fit: {few(linked ^ set(ours))}",
            "build the model from the spec that the family's to_spec makes of the checkpoint's config",
        )
    return links


def _bare(theirs: Iterable[str], table: Table) -> str:
    """The prefix that this checkpoint leaves out of every name; "" where it has it."""
    return "" if any(name.startswith(table.base) for name in theirs) else table.base


def _version(theirs: Collection[str], ours: Mapping[str, Size], table: Table) -> Table:
    """The version of the table that knows most of these names; the table itself where none knows more."""

    def known(version: Table) -> int:
        bare = _bare(theirs, version)
        return sum(link.theirs.removeprefix(bare) in theirs for link in links_of(version, ours))

    return max((table, *table.versions), key=known)


def few(names: Iterable[str]) -> str:
    """The first of these names, in alphabetical order, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


@dataclass(frozen=True)
class Double:
    """Two tensors of a checkpoint that must be equal, since the model has one for both.

    own: whether the model would have a weight of its own for the first if it were not tied.
    """

    copy: str
    original: str
    own: bool


def _named(links: Sequence[Link], copies: Sequence[tuple[str, str]], theirs: Collection[str]) -> list[Link]:
    """The links, each with the name of its tensor in this checkpoint: the usual one, or else one of its copies."""
    known = {link.theirs for link in links}
    others = {
        original: copy
        for copy, original in reversed(copies)
        if original not in theirs and copy in theirs and copy not in known
    }
    return [replace(link, theirs=others.get(link.theirs, link.theirs)) for link in links]


def _doubles(
    theirs: Collection[str], links: Sequence[Link], copies: Sequence[tuple[str, str]], heads: Collection[str]
) -> list[Double]:
    """The tensors that this checkpoint holds twice. heads: their names for what an untied model has besides."""
    at = {link.theirs for link in links}
    doubles: list[Double] = []
    for copy, original in copies:
        group = [original, *(name for name, first in copies if first == original)]
        kept = next((name for name in group if name in at), None)
        if copy in theirs and copy not in at and kept is not None and kept in theirs:
            doubles.append(Double(copy, kept, copy in heads))
    return doubles


def _refuse_others(
    theirs: Collection[str], links: Sequence[Link], doubles: Collection[str], table: Table, bare: str
) -> None:
    """Raise CheckpointError for any weight missing, or with no place in the model."""
    known = {link.theirs for link in links}
    missing, unmapped = known - set(theirs), set(theirs) - known - set(doubles)
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
        tied = missing <= {copy.removeprefix(bare) for copy, _ in table.copies}
        raise CheckpointError(
            f"the checkpoint lacks {few(missing)}",
            "it was saved without that part, or else it is tied: then set tie_word_embeddings to true in config.json"
            if tied
            else "it is incomplete, was saved without that part, or its config is of another model",
        )
    if unmapped:
        raise CheckpointError(
            f"this model has no place for {few(unmapped)}", "the config describes another model than the weights do"
        )


@dataclass(frozen=True)
class Plan:
    """What is to be read, in which order, and which repeated tensors must be equal; nothing has been read yet."""

    links: tuple[Link, ...]
    doubles: tuple[Double, ...]

    def stays(self, kinds: Mapping[str, str], able: set[str]) -> dict[str, str]:
        """The weights that can stay quantised, each with its format. kinds: the formats of their tensors, by their
        names. able: the weights of ours that the model can hold quantised.

        Every tensor that becomes a part of such a weight has one format, and is moved by whole rows only.
        """
        found: dict[str, set[str | None]] = {}
        for link in self.links:
            moves = link.transform.by_rows and able.issuperset(link.ours)
            for name in link.ours:
                found.setdefault(name, set()).add(kinds.get(link.theirs) if moves else None)
        return {name: kind for name, each in found.items() if len(each) == 1 and (kind := next(iter(each))) is not None}


def plan(theirs: Mapping[str, Size], ours: Mapping[str, Size], table: Table) -> Plan:
    """How weights of ``theirs`` names and shapes become those of ``ours``.

    Raises CheckpointError naming each weight that is unmapped, missing, or of another shape.
    """
    rows = {row.theirs for version in (table, *table.versions) for row in version.rows}
    table = _version(theirs, ours, table)
    bare = _bare(theirs, table)
    usual = [replace(link, theirs=link.theirs.removeprefix(bare)) for link in links_of(table, ours)]
    copies = [(copy.removeprefix(bare), original.removeprefix(bare)) for copy, original in table.copies]
    links = _named(usual, copies, theirs)
    doubles = _doubles(theirs, links, copies, {name.removeprefix(bare) for name in rows})
    _refuse_others(theirs, links, {double.copy for double in doubles}, table, bare)
    for link in links:
        shape = link.transform.give([torch.empty(size, device="meta") for size in link.wanted(ours)]).shape
        if theirs[link.theirs] != shape:
            raise CheckpointError(
                f"{link.theirs} has the shape {tuple(theirs[link.theirs])}, but the config makes it {tuple(shape)}",
                "the config describes another model than the weights do",
            )
    return Plan(tuple(links), tuple(doubles))
