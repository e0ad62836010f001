"""tyro, set up once for all commands."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from pellucid.errors import DataError


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


def text_of(argument: str) -> str:
    """The argument itself; standard input for "-". Raises DataError where that is not UTF-8."""
    if argument != "-":
        return argument
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}",
            "convert it from the encoding it is in, e.g. iconv -f ISO-8859-1 -t UTF-8",
        ) from error


def _summary(command: Callable[..., Any]) -> str:
    """The docstring up to its ``Args:``, which tyro shows beside each flag."""
    return inspect.cleandoc(command.__doc__ or "").split("\nArgs:")[0].strip()
