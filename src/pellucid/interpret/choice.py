"""What is kept of an activation: some layers, some tokens, some heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from pellucid.batch import Batch
from pellucid.errors import UsageError
from pellucid.nn.models import AnyModel
from pellucid.spec import DecoderSpec, EncoderDecoderSpec, EncoderSpec
from pellucid.taps.points import match_points, point_axes

Positions: TypeAlias = Literal["tokens"] | slice | Sequence[int] | Callable[[Batch], Bool[Tensor, "_ _"]]
TIME = ("time", "query", "key")  # names of the axis, in ``point_axes``, along which tokens stand
HEADS = ("heads", "kv_heads")


def layer_of(name: str) -> int | None:
    """The number of the block that a point stands in; None for one outside the blocks."""
    parts = name.removeprefix("encoder.").removeprefix("decoder.").split(".")
    return int(parts[1]) if parts[0] == "blocks" else None


def side_of(model: AnyModel, name: str) -> DecoderSpec | EncoderSpec:
    """The spec of the stack that a point stands in."""
    spec = model.spec
    if isinstance(spec, EncoderDecoderSpec):
        return spec.encoder if name.startswith("encoder.") else spec.decoder
    return spec


def side(name: str, batch: Batch) -> Batch:
    """What the part of the model that owns a point reads: an encoder beside a decoder the source."""
    if batch.source is None or not name.startswith("encoder."):
        return batch
    return Batch(batch.source.ids, batch.source.tokens, batch.labels)


def chosen_points(model: AnyModel, points: str | Iterable[str], layers: Sequence[int] | None = None) -> dict[str, str]:
    """Name -> axes of the points that names and globs match, in their order; of those in blocks, these layers'.

    Raises TapError, with the nearest names, where a glob matches nothing, and UsageError for a layer that there is not.
    """
    axes = point_axes(model)
    found = dict.fromkeys(
        name for names in match_points(axes, [points] if isinstance(points, str) else points) for name in names
    )
    wanted: dict[int, set[int]] = {}

    def kept(name: str) -> bool:
        if layers is None:
            return True
        layer, n_layers = layer_of(name), side_of(model, name).n_layers
        if n_layers not in wanted:
            wanted[n_layers] = set(numbers(layers, n_layers, "layer", "the model"))
        return layer is None or layer in wanted[n_layers]

    return {name: axes[name] for name in found if kept(name)}


def numbers(given: Sequence[int], size: int, what: str, of: str) -> list[int]:
    """Numbers from 0 to size - 1, negative ones counted from the end. Raises UsageError for others."""
    wrong = next((number for number in given if not -size <= number < size), None)
    if wrong is not None:
        raise UsageError(f"{what} {wrong} of {of}, which has {size}", f"{what}s run from {-size} to {size - 1}")
    return [number % size for number in given]


@dataclass(frozen=True)
class Choice:
    """Which positions and heads of an activation are kept; see ``record``."""

    positions: Positions | None = None
    heads: Sequence[int] | None = None

    def of(self, x: Tensor, axes: str, batch: Batch, name: str, model: AnyModel) -> Tensor:
        """The chosen part of an activation with these axes; ``batch`` is what its side of the model reads."""
        return _some_tokens(self._some_heads(x, axes, name, model), axes, batch, self.positions, name)

    def refuse_heads(self, model: AnyModel, axes: Mapping[str, str]) -> None:
        """Raise UsageError where a point has fewer heads than are asked for."""
        for name, of in axes.items():
            if self.heads is not None and set(of.split()) & set(HEADS):
                numbers(self.heads, n_heads(model, name), "head", name)

    def share(self, model: AnyModel, name: str, axes: str, time: int) -> float:
        """Which share of a point with ``time`` tokens is kept; 1 where that depends on the batch."""
        found = 1.0
        if self.heads is not None and set(axes.split()) & set(HEADS):
            found *= len(self.heads) / n_heads(model, name)
        if isinstance(self.positions, slice):
            found *= len(range(*self.positions.indices(time))) / max(1, time)
        elif isinstance(self.positions, Sequence) and not isinstance(self.positions, str):
            found *= len(self.positions) / max(1, time)
        return found

    def _some_heads(self, x: Tensor, axes: str, name: str, model: AnyModel) -> Tensor:
        axis = next((i for i, axis in enumerate(axes.split()) if axis in HEADS), None)
        if self.heads is None or axis is None:
            return x
        total = n_heads(model, name)
        wanted = numbers(self.heads, total, "head", name)
        group = total // x.shape[axis]  # heads that share one of keys and values
        return x.index_select(axis, torch.tensor([head // group for head in wanted], device=x.device))


def n_heads(model: AnyModel, name: str) -> int:
    """How many heads the layer of a point has: those of queries."""
    block = side_of(model, name).stack.blocks[layer_of(name) or 0]
    mixer = block.cross if ".cross." in name else block.mixer
    return int(getattr(mixer, "n_heads", 1))


def _some_tokens(x: Tensor, axes: str, batch: Batch, positions: Positions | None, name: str) -> Tensor:
    """Some tokens of an activation whose axes have these names; see ``record``. Without such an axis all of it."""
    axis = next((i for i, axis in enumerate(axes.split()) if axis in TIME), None)
    if positions is None or axis is None:
        return x
    if isinstance(positions, slice):
        return x.movedim(axis, 0)[positions].movedim(0, axis)
    if isinstance(positions, str) or callable(positions):
        here = batch.tokens.pos >= 0 if isinstance(positions, str) else positions(batch)
        if here.shape[1] != x.shape[axis]:
            raise UsageError(
                f"{name} has {x.shape[axis]} positions, and the batch {here.shape[1]}", "choose by a slice instead"
            )
        return x.movedim(axis, 1)[here.to(x.device)]
    places = numbers(positions, x.shape[axis], "position", name)
    return x.index_select(axis, torch.tensor(places, device=x.device, dtype=torch.long))
