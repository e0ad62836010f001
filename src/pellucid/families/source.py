"""What a checkpoint is to its readers: a config, and tensors that are read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Size

from pellucid.nn.stored import Stored


@runtime_checkable
class Source(Protocol):
    """Tensors in a file or several, under the names that the published safetensors have; nothing is read until asked.

    shapes: of every tensor, so that all can be checked before one is read. kinds: the tensors that are quantised, each
    with the name of its format in ``nn.formats``.
    """

    where: Path
    shapes: Mapping[str, Size]
    kinds: Mapping[str, str]

    def read(self, name: str, dtype: torch.dtype | None = None) -> Stored:
        """One tensor as it is stored, in memory of its own, which the reader may keep: ``Quantised`` where ``kinds``
        names it, else ``Plain``, whose ``opened`` gives the tensor in any type.

        dtype: the type that it will be opened in (default: the file's own). Large tensors are then converted piece by
        piece while they are read, so that reading takes little more memory than the result. Raises CheckpointError for
        a tensor that is not of floating point, and for bytes that are not what the header says.
        """
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A published model, opened: ``config`` as its config.json says it (or would), and its tensors."""

    config: Mapping[str, Any]
    source: Source
    where: Path
