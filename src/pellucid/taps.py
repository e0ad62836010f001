"""Activation points: read or replace what flows through a model, at no cost while nobody listens.

A module that has points derives from ``Tapped`` and passes each through ``self.tap(name, x)``. With no listener that
returns x: no wrapper module, no graph node, no recompilation. ``tapped(model, ...)`` sets one, only on the modules that own
a wanted point, so that everything else goes on running the code it has compiled.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn

from pellucid.errors import TapError, suggest

Edit = Callable[[Tensor], Tensor]


class Taps:
    """One listening: which points are read (into ``acts``) and which are replaced by ``edit[name](x)``.

    An edit comes before a read, so what is read is what the rest of the model saw.
    """

    def __init__(self, read: Iterable[str], edit: Mapping[str, Edit]):
        self.read = frozenset(read)
        self.edit = dict(edit)
        self.acts: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        """Whether the point is read or edited."""
        return name in self.read or name in self.edit

    def __call__(self, name: str, x: Tensor) -> Tensor:
        edit = self.edit.get(name)
        if edit is not None:
            edited = edit(x)
            if not isinstance(edited, Tensor):
                raise TapError(f"the edit of {name} returned {edited!r}, not a tensor of shape {tuple(x.shape)}")
            if edited.shape != x.shape:
                raise TapError(f"the edit of {name} changed its shape from {tuple(x.shape)} to {tuple(edited.shape)}")
            x = edited
        if name in self.read:
            self.acts[name] = x
        return x


class Tapped(nn.Module):
    """A module with activation points. ``points`` lists their short names; full names are ``path + short name``."""

    points: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.listener: Taps | None = None  # set here, not later: a late attribute would cost one more compilation
        self.path = ""

    def tap(self, name: str, x: Tensor) -> Tensor:
        """x, unless someone listens to this point."""
        taps = self.listener
        return x if taps is None else taps(self.path + name, x)

    def wants(self, name: str) -> bool:
        """Whether someone listens: asked only where a point costs extra work to compute."""
        taps = self.listener
        return taps is not None and taps.wants(self.path + name)


def name_points(model: nn.Module) -> None:
    """Give every tapped module its place in full names: its module path (a feed-forward layer's points are its block's)."""
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
) -> Iterator[dict[str, Tensor]]:
    """Listen while the block runs; yields the dict that each forward fills with the points read, by full name.

    read: names or globs such as ``"blocks.*.attn.pattern"``. edit: name or glob -> function from tensor to tensor of the
    same shape. Raises TapError for a name that matches nothing, and when taps are already open on one of the modules.
    """
    globs = [read] if isinstance(read, str) else list(read)
    wanted = [name for glob in globs for name in match_points(model, glob)]
    edits = {name: f for glob, f in (edit or {}).items() for name in match_points(model, glob)}
    taps = Taps(wanted, edits)
    listeners = [
        m for m in model.modules() if isinstance(m, Tapped) and any(taps.wants(m.path + point) for point in m.points)
    ]
    if any(m.listener is not None for m in listeners):
        raise TapError("taps are already open on this model: ask for all points in one call")
    for module in listeners:
        module.listener = taps
    try:
        yield taps.acts
    finally:
        for module in listeners:
            module.listener = None
