"""Activation patching and ablation: a grid over layers, positions and heads in one call.

Each cell of a grid is one run of a text with some of its activations replaced, by those of another text (*patching*;
Vig et al. 2020; Meng et al. 2022, section 2.1) or by something without information (*ablation*). All cells run as a few
batches, and what lies upstream of a cell's place is never computed again (``sweep``). ::

    pair = patching.pair(model, "The capital of France is", "The capital of Japan is")
    found = patching.patch(model, pair, right=paris, wrong=tokyo)          # the residual stream, layers × positions
    found = patching.patch(model, pair, paris, tokyo, point="attn.z", over=("layer", "head"))
    found.recovered                                                        # 0 corrupt, 1 clean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.arguments import checked
from pellucid.errors import TapError, UsageError, suggest
from pellucid.interpret.answers import Answer, Ids, Measure, place_of
from pellucid.interpret.choice import HEADS, numbers
from pellucid.interpret.pairs import NOWHERE, Pair, Prompt, rows_of
from pellucid.interpret.pairs import pair as pair
from pellucid.interpret.record import capture
from pellucid.interpret.sweep import Cell, Put, Run
from pellucid.nn.models import Decoder, Encoder
from pellucid.taps import point_axes

Axis: TypeAlias = Literal["layer", "position", "head"]
How: TypeAlias = Literal["zero", "mean", "resample"]
Acts: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Grid:
    """The answer's measure in each cell: one axis for each of ``over``, and the rows of the prompt last.

    before: the measure of the run that is patched. target: of the run that what is put in comes from; None where it
    comes from none. layers, positions, heads: the numbers along their axes; a cell that a layer does not have is NaN.
    forwards: what all cells have cost, in forwards of the whole text, by the matrix products that were done.
    """

    point: str
    over: tuple[Axis, ...]
    scores: Float[Tensor, "*cells batch"]
    before: Float[Tensor, " batch"]
    target: Float[Tensor, " batch"] | None
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    heads: tuple[int, ...]
    forwards: float

    @property
    def effect(self) -> Float[Tensor, "*cells batch"]:
        """How much each cell changes the measure."""
        return self.scores - self.before

    @property
    def recovered(self) -> Float[Tensor, "*cells batch"]:
        """Which share of the difference between both runs each cell makes up: 0 nothing, 1 all of it.

        Raises UsageError where what is put in comes from no run.
        """
        if self.target is None:
            raise UsageError("what is put in comes from no run, so nothing is recovered", "read .effect instead")
        return self.effect / (self.target - self.before)


@checked(model="give a decoder, e.g. of pellucid.load")
def patch(
    model: Decoder | Encoder,
    prompts: Pair,
    right: Ids,
    wrong: Ids | None = None,
    *,
    point: str = "resid_pre",
    over: Sequence[Axis] = ("layer", "position"),
    measure: Measure = "logit",
    read: int = -1,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    window: int = 1,
) -> Grid:
    """Put activations of the clean prompt into runs of the corrupt one, a cell each, and measure the answer.

    point: within a block, such as "resid_pre", "attn_out", "ffn_out", "attn.z", "attn.pattern". over: what the cells
    differ in; where positions are not among it, a cell patches all of them, and without heads all heads. right, wrong,
    measure: the answer, ``answers.Answer``. read: where it is read in the corrupt prompt. window: so many layers,
    around that of the cell, are patched together. Positions of the corrupt prompt without a partner in the clean one
    stay as they are, and so does what comes behind ``read`` where a model cannot look ahead.

    Raises UsageError for a point without such axes, layers and positions that there are not, and attention maps of
    prompts whose positions differ; TapError for a point that no layer has.
    """
    answer, place = Answer.of(model, right, wrong, len(prompts.corrupt), measure), place_of(prompts.corrupt, read)
    run = Run.of(model, embedded(model, prompts.corrupt), place)
    clean = Run.of(model, embedded(model, prompts.clean), _partner(prompts, place))
    axes = axes_of(model, point)
    names = [f"blocks.*.{point}"]
    there, donors = capture(model, prompts.corrupt[:, : run.time], names), capture(model, prompts.clean, names)
    donors = {name: aligned(donors[name], there[name], prompts, axes, name) for name in there}
    cells = Cells(run, point, axes, over, layers, positions, window, prompts.same_until)
    return cells.measured(donors, answer, clean.score(answer))


@checked(model="give a decoder, e.g. of pellucid.load")
def ablate(
    model: Decoder | Encoder,
    prompt: Prompt,
    right: Ids,
    wrong: Ids | None = None,
    *,
    how: How = "zero",
    others: Prompt | None = None,
    point: str = "attn.z",
    over: Sequence[Axis] = ("layer", "head"),
    measure: Measure = "logit",
    read: int = -1,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Grid:
    """Take the information out of activations, a cell each, and measure the answer.

    how: "zero": zeros in their place. "mean": their mean over all positions and rows of ``others``. "resample": those
    of ``others``, a prompt of the same shape. The rest as of ``patch``. Raises as ``patch`` does, and UsageError where
    ``others`` is missing, has another shape, or is not needed.
    """
    ids = rows_of(model, prompt)
    if (others is None) != (how == "zero"):
        raise UsageError(f"how = {how!r}, but others = {others!r}", "others are the texts of 'mean' and 'resample'")
    answer, run = Answer.of(model, right, wrong, len(ids), measure), Run.of(
        model, embedded(model, ids), place_of(ids, read)
    )  # fmt: skip
    axes = axes_of(model, point)
    there = capture(model, ids[:, : run.time], [f"blocks.*.{point}"])
    donors, target = {name: torch.zeros_like(x) for name, x in there.items()}, None
    if others is not None:
        texts = rows_of(model, others, "others")
        if how == "resample" and texts.shape != ids.shape:
            shapes = f"{tuple(texts.shape)}, the prompt {tuple(ids.shape)}"
            raise UsageError(f"others has the shape {shapes}", "resampling needs as many rows and tokens")
        found = capture(model, texts, [f"blocks.*.{point}"])
        time = next(i for i, axis in enumerate(axes.split()) if axis in ("time", "query", "key"))
        if how == "mean":
            donors = {name: x.mean((0, time), keepdim=True).expand_as(there[name]) for name, x in found.items()}
        else:
            donors = {name: x.narrow(time, 0, run.time) for name, x in found.items()}
            target = Run.of(model, embedded(model, texts), place_of(texts, read)).score(answer)
    return Cells(run, point, axes, over, layers, positions, 1, 0).measured(donors, answer, target)


@dataclass(frozen=True)
class Cells:
    """Which cells a grid has. since: before this position what is put in is what is there anyway."""

    run: Run
    point: str
    axes: str
    over: Sequence[Axis]
    layers: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    window: int = 1
    since: int = 0

    def measured(self, donors: Acts, answer: Answer, target: Float[Tensor, " batch"] | None) -> Grid:
        """The grid, with activations ``donors`` (by full name, as long as the run's rows) put in."""
        self._refuse_axes()
        run, n_layers = self.run, self.run.model.spec.n_layers
        layers = numbers(range(n_layers) if self.layers is None else self.layers, n_layers, "layer", "the model")
        if self.positions is None:
            positions = list(range(run.time))
        else:
            positions = numbers(self.positions, run.time, "position", "what is read of the prompt")
        heads = self._heads(donors) if "head" in self.over else []
        ranges = {"layer": layers, "position": positions, "head": heads}
        places = list(product(*(ranges[axis] for axis in self.over)))
        cells = [self._cell(dict(zip(self.over, place, strict=True)), donors, layers) for place in places]
        scores = run.scores([cell or () for cell in cells], answer)
        missing = [number for number, cell in enumerate(cells) if cell is None]
        scores[missing] = torch.nan
        shape = [len(ranges[axis]) for axis in self.over]
        before = run.score(answer)
        return Grid(
            self.point, tuple(self.over), scores.view(*shape, -1), before, target, tuple(layers),
            tuple(positions) if "position" in self.over else (), tuple(heads), run.forwards,
        )  # fmt: skip

    def _cell(self, place: Mapping[Axis, int], donors: Acts, layers: Sequence[int]) -> Cell | None:
        """What a cell puts in; nothing where it would change nothing; None where a layer has no such place."""
        path, position, head = self.run.model.path, place.get("position"), place.get("head")
        centres = [place["layer"]] if "layer" in place else layers
        reached = {
            layer
            for centre in centres
            for layer in range(centre - self.window // 2, centre + (self.window + 1) // 2)
            if 0 <= layer < self.run.model.spec.n_layers
        }
        found = {layer: donors[name] for layer in reached if (name := f"{path}blocks.{layer}.{self.point}") in donors}
        if head is not None:
            axis = self._axis(HEADS)
            found = {layer: donor for layer, donor in found.items() if head < donor.shape[axis]}
        if not found:
            return None
        last = self.run.time - 1 if position is None else position
        if self.run.keys is not None and last < self.since:
            return ()
        return [Put(layer, self.point, donor, position, head, self.since) for layer, donor in sorted(found.items())]

    def _heads(self, donors: Acts) -> list[int]:
        return list(range(max(donor.shape[self._axis(HEADS)] for donor in donors.values())))

    def _axis(self, names: Sequence[str]) -> int:
        return next(i for i, axis in enumerate(self.axes.split()) if axis in names)

    def _refuse_axes(self) -> None:
        unknown = [axis for axis in self.over if axis not in ("layer", "position", "head")]
        if unknown or len(set(self.over)) < len(self.over) or not self.over:
            raise UsageError(f"over = {self.over!r}", "give some of 'layer', 'position' and 'head', each once")
        if "head" in self.over and not set(self.axes.split()) & set(HEADS):
            raise UsageError(f"{self.point} has no axis of heads", "choose one that has: attn.z, attn.q, attn.pattern")
        if self.window < 1:
            raise UsageError(f"window = {self.window}", "patch at least 1 layer")


def axes_of(model: Decoder | Encoder, point: str) -> str:
    """The axes of a point within blocks. Raises TapError where no block has it, UsageError where it has no tokens."""
    known = {
        name.removeprefix(model.path).split(".", 2)[2]: axes
        for name, axes in point_axes(model).items()
        if "blocks." in name
    }
    if point not in known:
        raise TapError(f"no block of this model has the point {point!r}; {suggest(point, known)}")
    if not set(known[point].split()) & {"time", "query", "key"}:
        raise UsageError(f"{point} has no axis of positions: {known[point]}", "choose another point")
    return known[point]


@torch.no_grad()
def embedded(model: Decoder | Encoder, ids: Tensor) -> Float[Tensor, "batch time d_model"]:
    """What enters the first block."""
    return model.tap("embed", model.embed(ids, model.embed.places(ids)))


def aligned(donor: Tensor, there: Tensor, prompts: Pair, axes: str, name: str) -> Tensor:
    """Activations of the clean prompt in the places of the corrupt one; where nothing stands for a place, its own.

    Raises UsageError for attention maps of prompts whose positions differ.
    """
    names = axes.split()
    time = next(i for i, axis in enumerate(names) if axis in ("time", "query", "key"))
    if prompts.alike:
        for axis in [i for i, each in enumerate(names) if each in ("time", "query", "key")]:
            donor = donor.narrow(axis, 0, there.shape[axis])
        return donor
    if {"query", "key"} <= set(names):
        raise UsageError(
            f"{name} is a map over positions, and those of the prompts differ", "patch attn.z, attn.q or attn.k instead"
        )
    align = torch.tensor(prompts.align[: there.shape[time]], device=there.device)
    moved = donor.index_select(time, align.clamp(min=0))
    shape = [1] * there.dim()
    shape[time] = -1
    return torch.where((align != NOWHERE).view(shape), moved, there)


def _partner(prompts: Pair, place: int) -> int:
    """Where the answer is read in the clean prompt. Raises UsageError where no token stands for that of the corrupt."""
    if prompts.align[place] == NOWHERE:
        raise UsageError(f"position {place}, where the answer is read, has no partner in the clean prompt")
    return prompts.align[place]
