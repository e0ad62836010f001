"""Activation points: read or replace what flows through a model, at no cost while nobody listens.

A module that has points derives from ``Tapped`` and passes each through ``self.tap(name, x)``. With no listener that
returns x: no wrapper module, no graph node, no recompilation. ``tapped(model, ...)`` sets listeners on the modules that
own a wanted point, for the thread that opens it, so a model may serve several threads that listen to different things.

Compiled blocks: equal blocks that are asked alike share one compilation. An edit that is an ``nn.Module`` is compiled
into the block, its buffers are inputs of the graph, and another module of its class runs the same graph. An edit that
is a plain function would be compiled once for each function, and ``keep="all"`` once for each forward. A block that is
asked for either runs its plain code instead while somebody listens. Listeners of compiled blocks are a thread's own as
well, but threads have to call these in turn: torch itself (2.13) loses track where two compiled calls overlap.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pellucid.errors import TapError, suggest

Edit = Callable[[Tensor], Tensor]  # an nn.Module is one too
Keep = Literal["last", "all"]


class Listener:
    """What one module is asked for: points to read and points to replace by ``edit[name](x)``, in some rows or all.

    An edit comes before a read, so what is read is what the rest of the model saw. Names are the module's own, and each
    read has its place in ``acts`` from the start, so that equal modules that are asked alike share one compilation.
    """

    def __init__(
        self,
        path: str,
        read: Sequence[str],
        edit: Mapping[str, Edit],
        *,
        rows: Tensor | None = None,
        keep: Keep = "last",
        gradients: bool = False,
        outer: Listener | None = None,
    ):
        self.path, self.outer = path, outer  # for messages; the listener that was set before, which is called first
        self.read, self.edit, self.rows = frozenset(read), dict(edit), rows
        self.acts: dict[str, Tensor | None] = dict.fromkeys(read)  # compiled code writes here, and never reads
        self.all: dict[str, list[Tensor]] | None = {name: [] for name in read} if keep == "all" else None
        # It is added to what needs no gradient (frozen weights), so that gradients begin at the point itself.
        self.anchor = torch.zeros((), requires_grad=True) if gradients else None

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can take this listener, and others like it, without compiling once for each."""
        own = self.all is None and all(isinstance(edit, nn.Module) for edit in self.edit.values())
        return own and (self.outer is None or self.outer.compiles)

    def wants(self, name: str) -> bool:
        """Whether the point is read or edited."""
        return name in self.read or name in self.edit or (self.outer is not None and self.outer.wants(name))

    def heard(self, name: str) -> tuple[Tensor, ...]:
        """What each forward passed at a point that is read; only the last one where no more is kept."""
        if self.all is not None:
            return tuple(self.all[name])
        x = self.acts[name]
        return () if x is None else (x,)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if self.outer is not None:
            x = self.outer(name, x)
        edit, reads = self.edit.get(name), name in self.read
        if edit is None and not reads:
            return x
        rows = None if self.rows is None else self._rows(name, x)
        part = x if rows is None else x[rows]
        if edit is not None:
            part = self._checked(name, part, edit(part))
        if reads:
            part = self._kept(name, part)
        if rows is None:
            return part
        # With gradients the rows are put back unchanged too: nothing would flow back to a copy beside the stream.
        changed = edit is not None or self.anchor is not None
        return x.index_copy(0, rows, part.to(x.dtype)) if changed else x

    def _rows(self, name: str, x: Tensor) -> Tensor:
        assert self.rows is not None
        if not torch.compiler.is_compiling() and int(self.rows.max()) >= len(x):
            raise TapError(f"row {int(self.rows.max())} is asked for at {self.path}{name}, which has {len(x)} rows")
        return self.rows.to(x.device)

    def _kept(self, name: str, x: Tensor) -> Tensor:
        if self.anchor is not None and x.is_floating_point() and not x.requires_grad:
            x = x + self.anchor.to(x.device)
        if self.all is None:
            self.acts[name] = x
        else:
            self.all[name].append(x)
        return x

    def _checked(self, name: str, x: Tensor, edited: Any) -> Tensor:
        if not isinstance(edited, Tensor):
            raise TapError(f"the edit of {self.path}{name} returned {edited!r}, not a tensor of shape {tuple(x.shape)}")
        if edited.dtype != x.dtype:
            raise TapError(
                f"the edit of {self.path}{name} changed its type from {x.dtype} to {edited.dtype}",
                "let it return its result as x.dtype: result.to(x.dtype)",
            )
        if edited.shape != x.shape:
            raise TapError(
                f"the edit of {self.path}{name} changed its shape from {tuple(x.shape)} to {tuple(edited.shape)}"
            )
        return edited


