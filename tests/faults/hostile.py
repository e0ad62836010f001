"""JSON as careless and hostile hands make it, for tests of whatever reads it."""

from __future__ import annotations

import contextlib
import copy
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pellucid.errors import LONGEST, PellucidError

Json = Any
Place = tuple[str | int, ...]

# what careless and hostile hands put where something else belongs
ODD: list[Json] = [
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "\x1b[2J\u202e", "\0", "\ud800", "a" * 5000, "../x", [], {}, [1], [None], [[]], {"a": 1}, {"": {}}),
    *({"rope_type": []}, {"rope_type": "yarn"}, {"rope_type": "linear", "factor": 0}, ["sliding_attention"], [0] * 999),
]


def places(value: Json, path: Place = ()) -> Iterator[Place]:
    """Every place in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


@st.composite
def spoiled(draw: st.DrawFn, good: Json) -> Json:
    """The value with one to three things in it replaced, removed, doubled, moved or added."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        if not (where := list(places(value))):
            return value
        *path, key = draw(st.sampled_from(where))
        inside = value
        for step in path:
            inside = inside[step]
        new = copy.deepcopy(draw(st.sampled_from([*ODD, inside[key]])))
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "remove":
                del inside[key]
            case "add" if isinstance(inside, list):
                inside.insert(int(key), new)
            case "add":
                inside[draw(st.sampled_from([str(p[-1]) for p in where] + [v for v in ODD if isinstance(v, str)]))] = (
                    new
                )
            case _:
                inside[key] = new
    return value


def read_or_refused(read: Callable[[], object]) -> None:
    """Nothing but a typed error, which is short, can be written out, and has no power over a terminal."""
    try:
        read()
    except PellucidError as error:
        text = str(error)
        assert len(text) < 3 * LONGEST
        assert text.encode() and all(char.isprintable() or char == "\n" for char in text if char.isascii()), repr(text)


def put_socket(path: Path) -> None:
    """No plain file: whoever opens it gets an error at once, and whoever looks first does not open it."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # the name of a socket has to be short
        made.bind(path.name)
