"""Activations of a model over many batches, one batch at a time: what probes and sparse autoencoders are fitted to.

::

    for seen in record(model, batches, "blocks.*.resid_post", positions="tokens", dtype=torch.bfloat16):
        seen["blocks.3.resid_post"]    # (tokens of the batch, d_model): padding is left out

Only what is yielded is kept, so ten million tokens take no more memory than one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.engine.memory import require
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.nn.models import AnyModel, Encoder, EncoderDecoder
from pellucid.spec import EncoderDecoderSpec
from pellucid.taps import point_axes
from pellucid.taps.points import match_points

# (batch, time), or (batch, source time) and (batch, time); sizes differ from one to the next
Readable: TypeAlias = Batch | Int[Tensor, "_ _"] | tuple[Int[Tensor, "_ _"], Int[Tensor, "_ _"]]
Positions: TypeAlias = Literal["tokens"] | slice | Sequence[int] | Callable[[Batch], Bool[Tensor, "_ _"]]
Loss: TypeAlias = Callable[[AnyModel, Batch], Float[Tensor, ""]]
TIME = ("time", "query", "key")  # names of the axis, in ``point_axes``, along which tokens stand


class Recorded(Mapping[str, Tensor]):
    """The activations of one batch by full name of their point; ``gradients`` of a loss, by the same names, if asked.

    ``batch`` is what was read.
    """

    def __init__(self, batch: Batch, acts: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None):
        self.batch, self._acts, self.gradients = batch, dict(acts), gradients

    def __getitem__(self, name: str) -> Tensor:
        return self._acts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._acts)

    def __len__(self) -> int:
        return len(self._acts)


def record(
    model: AnyModel,
    batches: Iterable[Readable],
    points: str | Iterable[str],
    *,
    positions: Positions | None = None,
    gradients: bool | Loss = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Recorded]:
    """Run a model over batches, in evaluation mode, and yield for each the activations at ``points`` (globs allowed).

    batches: ``Batch``es, or token ids of whole rows; for an encoder–decoder pairs (source ids, ids). They go to the
    model's device.
    positions: which tokens are kept, where an activation has an axis of tokens. None: all, as they stand. A slice or
    a sequence of positions: those of every row (negative ones count from the end), with the axes as they are.
    ``"tokens"``: all but padding, and a function batch -> True (batch, time): those, both as (tokens, ...), rows after
    each other and the axis of tokens first. An encoder's activations are chosen by what it reads.
    gradients: also of a loss (model, batch) -> sum, which is then what runs; True: the model's own ``nll_sum``.
    reduce: a function of each activation (and gradient) after ``positions``, e.g. ``lambda x: x.mean(0)``.
    dtype, device: what is floating point is converted at last, and all is moved; default: as it is.

    What the points would take together is compared with the memory that is free before anything runs (TooLargeError).
    The model's modes are given back, and it is not listened to between the batches. Raises TapError for a point that
    does not exist, and UsageError for positions that a row does not have.
    """
    loss = _own_loss if gradients is True else gradients or None
    names, axes, here = [points] if isinstance(points, str) else list(points), point_axes(model), _device(model)
    read_at = {name: axes[name] for glob in names for name in match_points(model, glob)}
    for given in batches:
        batch = as_batch(given).to(here)
        refuse_large_record(model, read_at, batch)
        with evaluating(model), torch.set_grad_enabled(loss is not None):
            with model.taps(read=names, gradients=loss is not None) as acts:
                total = None if loss is None else loss(model, batch)
                if loss is None:
                    read(model, batch)
            found = {"acts": dict(acts)} | ({} if total is None else {"gradients": dict(acts.gradients(total))})

        def kept(name: str, x: Tensor, batch: Batch = batch) -> Tensor:
            x = choose(x.detach(), axes[name], _side(name, batch), positions, name)
            x = x if reduce is None else reduce(x)
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        with torch.no_grad():
            sides = {side: {name: kept(name, x) for name, x in of.items()} for side, of in found.items()}
        del acts, total, found
        yield Recorded(batch, **sides)


def capture(
    model: AnyModel,
    ids: Int[Tensor, "batch time"],
    names: Iterable[str],
    source: Int[Tensor, "batch source_time"] | None = None,
) -> dict[str, Tensor]:
    """The activations at the points ``names`` (globs allowed), by full name, from one forward without gradients.

    source: what an encoder–decoder reads; ``ids`` are then what it writes. Raises as ``record`` does.
    """
    return dict(next(record(model, [ids if source is None else (source, ids)], names)))


def as_batch(given: Readable) -> Batch:
    """Token ids of whole rows (or a pair of source and ids) as a batch in which nothing is scored."""
    if isinstance(given, Batch):
        return given
    source, ids = given if isinstance(given, tuple) else (None, given)
    of_source = None if source is None else Source(source, Tokens.plain(*source.shape, device=source.device))
    tokens = Tokens.plain(*ids.shape, device=ids.device)
    return Batch(ids, tokens, torch.full_like(ids, IGNORE), source=of_source)


def read(model: AnyModel, batch: Batch) -> Tensor:
    """One forward over a batch, whatever the kind of model. Raises UsageError where a source is missing."""
    if isinstance(model, EncoderDecoder):
        if batch.source is None:
            raise UsageError("an encoder–decoder needs something to read", "give pairs (source, ids)")
        return model(batch.source.ids, batch.ids, batch.source.tokens, batch.tokens)
    if isinstance(model, Encoder):
        return model(batch.ids, batch.tokens, batch.types)
    return model(batch.ids, batch.tokens)


def refuse_large_record(model: AnyModel, points: Mapping[str, str], batch: Batch) -> None:
    """Raise TooLargeError where the activations at these points do not fit into memory. points: name -> axes."""

    def size(share: float) -> int:
        return model.dtype.itemsize * sum(_numbers(model, *of, batch, share) for of in points.items())

    def remedy(free: int) -> str:
        time = batch.ids.shape[1]
        fitting = next((time >> k for k in range(1, time.bit_length()) if size(0.5**k) <= free), 0)
        return f"about {fitting:,} tokens a row would fit: read fewer points, rows or tokens"

    tokens = f"{batch.ids.shape[0]} × {batch.ids.shape[1]} tokens"
    require(size(1.0), f"recording {len(points)} points of {tokens}", remedy, model.device)


def _numbers(model: AnyModel, name: str, axes: str, batch: Batch, share: float) -> int:
    """How many numbers a point has for ``share`` of a batch's time, by the names of its axes; an estimate.

    Of an axis of unknown size it is the stream's width that is taken, or 1 where that is an axis already.
    """
    spec = model.spec
    if isinstance(spec, EncoderDecoderSpec):
        side = spec.encoder if name.startswith("encoder.") else spec.decoder
    else:
        side = spec
    rows, time = batch.ids.shape[0], batch.ids.shape[1] * share
    of_source = 0.0 if batch.source is None else batch.source.ids.shape[1] * share
    reads = of_source if name.startswith("encoder.") else time
    keys = of_source if ".cross." in name else reads
    layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
    heads = getattr(side.stack.blocks[layer].mixer, "n_heads", 1)
    sizes = {"batch": rows, "time": reads, "query": reads, "key": keys, "heads": heads, "vocab": spec.vocab_size}
    known = [sizes[axis] for axis in axes.split() if axis in sizes]
    inner = set(axes.split()) - set(sizes)
    width = (side.d_model / heads if "heads" in axes else side.d_model) if inner else 1
    return round(math.prod(known) * width)


def choose(x: Tensor, axes: str, batch: Batch, positions: Positions | None, name: str) -> Tensor:
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
    size = x.shape[axis]
    wrong = next((place for place in positions if not -size <= place < size), None)
    if wrong is not None:
        raise UsageError(f"position {wrong} of {name}, which has {size}", f"positions run from {-size} to {size - 1}")
    return x.index_select(axis, torch.tensor([place % size for place in positions], device=x.device))


def _side(name: str, batch: Batch) -> Batch:
    """What the part of the model that owns a point reads: an encoder beside a decoder the source."""
    if batch.source is None or not name.startswith("encoder."):
        return batch
    return Batch(batch.source.ids, batch.source.tokens, batch.labels)


def _own_loss(model: AnyModel, batch: Batch) -> Float[Tensor, ""]:
    return model.nll_sum(batch)


def _device(model: AnyModel) -> torch.device:
    return next(model.parameters()).device