class Activations(Mapping[str, Tensor]):
    """What the last forward passed at the points that are read, by full name; ``each`` has those before it as well.

    Raises TapError for a name that was not read.
    """

    def __init__(self, heard: Mapping[str, Callable[[], tuple[Tensor, ...]]]):
        self._heard = dict(heard)

    def each(self, name: str) -> tuple[Tensor, ...]:
        """What every forward passed at a point, in their order; without ``keep="all"`` the last one alone.

        A generation is a forward over the prompt and one more for each token that is read back. Joined along the time,
        ``torch.cat(acts.each(name), 1)``, a stream is therefore what one forward over the whole text passes. Where
        heads stand before the time the axis is 2. Patterns do not join, because later ones have more keys.
        """
        found = self._heard.get(name, tuple)()
        if not found:
            waiting = f"nothing has run yet; asked for: {', '.join(self._heard)}"
            raise TapError(f"{name} was not read; {waiting if name in self._heard else suggest(name, self)}")
        return found

    def __getitem__(self, name: str) -> Tensor:
        return self.each(name)[-1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, heard in self._heard.items() if heard())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Activations({', '.join(f'{name} {tuple(x.shape)}' for name, x in self.items())})"

    def gradients(self, loss: Tensor, *, retain_graph: bool = False) -> Activations:
        """The gradient of ``loss``, shape (), with respect to each activation, by the same names.

        Zeros where the loss does not depend on an activation; points without floating-point numbers are left out.
        retain_graph: as of ``torch.autograd.grad``, whether another backward pass is to follow. Weights get no
        ``.grad``. Raises TapError where nothing was recorded: after a forward in ``no_grad``, or with frozen weights
        and taps that were not opened with ``gradients=True``.
        """
        kept = {name: self.each(name) for name in self if self[name].is_floating_point()}
        for name, found in [*kept.items(), ("the loss", (loss,))]:
            if not all(x.requires_grad for x in found):
                raise TapError(
                    f"no gradient was recorded for {name}; run the model where gradients are recorded, "
                    "with taps that are opened with gradients=True"
                )
        flat = [x for found in kept.values() for x in found]
        got = iter(torch.autograd.grad(loss, flat, retain_graph=retain_graph, materialize_grads=True))
        parts = {name: tuple(next(got) for _ in found) for name, found in kept.items()}
        return Activations({name: lambda part=part: part for name, part in parts.items()})


class _Ears(threading.local):
    """Who listens to one module, for each thread by itself; a thread that never asked has nobody.

    Compiled code reads ``listener`` in the thread that runs it, and is guarded by what it finds. Both are set in
    ``__init__``: an attribute that appeared later would cost one more compilation.
    """

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.plain = False  # somebody listens in here in a way that cannot be compiled

    def __reduce__(self) -> tuple[type[_Ears], tuple[()]]:
        return _Ears, ()  # a copied or saved module has no listeners


class Tapped(nn.Module):
    """A module with activation points. Their full names are ``path`` + short name."""

    def __init__(self) -> None:
        super().__init__()
        self.ears = _Ears()
        self.path = ""

    def points(self) -> dict[str, str]:
        """Short name -> axes of each of the module's own points, in the order of the forward pass."""
        return {}

    def prefix(self, child: str) -> str:
        """What the names of a child's points begin with, after this module's own ``path``."""
        return child + "."

    def tap(self, name: str, x: Tensor) -> Tensor:
        """x, unless someone listens to this point."""
        listener = self.ears.listener
        return x if listener is None else listener(name, x)

    def wants(self, name: str) -> bool:
        """Whether someone listens: asked only where a point costs extra work to compute."""
        listener = self.ears.listener
        return listener is not None and listener.wants(name)


def heard(module: Tapped) -> Callable[..., Any]:
    """``module``, to be called; its plain code, if it is compiled and someone listens as no compiled code can."""
    return module._call_impl if module.ears.plain else module  # pyright: ignore[reportPrivateUsage]


def name_points(module: nn.Module, path: str = "") -> None:
    """Give every tapped module its place in full names, as its owners put it (``Tapped.prefix``)."""
    if isinstance(module, Tapped):
        module.path = path
    for name, child in module.named_children():
        name_points(child, path + (module.prefix(name) if isinstance(module, Tapped) else name + "."))


def point_axes(model: nn.Module) -> dict[str, str]:
    """Full name -> axes of all points of a model, in the order of its modules."""
    tapped_ = (module for module in model.modules() if isinstance(module, Tapped))
    return {module.path + name: axes for module in tapped_ for name, axes in module.points().items()}


def match_points(model: nn.Module, pattern: str) -> list[str]:
    """Names that a glob matches. Raises TapError, with a suggestion, when there is none."""
    names = list(point_axes(model))
    found = fnmatch.filter(names, pattern)
    if not found:
        raise TapError(f"no activation point matches {pattern!r}; {suggest(pattern, names)}")
    return found


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
    globs = [read] if isinstance(read, str) else list(read)
    wanted = {name for glob in globs for name in match_points(model, glob)}
    for glob, f in (edit or {}).items():
        if not callable(f):
            what = f"a tensor of shape {tuple(f.shape)}" if isinstance(f, Tensor) else repr(f)
            raise TapError(f"the edit of {glob} is {what}", "give a function of the activation: lambda x: 0 * x")
    edits = {name: f for glob, f in (edit or {}).items() for name in match_points(model, glob)}
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
