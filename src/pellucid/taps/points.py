"""Modules with activation points, and the full names of these."""

from __future__ import annotations

import difflib
import fnmatch
import re
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor, nn

from pellucid.errors import TapError
from pellucid.taps.listener import Listener


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

    def refuse_edit(self, name: str, why: str) -> None:
        """Raise TapError where this point is edited by someone, in a call that does not pass it."""
        listener = self.ears.listener
        if listener is not None and listener.edits(name):
            raise TapError(f"the edit of {self.path}{name} would change nothing: {why}; edit an earlier point")


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


def match_points(names: Collection[str], patterns: Iterable[str]) -> list[list[str]]:
    """Which of a model's names (``point_axes``) each glob matches, in the order of the model.

    Raises TapError, with a suggestion, for a glob that matches nothing.
    """
    found: list[list[str]] = []
    for pattern in patterns:
        found.append([pattern] if pattern in names else fnmatch.filter(names, pattern))
        if not found[-1]:
            raise TapError(f"no activation point matches {pattern!r}; {_nearest(pattern, list(names))}")
    return found


def _nearest(pattern: str, names: list[str]) -> str:
    """The names that a pattern may have meant, up to three; where none is near, all kinds of points."""
    kinds = list(dict.fromkeys(re.sub(r"\bblocks\.\d+\.", "blocks.*.", name) for name in names))
    among = kinds if "*" in pattern else names
    near = difflib.get_close_matches(pattern[:200], among, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(kinds)}"
