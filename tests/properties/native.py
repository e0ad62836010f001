"""The kernels in C++, built once and switched on for one test; everything else runs without them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import pytest

from pellucid.nn.native.library import Library, library


@cache
def _operators() -> tuple[Any, str]:
    """The operators, built where nobody has, and why there are none."""
    with mock.patch.dict(os.environ, {"PELLUCID_NATIVE": "1"}):
        found = Library()
        found.ready(build=True)
    return found.ops, found.why


@contextmanager
def kernels(instructions: str | None = None) -> Iterator[None]:
    """Inside, the kernels are used, by this set of instructions or the best that the processor has."""
    operators, why = _operators()
    if operators is None:
        pytest.skip(why)
    best = operators.instructions()[0]
    operators.use(instructions or best)
    kept = library.ops, library.why, library._settled
    library.ops, library.why, library._settled = operators, "", True
    try:
        yield
    finally:
        library.ops, library.why, library._settled = kept
        operators.use(best)
