"""Activations of a model over many batches, one batch at a time: what probes and sparse autoencoders are fitted to.

::

    for seen in record(model, batches, "blocks.*.resid_post", positions="tokens", dtype=torch.bfloat16):
        seen["blocks.3.resid_post"]    # (tokens of the batch, d_model): padding is left out

Only what is yielded is kept, so ten million tokens take no more memory than one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.interpret.choice import Choice, Positions, chosen_points, side
from pellucid.interpret.plan import Plan, planned
from pellucid.nn.models import AnyModel, Encoder, EncoderDecoder

# (batch, time), or (batch, source time) and (batch, time); sizes differ from one to the next
Readable: TypeAlias = Batch | Int[Tensor, "_ _"] | tuple[Int[Tensor, "_ _"], Int[Tensor, "_ _"]]
Loss: TypeAlias = Callable[[AnyModel, Batch], Float[Tensor, ""]]


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
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    gradients: bool | Loss = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    announce: Callable[[Plan], object] | None = None,
) -> Iterator[Recorded]:
    """Run a model over batches, in evaluation mode, and yield for each the activations at ``points`` (globs allowed).

    batches: ``Batch``es, or token ids of whole rows; for an encoder–decoder pairs (source ids, ids). They go to the
    model's device.
    positions: which tokens are kept, where an activation has an axis of tokens. None: all, as they stand. A slice or
    a sequence of positions: those of every row (negative ones count from the end), with the axes as they are.
    ``"tokens"``: all but padding, and a function batch -> True (batch, time): those, both as (tokens, ...), rows after
    each other and the axis of tokens first. An encoder's activations are chosen by what it reads.
    layers, heads: of points in blocks those of these layers, and of axes of heads these heads, in this order; negative
    ones count from the end. Keys and values are those that the heads read, so that all axes of heads are alike.
    gradients: also of a loss (model, batch) -> sum, which is then what runs; True: the model's own ``nll_sum``.
    reduce: a function of each activation (and gradient) after ``positions``, e.g. ``lambda x: x.mean(0)``.
    dtype, device: what is floating point is converted at last, and all is moved; default: as it is.
    announce: is told the ``Plan`` of each batch before it runs, e.g. ``print``.

    What the points would take together is compared with the memory that is free before anything runs (TooLargeError).
    The model's modes are given back, and it is not listened to between the batches. Raises TapError for a point that
    does not exist, with the nearest names, and UsageError for positions, layers and heads that there are not.
    """
    axes, choice = chosen_points(model, points, layers), Choice(positions, heads)
    choice.refuse_heads(model, axes)
    loss = _own_loss if gradients is True else gradients or None
    return _recorded(model, batches, axes, choice, loss, reduce, dtype, device, announce)


def _recorded(
    model: AnyModel,
    batches: Iterable[Readable],
    axes: Mapping[str, str],
    choice: Choice,
    loss: Loss | None,
    reduce: Callable[[Tensor], Tensor] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    announce: Callable[[Plan], object] | None,
) -> Iterator[Recorded]:
    for given in batches:
        batch = as_batch(given).to(model.device)
        plan = planned(model, axes, batch, choice, dtype, device)
        if announce is not None:
            announce(plan)
        plan.refuse_too_large()
        with evaluating(model), torch.set_grad_enabled(loss is not None):
            with model.taps(read=list(axes), gradients=loss is not None) as acts:
                total = None if loss is None else loss(model, batch)
                if loss is None:
                    read(model, batch)
            found = {"acts": dict(acts)} | ({} if total is None else {"gradients": dict(acts.gradients(total))})

        def kept(name: str, x: Tensor, batch: Batch = batch) -> Tensor:
            x = choice.of(x.detach(), axes[name], side(name, batch), name, model)
            x = x if reduce is None else reduce(x)
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        with torch.no_grad():
            sides = {each: {name: kept(name, x) for name, x in of.items()} for each, of in found.items()}
        del acts, total, found
        yield Recorded(batch, **sides)


def capture(
    model: AnyModel,
    ids: Int[Tensor, "batch time"],
    names: str | Iterable[str],
    source: Int[Tensor, "batch source_time"] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The activations at the points ``names`` (globs allowed), by full name, from one forward without gradients.

    source: what an encoder–decoder reads; ``ids`` are then what it writes. options: as of ``record``. Raises as
    ``record`` does.
    """
    return dict(next(record(model, [ids if source is None else (source, ids)], names, **options)))


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


def _own_loss(model: AnyModel, batch: Batch) -> Float[Tensor, ""]:
    return model.nll_sum(batch)
