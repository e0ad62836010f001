"""Activation points: read or replace what flows through a model, at no cost while nobody listens.

A module that has points derives from ``Tapped`` and passes each through ``self.tap(name, x)``. With no listener that
returns x: no wrapper module, no graph node, no recompilation. ``tapped(model, ...)`` sets one, only on the modules that
own a wanted point, so that everything else goes on running the code it has compiled.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn

from pellucid.errors import TapError, suggest

Edit = Callable[[Tensor], Tensor]


class Listener:
    """What one module is asked for: points to read (into ``acts``) and points to replace by ``edit[name](x)``.

    An edit comes before a read, so what is read is what the rest of the model saw. Names are the module's own, and each
    read has its place in ``acts`` from the start: so equal modules that are asked alike share one compilation.
    """

    def __init__(self, path: str, read: Sequence[str], edit: Mapping[str, Edit], outer: Listener | None = None):
        self.path, self.outer = path, outer  # for messages; who listened before, and hears every point first
        self.read, self.edit = frozenset(read), dict(edit)
        self.acts: dict[str, Tensor | None] = dict.fromkeys(read)  # written only: its values must not be looked at here

    def wants(self, name: str) -> bool:
        """Whether the point is read or edited."""
        return name in self.read or name in self.edit or (self.outer is not None and self.outer.wants(name))

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if self.outer is not None:
            x = self.outer(name, x)
        edit = self.edit.get(name)
        if edit is not None:
            edited = edit(x)
            if not isinstance(edited, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TapError(
                    f"the edit of {self.path}{name} returned {edited!r}, not a tensor of shape {tuple(x.shape)}"
                )
            if edited.shape != x.shape:
                raise TapError(
                    f"the edit of {self.path}{name} changed its shape from {tuple(x.shape)} to {tuple(edited.shape)}"
                )
            x = edited
        if name in self.read:
            self.acts[name] = x
        return x


class Activations(Mapping[str, Tensor]):
    """What the last forward passed at the points that are read, by full name. Raises TapError for any other name."""

    def __init__(self, listeners: Iterable[Listener]):
        self._places = {listener.path + name: (listener.acts, name) for listener in listeners for name in listener.acts}

    def __getitem__(self, name: str) -> Tensor:
        acts, point = self._places.get(name, ({}, name))
        x = acts.get(point)
        if x is None:
            known = (
                f"nothing has run yet; asked for: {', '.join(self._places)}"
                if name in self._places
                else suggest(name, self)
            )
            raise TapError(f"{name} was not read; {known}")
        return x

    def __iter__(self) -> Iterator[str]:
        return (name for name, (acts, point) in self._places.items() if acts[point] is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Activations({', '.join(f'{name} {tuple(x.shape)}' for name, x in self.items())})"


class Tapped(nn.Module):
    """A module with activation points. ``points`` lists their short names; full names are ``path + short name``."""

    points: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.listener: Listener | None = None  # set here, not later: a late attribute would cost one more compilation
        self.path = ""

    def tap(self, name: str, x: Tensor) -> Tensor:
        """x, unless someone listens to this point."""
        listener = self.listener
        return x if listener is None else listener(name, x)

    def wants(self, name: str) -> bool:
        """Whether someone listens: asked only where a point costs extra work to compute."""
        listener = self.listener
        return listener is not None and listener.wants(name)


def name_points(model: nn.Module) -> None:
    """Give every tapped module its place in full names: its module path (a feed-forward layer speaks as its block)."""
    for path, module in model.named_modules():
        if isinstance(module, Tapped):
            parts = [part for part in path.split(".") if part]
            module.path = "".join(part + "." for part in (parts[:-1] if parts[-1:] == ["ffn"] else parts))


def point_names(model: nn.Module) -> list[str]:
    """Full names of all points of a model, in the order of its modules."""
    return [m.path + point for m in model.modules() if isinstance(m, Tapped) for point in m.points]


def match_points(model: nn.Module, pattern: str) -> list[str]:
    """Names that a glob matches. Raises TapError, with a suggestion, when there is none."""
    names = point_names(model)
    found = fnmatch.filter(names, pattern)
    if not found:
        raise TapError(f"no activation point matches {pattern!r}; {suggest(pattern, names)}")
    return found


@contextmanager
def tapped(
    model: nn.Module, read: Iterable[str] | str = (), edit: Mapping[str, Edit] | None = None
) -> Iterator[Activations]:
    """Listen while the block runs; yields what each forward passes at the points read, by full name.

    read: names or globs such as ``"blocks.*.attn.pattern"``. edit: name or glob -> function from tensor to tensor of
    the same shape. Taps may be opened inside others: the outer ones read and edit first. Raises TapError for a name
    that matches nothing.
    """
    globs = [read] if isinstance(read, str) else list(read)
    wanted = {name for glob in globs for name in match_points(model, glob)}
    edits = {name: f for glob, f in (edit or {}).items() for name in match_points(model, glob)}
    listeners: dict[Tapped, Listener] = {}
    for module in model.modules():
        if isinstance(module, Tapped):
            reads = [point for point in module.points if module.path + point in wanted]
            replaced = {point: edits[module.path + point] for point in module.points if module.path + point in edits}
            if reads or replaced:
                listeners[module] = Listener(module.path, reads, replaced, module.listener)
    try:
        for module, listener in listeners.items():
            module.listener = listener
        yield Activations(listeners.values())
    finally:
        for module, listener in listeners.items():
            module.listener = listener.outer
