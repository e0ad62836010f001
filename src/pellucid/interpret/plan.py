"""What a recording will take, said before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pellucid.batch import Batch
from pellucid.engine.memory import gigabytes, require
from pellucid.interpret.choice import Choice, layer_of, n_heads, side_of
from pellucid.nn.models import AnyModel


@dataclass(frozen=True)
class Plan:
    """The memory of one recorded batch, in bytes; an estimate, and exact where all axes of the points have known sizes.

    rows, time: of the batch. passing: what the points hold while the model runs, on the device ``where``. kept: what is
    kept of it, on the device ``to``. per_token: ``passing`` of one more token a row.
    """

    points: tuple[str, ...]
    rows: int
    time: int
    passing: int
    kept: int
    where: torch.device
    to: torch.device
    per_token: int

    def __str__(self) -> str:
        points = "a point" if len(self.points) == 1 else f"{len(self.points):,} points"
        size = f"{gigabytes(self.passing)} while the model runs, {gigabytes(self.kept)} kept on {self.to}"
        return f"{points} of {self.rows} × {self.time} tokens: {size}"

    def refuse_too_large(self) -> None:
        """Raise TooLargeError where that does not fit into the memory that is free."""
        what = f"recording {len(self.points)} points of {self.rows} × {self.time} tokens"

        def remedy(free: int) -> str:
            fitting = min(self.time, max(0, free // max(1, self.per_token)))
            return f"about {fitting:,} tokens a row would fit: read fewer points, rows or tokens"

        # what is kept as it is shares the memory of what passes
        own = self.kept if self.kept < self.passing or self.to != self.where else 0
        here = self.where == self.to
        require(self.passing + (own if here else 0), what, remedy, self.where)
        if not here:
            require(self.kept, f"keeping {what}", remedy, self.to)


def planned(
    model: AnyModel,
    points: Mapping[str, str],
    batch: Batch,
    choice: Choice,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """What recording these points (name -> axes) of a batch takes; dtype and device as of ``record``."""
    own, time = model.dtype.itemsize, batch.ids.shape[1]
    sizes: dict[str, dict[str, int]] = {}  # one for all points of a module

    def sizes_of(name: str) -> dict[str, int]:
        module = name.rpartition(".")[0]
        if module not in sizes:
            sizes[module] = _sizes(model, name, batch)
        return sizes[module]

    all_of = {name: _numbers(axes.split(), sizes_of(name)) for name, axes in points.items()}
    passing = sum(all_of.values())
    kept = sum(round(n * choice.share(model, name, points[name], time)) for name, n in all_of.items())
    to = model.device if device is None else torch.device(device)
    size = own if dtype is None else dtype.itemsize
    each = math.ceil(own * passing / max(1, time))
    return Plan(tuple(points), batch.ids.shape[0], time, own * passing, size * kept, model.device, to, each)


def _numbers(axes: Sequence[str], sizes: Mapping[str, int]) -> int:
    """How many numbers a point has, by the names of its axes.

    An axis whose size the spec does not tell counts as the stream's width, and a second one as 1.
    """
    known = [sizes[axis] for axis in axes if axis in sizes]
    return math.prod(known) * (1 if len(known) == len(axes) else sizes["d_model"])


def _sizes(model: AnyModel, name: str, batch: Batch) -> dict[str, int]:
    """Axis -> its size, as far as the batch and the spec of the point's layer tell."""
    side = side_of(model, name)
    of_source = 0 if batch.source is None else batch.source.ids.shape[1]
    reads = of_source if name.startswith("encoder.") else batch.ids.shape[1]
    block = side.stack.blocks[layer_of(name) or 0]
    mixer = block.cross if ".cross." in name else block.mixer
    told = {"kv_heads": (mixer, "n_kv_heads"), "head_dim": (mixer, "head_dim"), "d_ff": (block.ffn, "d_ff")}
    sizes = {axis: getattr(part, field) for axis, (part, field) in told.items() if hasattr(part, field)}
    return sizes | {
        "batch": batch.ids.shape[0],
        "time": reads,
        "query": reads,
        "key": of_source if ".cross." in name else reads,
        "heads": n_heads(model, name),
        "d_model": side.d_model,
        "vocab": side.vocab_size,
    }
