"""Whether a checkpoint's weights fit into the memory that is free: asked before any of it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Size

from pellucid.engine.memory import gigabytes, require
from pellucid.nn.formats import FORMATS


def refuse_too_large(
    where: Path, shapes: Mapping[str, Size], dtype: torch.dtype, kinds: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Raise TooLargeError where weights of these shapes do not fit. kinds: the formats of those that stay quantised."""

    def size(dtype: torch.dtype) -> int:
        total = 0
        for name, shape in shapes.items():
            form = FORMATS.get(kinds.get(name, ""))
            numbers = shape.numel()
            total += numbers * dtype.itemsize if form is None else numbers // form.numbers * form.n_bytes
        return total

    def remedy(free: int) -> str:
        half = size(torch.bfloat16)
        if half <= free and dtype.itemsize > 2:
            return f"in bfloat16 it takes {gigabytes(half)}: pellucid.load(name, torch.bfloat16)"
        if where.suffix == ".gguf" and not kinds:
            return "leave the weights as small as in the file: --quantised, or quantised=True"
        return "use a smaller model, or a machine with more memory"

    require(size(dtype), f"{where} in {str(dtype).removeprefix('torch.')}", remedy)
