"""The mean of a run's last checkpoints: often better than the last one alone (Vaswani et al. 2017, section 6.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pellucid.checkpoints.native import load_model
from pellucid.errors import CheckpointError
from pellucid.nn.models import AnyModel
from pellucid.train import checkpoint
from pellucid.train.config import Run

AVERAGED = "averaged"  # before the names of its measures, and its folder's name


def last_checkpoints(folder: Path, run: Run, most: int) -> list[Path]:
    """The run's newest valid checkpoints, the newest first."""
    found: list[Path] = []
    for path in sorted((folder / checkpoint.FOLDER).glob("step-*"), reverse=True):
        try:
            checkpoint.check(path, run)
        except CheckpointError:
            continue
        found.append(path)
    return found[:most]


def mean_weights(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of each weight over these checkpoints, summed in float64."""
    total: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for path in paths:
        for name, weight in load_model(path).state_dict().items():
            kinds[name] = weight.dtype
            total[name] = total[name] + weight.double() if name in total else weight.double()
    return {name: (weight / len(paths)).to(kinds[name]) for name, weight in total.items()}


@contextmanager
def weights_in(model: AnyModel, weights: dict[str, Tensor]) -> Iterator[None]:
    """The model has other weights while the block runs, then its own again."""
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
