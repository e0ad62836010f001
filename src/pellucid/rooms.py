"""A room that is also the verb of its name: ``pellucid.train`` is a package, ``pellucid.train(...)`` trains."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package that can be called; the function is looked up when it is."""

    _verb: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., Any]:
        module, name = self._verb
        return getattr(import_module(module), name)


def make_callable(package: str, module: str, name: str) -> None:
    """Let ``package(...)`` call ``module.name(...)``, which is imported only then."""
    room = sys.modules[package]
    room.__class__ = Room
    room.__doc__ = (
        f"{room.__doc__}\n``{package}(...)`` is ``{module}.{name}``, and help({module}.{name}) explains it.\n"
    )
    setattr(room, "_verb", (module, name))  # noqa: B010  (a module has no declared attributes)
