"""What a checkpoint is to its readers: a config, and tensors that are read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Size, Tensor


@runtime_checkable
class Source(Protocol):
    """Tensors in a file or several, under the names that the published safetensors have; nothing is read until asked.

    shapes: of every tensor, so that all can be checked before one is read.
    """

    where: Path
    shapes: Mapping[str, Size]

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor, in this type and in memory of its own, which the reader may keep.

        Large ones are converted piece by piece, so that reading takes little more memory than the result. Raises
        CheckpointError where it is not of floating point, or its bytes are not what its header says.
        """
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A published model, opened: ``config`` as its config.json says it (or would), and its tensors."""

    config: Mapping[str, Any]
    source: Source
    where: Path
