"""What a checkpoint is to its readers: a config, and tensors that are read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Size, Tensor


class Source(Protocol):
    """Tensors in a file or several, under the names that the published safetensors have; nothing is read until asked.

    shapes: of every tensor, so that all can be checked before one is read.
    """

    where: Path
    shapes: Mapping[str, Size]

    def read(self, name: str) -> Tensor:
        """One tensor, of floating point. Raises CheckpointError where its bytes are not what its header says."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A published model, opened: ``config`` as its config.json says it (or would), and its tensors."""

    config: Mapping[str, Any]
    source: Source
    where: Path
