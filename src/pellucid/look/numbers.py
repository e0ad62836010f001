"""Values of a look as JSON values, with as many digits as a reader needs; and as a short repr."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

MOST_ITEMS = 3  # a container of more is only counted in a repr


class Brief:
    """A dataclass whose repr is short: of an array its shape, of a long container how many of what it holds."""

    def __repr__(self) -> str:
        assert is_dataclass(self)
        told = (f"{field.name}={_brief(getattr(self, field.name))}" for field in fields(self))
        return f"{type(self).__name__}({', '.join(told)})"


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{' × '.join(map(str, value.shape))}]"
    if isinstance(value, dict | tuple) and len(value) > MOST_ITEMS:
        items = value.values() if isinstance(value, dict) else value
        kinds = {"array" if isinstance(item, np.ndarray) else type(item).__name__ for item in items}
        return f"{len(value)} × {' or '.join(sorted(kinds))}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_brief, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_brief(item)}' for key, item in value.items())}}}"
    return repr(value)


def plain(value: Any, digits: int = 4) -> Any:
    """JSON values of arrays, dataclasses, and containers of them; floats to so many significant digits.

    Infinities and NaN, for which JSON has no word, become null; keys become strings.
    """
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), digits)
    if is_dataclass(value):
        return plain(vars(value), digits)
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return value
