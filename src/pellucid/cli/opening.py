"""Opening a model that a person named, and saying so while it takes its time."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.nn.models import AnyModel


def open_model(name: str, quantised: bool = False, ignore: Collection[str] = ()) -> AnyModel:
    """``pellucid.load``, with a line on the terminal until it is there; standard output stays free of it."""
    from rich.console import Console
    from rich.markup import escape

    from pellucid.api import load, locate

    path = locate(name)  # before anything is shown: the hub's client has bars of its own
    with Console(stderr=True).status(f"opening {escape(path.name)}"):
        return load(path, quantised=quantised, ignore=ignore)
