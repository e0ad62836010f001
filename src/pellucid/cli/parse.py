"""tyro, set up once for all commands."""

from __future__ import annotations

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
        description=f"{(command.__doc__ or '').strip()}\n\nexamples\n{shown}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff, tyro.conf.OmitSubcommandPrefixes),
    )
