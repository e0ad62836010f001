"""tyro, set up once for all commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tyro


def parse(command: Callable[..., Any], arguments: Sequence[str], examples: str) -> None:
    """Call ``command`` with its arguments from the command line; ``examples`` end its help text."""
    shown = "\n".join(f"  $ pellucid {line}" for line in examples.strip().splitlines())
    tyro.cli(
        command,
        args=list(arguments),
        prog=f"pellucid {command.__name__}",
        description=f"{_summary(command)}\n\nexamples\n{shown}",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _summary(command: Callable[..., Any]) -> str:
    """The docstring up to its ``Args:``, which tyro shows beside each flag."""
    return inspect.cleandoc(command.__doc__ or "").split("\nArgs:")[0].strip()
