"""Some cases of a test for `make test`, all of them for `make test-all`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_of(cases: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Parameters of a test: those that are not among the ``quick`` ones are marked as slow."""
    names = list(cases)
    assert set(quick) <= set(names), f"no case is called {sorted(set(quick) - set(names))}"
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
