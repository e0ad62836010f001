"""Values of a look as JSON values, with as many digits as a reader needs."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import numpy as np


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
