"""A room that is also the verb of its name: ``pellucid.train`` is a package, ``pellucid.train(...)`` trains."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package that can be called; the function is looked up when it is."""

    _verb: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = self._verb
        return getattr(import_module(module), name)(*args, **kwargs)


def make_callable(package: str, module: str, name: str) -> None:
    """Let ``package(...)`` call ``module.name(...)``, which is imported only then."""
    room = sys.modules[package]
    room.__class__ = Room
    setattr(room, "_verb", (module, name))  # noqa: B010  (a module has no declared attributes)
