"""Set listeners on the modules that own the wanted points, while a ``with`` block runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pellucid.errors import TapError
from pellucid.taps.listener import Activations, Edit, Keep, Listener
from pellucid.taps.points import Tapped, match_points, point_axes


@contextmanager
def tapped(
    model: nn.Module,
    read: Iterable[str] | str = (),
    edit: Mapping[str, Edit] | None = None,
    *,
    rows: Sequence[int] | Tensor | None = None,
    keep: Keep = "last",
    gradients: bool = False,
) -> Iterator[Activations]:
    """Listen to this thread's calls of ``model`` while the block runs; yields what they pass at the points read.

    read: names or globs such as ``"blocks.*.attn.pattern"``. edit: name or glob -> function or ``nn.Module`` from
    tensor to tensor of the same shape; ``interpret.edits`` has some, and tells what compiles. rows: of the batch,
    those that are read and edited; both then hold only these, in this order (default: all). keep: what stays of
    several forwards, the last one, or all, for ``acts.each(name)``. gradients: ``acts.gradients(loss)`` will be asked
    for, also where all weights are frozen.

    Taps may be opened inside others: the outer ones edit and read first. Raises TapError for a name that matches
    nothing, for rows that are no rows, and during a call for an edit that gives anything but a tensor of the same
    shape.
    """
    index = None if rows is None else _row_index(rows)
    if keep not in ("last", "all"):
        raise TapError(f"keep = {keep!r}; it is 'last' or 'all'")
    globs, edit = [read] if isinstance(read, str) else list(read), dict(edit or {})
    for glob, f in edit.items():
        given: object = f
        if not callable(given):
            what = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
            raise TapError(f"the edit of {glob} is {what}", "give a function of the activation: lambda x: 0 * x")
    matched = match_points(point_axes(model), [*globs, *edit])
    wanted = {name for names in matched[: len(globs)] for name in names}
    edits = {name: f for names, f in zip(matched[len(globs) :], edit.values(), strict=True) for name in names}
    listeners: dict[Tapped, Listener] = {}
    for module in model.modules():
        if isinstance(module, Tapped):
            reads = [point for point in module.points() if module.path + point in wanted]
            own = {point: edits[module.path + point] for point in module.points() if module.path + point in edits}
            if reads or own:
                outer = module.ears.listener
                listeners[module] = Listener(
                    module.path, reads, own, rows=index, keep=keep, gradients=gradients, outer=outer
                )
    with _listening(model, listeners):
        found = [(one.path + name, one, name) for one in listeners.values() for name in one.acts]
        yield Activations({full: lambda one=one, name=name: one.heard(name) for full, one, name in found})


@contextmanager
def _listening(model: nn.Module, listeners: Mapping[Tapped, Listener]) -> Iterator[None]:
    """Set the listeners for this thread, and mark the modules around those that cannot be compiled."""
    loose = {module for module, listener in listeners.items() if not listener.compiles}
    around = [
        module
        for module in (model.modules() if loose else ())
        if isinstance(module, Tapped) and not module.ears.plain and not loose.isdisjoint(module.modules())
    ]
    try:
        for module, listener in listeners.items():
            module.ears.listener = listener
        for module in around:
            module.ears.plain = True
        yield
    finally:
        for module, listener in listeners.items():
            module.ears.listener = listener.outer
        for module in around:
            module.ears.plain = False


def _row_index(rows: Sequence[int] | Tensor) -> Tensor:
    index = torch.as_tensor(rows).detach().clone()
    whole = index.dtype in (torch.int64, torch.int32) and index.dim() == 1 and len(index) > 0
    if not whole or int(index.min()) < 0 or len(index.unique()) < len(index):
        raise TapError(f"rows = {rows!r}; give numbers of rows from 0 on, at least one, none of them twice")
    return index.long()
