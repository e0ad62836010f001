"""Many patched runs of one text as a few batches, in which nothing that lies upstream of a patch is computed again.

A *cell* is one patched run: values that are put in at some places. Its row joins the batch at the first layer that it
changes, with what the unpatched run had there (a prefix of layers), and at the first position that it changes: keys and
values of earlier positions are those of the unpatched run (a prefix of positions), where a mask proves that nothing
before the patch can see it. What is left is what the patch may have changed; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.engine.compiling import eagerly
from pellucid.engine.modes import evaluating
from pellucid.errors import TapError, UsageError
from pellucid.interpret.answers import Answer
from pellucid.interpret.choice import HEADS, TIME
from pellucid.nn.attention import Attention
from pellucid.nn.flops import forward_flops, visible_pairs
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.stores import LayerCache, StorePlan
from pellucid.nn.wide import wide
from pellucid.predicates.algebra import Ahead
from pellucid.taps import heard, point_axes, tapped

# Cells that begin at other positions run together as long as their tokens are no more than FEW; no batch has more
# than MANY. A GPU, which waits for each call, is given as much as there is.
FEW, MANY = 512, 1 << 13


@dataclass(frozen=True)
class Put:
    """A value put in at one point of one layer, ``blocks.<layer>.<point>``.

    donor: an activation of that point over the whole row, (batch or 1, ...). position: where of it, None for every
    position from ``since`` on, before which the donor is known to be what is there anyway. head: one of them, or all.
    """

    layer: int
    point: str
    donor: Tensor
    position: int | None = None
    head: int | None = None
    since: int = 0

    @property
    def start(self) -> int:
        """The first position that it may change."""
        return self.since if self.position is None else self.position

    def into(self, x: Tensor, axes: Sequence[str], start: int) -> None:
        """Write it into rows of the activation whose axes have these names, and whose positions begin at ``start``."""
        at: list[slice | int] = [slice(None)] * x.dim()
        of = list(at)
        time = next(i for i, axis in enumerate(axes) if axis in TIME)
        if self.head is not None:
            heads = next(i for i, axis in enumerate(axes) if axis in HEADS)
            at[heads] = of[heads] = self.head
        if self.position is None:
            of[time] = slice(start, start + x.shape[time])
        else:
            at[time], of[time] = self.position - start, self.position
        x[tuple(at)] = self.donor[tuple(of)].to(x.dtype)


Cell = Sequence[Put]  # without any, it is the unpatched run


class _Transplant:
    """The edit of one point in one batch of cells: each cell's rows get what is put there."""

    def __init__(self, axes: str, batch: int, start: int):
        self.axes, self.batch, self.start = axes.split(), batch, start
        self.puts: list[tuple[int, Put]] = []  # the number of the cell within the batch

    def __call__(self, x: Tensor) -> Tensor:
        x = x.clone()
        for cell, put in self.puts:
            put.into(x[cell * self.batch : (cell + 1) * self.batch], self.axes, self.start)
        return x


@dataclass
class Run:
    """One unpatched run over rows that end where the answer is read, from the stream that enters the first block.

    streams: what enters each block, and at last what leaves the last one. flops: of all cells so far, matrix products.
    """

    model: Decoder | Encoder
    streams: list[Float[Tensor, "batch time d_model"]]
    place: int
    keys: list[LayerCache] | None
    flops: int = 0
    axes: Mapping[str, str] = field(default_factory=dict[str, str])

    @staticmethod
    def of(model: Decoder | Encoder, embedded: Float[Tensor, "batch time d_model"], place: int) -> Run:
        """The run; ``place`` is where the answer is read. Later positions are left out of a model that never sees them.

        Raises UsageError for a decoder that reads an encoder.
        """
        if model.spec.stack.blocks and any(block.reads_memory for block in model.layers):
            raise UsageError("this decoder reads an encoder", "patching is of models that stand alone")
        causal = isinstance(model, Decoder) and model.spec.ahead == Ahead()
        x = embedded[:, : place + 1] if causal else embedded
        tokens, streams = Tokens.plain(*x.shape[:2], device=x.device), [x]
        cache = model.new_cache(*x.shape[:2], ring=False) if causal and isinstance(model, Decoder) else None
        with evaluating(model), eagerly(), torch.no_grad():
            if cache is not None:
                cache.take(tokens)
            for layer in range(model.spec.n_layers):
                streams.append(model.blocks_from(streams[-1], tokens, cache, first=layer, last=layer + 1))
        keys = [] if cache is None else [layer for layer in cache.layers if isinstance(layer, LayerCache)]
        return Run(model, streams, place, keys if len(keys) == model.spec.n_layers else None, axes=point_axes(model))

    @property
    def batch(self) -> int:
        return self.streams[0].shape[0]

    @property
    def time(self) -> int:
        return self.streams[0].shape[1]

    @property
    def forwards(self) -> float:
        """What all cells so far have cost, in forwards of the whole text, logits included."""
        return self.flops / (self.batch * forward_flops(self.model.spec, self.time))

    def scores(self, cells: Sequence[Cell], answer: Answer) -> Float[Tensor, "cells batch"]:
        """The answer's measure in each cell, one row for each of the run's. Raises TapError for a point that there is
        not."""
        self._refuse_unknown(cells)
        last = self.streams[-1][:, self.place]
        ends = last[None].repeat(len(cells), 1, 1)
        with evaluating(self.model), eagerly(), torch.no_grad():
            for start, numbers in self._batches(cells):
                ends[numbers] = self._ends([cells[number] for number in numbers], start)
            changed = [number for number, cell in enumerate(cells) if cell]
            found = self._read(last[None], answer).repeat(len(cells), 1)
            if changed:
                found[changed] = self._read(ends[changed], answer)
        return found

    def score(self, answer: Answer) -> Float[Tensor, " batch"]:
        """The answer's measure in the unpatched run."""
        return self._read(self.streams[-1][None, :, self.place], answer)[0]

    def seen(self, cells: Sequence[Cell], names: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Tensor]:
        """What each cell passes at points (layer, point), whole rows: (cells, batch, ...) each.

        Raises TapError for a point that there is not.
        """
        wanted = [Put(layer, point, self.streams[0]) for layer, point in names]
        self._refuse_unknown([*cells, wanted])
        firsts = [min(put.layer for put in cell) for cell in cells]
        found: dict[tuple[int, str], list[Tensor]] = {name: [] for name in names}
        size = max(1, MANY // (self.batch * self.time))
        with evaluating(self.model), eagerly(), torch.no_grad():
            for at in range(0, len(cells), size):
                part, first = cells[at : at + size], min(firsts[at : at + size])
                x = self.streams[first].repeat(len(part), 1, 1)
                for layer in range(first, max(layer for layer, _ in names) + 1):
                    here = [put for put in wanted if put.layer == layer]
                    reads, edits = [self._name(put) for put in here], self._edits(part, layer, 0)
                    with tapped(self.model.layers[layer], read=reads, edit=edits) as acts:
                        x = self._block(layer, x, 0)
                    for put in here:
                        found[layer, put.point].append(acts[self._name(put)].unflatten(0, (-1, self.batch)))
        return {name: torch.cat(parts) for name, parts in found.items()}

    # --- batches of cells --------------------------------------------------------------------------------------------

    def _start(self, cell: Cell) -> int:
        """The first position at which a cell is computed."""
        return 0 if self.keys is None else min(put.start for put in cell)

    def _batches(self, cells: Sequence[Cell]) -> Iterator[tuple[int, list[int]]]:
        """(where its rows begin, numbers of its cells in the order of their first layers) of each batch."""
        few = MANY if self.streams[0].device.type == "cuda" else FEW
        at = {i: (self._start(cell), min(put.layer for put in cell)) for i, cell in enumerate(cells) if cell}
        batches: list[tuple[int, list[int]]] = []
        for number in sorted(at, key=lambda number: at[number]):
            start = at[number][0]
            if batches:
                first, members = batches[-1]
                tokens = (len(members) + 1) * self.batch * (self.time - first)
                if tokens <= (MANY if first == start else few):
                    members.append(number)
                    continue
            batches.append((start, [number]))
        for start, members in batches:
            yield start, sorted(members, key=lambda number: at[number][1])

    def _ends(self, cells: Sequence[Cell], start: int) -> Float[Tensor, "cells batch d_model"]:
        """What leaves the last block where the answer is read, of cells in the order of their first layers."""
        model, firsts = self.model, [min(put.layer for put in cell) for cell in cells]
        x = self.streams[0][:0, start:]
        for layer in range(firsts[0], model.spec.n_layers):
            joining = firsts.count(layer)
            x = torch.cat((x, self.streams[layer][:, start:].repeat(joining, 1, 1)))
            if layer == model.spec.n_layers - 1 and self._reads_last(layer, start):
                return self._last_block(cells, x, start)
            x = self._edited_block(cells, layer, x, start)
        return x[:, self.place - start].unflatten(0, (-1, self.batch))

    def _reads_last(self, layer: int, start: int) -> bool:
        """Whether of the last block only the last of several positions is read, others being keys and values to it."""
        return self.keys is not None and start < self.time - 1 and isinstance(self.model.layers[layer].mixer, Attention)

    def _last_block(
        self, cells: Sequence[Cell], x: Float[Tensor, "rows time d_model"], start: int
    ) -> Float[Tensor, "cells batch d_model"]:
        """The end of cells whose rows are x: of those that change nothing in the last block, keys, values and one
        query."""
        layer = self.model.spec.n_layers - 1
        inside = [any(put.layer == layer for put in cell) for cell in cells]
        whole = torch.tensor(inside, device=x.device)
        ends = torch.empty(len(cells), self.batch, x.shape[-1], dtype=x.dtype, device=x.device)
        by_cell = x.unflatten(0, (-1, self.batch))
        if any(inside):
            some = [cell for cell, changed in zip(cells, inside, strict=True) if changed]
            ends[whole] = self._edited_block(some, layer, by_cell[whole].flatten(0, 1), start)[:, -1].unflatten(
                0, (-1, self.batch)
            )
        if not all(inside):
            ends[~whole] = self._one_query(layer, by_cell[~whole].flatten(0, 1), start).unflatten(0, (-1, self.batch))
        return ends

    def _one_query(
        self, layer: int, x: Float[Tensor, "rows time d_model"], start: int
    ) -> Float[Tensor, "rows d_model"]:
        """A block for the last position alone; the others only give it their keys and values."""
        model, rows, last = self.model, len(x), self.time - 1
        block, past = model.layers[layer], self._past(layer, rows, start)
        assert isinstance(block.mixer, Attention)
        earlier, now = (Tokens.plain(rows, n, at, x.device) for n, at in ((last - start, start), (1, last)))
        past.slots.take(earlier)
        view = block.mixer.view(earlier, past, model.score_bias)
        past.extend(*block.mixer.keys_values(block.mixer_norms.pre(x[:, :-1]), view))
        past.slots.commit(earlier)
        past.slots.take(now)
        self.flops += 4 * rows * (last - start) * x.shape[-1] * block.mixer.n_kv_heads * block.mixer.head_dim
        self._count(layer, rows, last)
        return block(x[:, -1:], block.mixer.view(now, past, model.score_bias), past)[:, 0]

    def _edited_block(
        self, cells: Sequence[Cell], layer: int, x: Float[Tensor, "rows time d_model"], start: int
    ) -> Float[Tensor, "rows time d_model"]:
        """One block on the rows of these cells, with what they put in there."""
        edits = self._edits(cells, layer, start)
        with tapped(self.model.layers[layer], edit=edits) if edits else nullcontext():
            return self._block(layer, x, start)

    def _edits(self, cells: Sequence[Cell], layer: int, start: int) -> dict[str, _Transplant]:
        edits: dict[str, _Transplant] = {}
        for number, cell in enumerate(cells):
            for put in cell:
                if put.layer == layer:
                    name = self._name(put)
                    edit = edits.setdefault(name, _Transplant(self.axes[name], self.batch, start))
                    edit.puts.append((number, put))
        return edits

    def _block(
        self, layer: int, x: Float[Tensor, "rows time d_model"], start: int
    ) -> Float[Tensor, "rows time d_model"]:
        """One block on rows that begin at ``start``, after the unpatched run's tokens."""
        model, rows = self.model, len(x)
        block, tokens = model.layers[layer], Tokens.plain(rows, self.time - start, start, x.device)
        past = None if start == 0 else self._past(layer, rows, start)
        if past is not None:
            past.slots.take(tokens)
        self._count(layer, rows, start)
        return heard(block)(x, block.mixer.view(tokens, past, model.score_bias), past)

    def _past(self, layer: int, rows: int, start: int) -> LayerCache:
        """The unpatched run's keys and values of the first ``start`` positions, once for each of its copies."""
        assert self.keys is not None
        kept, before = self.keys[layer], Tokens.plain(rows, start, device=self.streams[0].device)
        plan = StorePlan(rows, self.time, kept.k.dtype, self.model.dtype, device=self.streams[0].device, ring=False)
        past = self.model.layers[layer].mixer.new_store(plan)
        assert isinstance(past, LayerCache)
        if start:
            past.slots.take(before)
            past.extend(*(x[:, :, :start].repeat(rows // self.batch, 1, 1, 1) for x in (kept.k, kept.v)))
            past.slots.commit(before)
        return past

    def _count(self, layer: int, rows: int, start: int) -> None:
        block = self.model.spec.stack.blocks[layer]
        mask = block.mixer.visible
        pairs = 0 if mask is None else visible_pairs(mask, self.time) - (visible_pairs(mask, start) if start else 0)
        self.flops += sum(
            cost.flops(rows * (self.time - start), rows * pairs) for cost in block.costs(self.model.spec.d_model)
        )

    # --- what is read ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _read(self, ends: Float[Tensor, "cells batch d_model"], answer: Answer) -> Float[Tensor, "cells batch"]:
        """The measure of streams that leave the last block. Of plain logits only those of the answer are made."""
        model = self.model
        if isinstance(model, Decoder) and answer.measure == "logit" and model.head.soft_cap is None:
            return (wide(model.final_norm(ends)) * answer.direction(model)).sum(-1) + answer.bias(model)
        size = max(1, (1 << 24) // (self.batch * model.spec.vocab_size))
        self.flops += 2 * ends.shape[0] * self.batch * model.spec.vocab_size * model.spec.d_model
        return torch.cat([answer(model.unembed(part)) for part in ends.split(size)])

    def _name(self, put: Put) -> str:
        return f"{self.model.path}blocks.{put.layer}.{put.point}"

    def _refuse_unknown(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            for put in cell:
                axes = self.axes.get(self._name(put))
                if axes is None or not set(axes.split()) & set(TIME):
                    raise TapError(f"{self._name(put)} is no point with positions of this model")
