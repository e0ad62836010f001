"""Means of a run's weights, over its last checkpoints (Vaswani et al. 2017, section 6.1) or over all its steps, with
more of the late ones (Polyak & Juditsky 1992): both are often better than the last weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid.checkpoints.native import load_model, refuse_misfit
from pellucid.errors import CheckpointError
from pellucid.nn.models import AnyModel
from pellucid.train import checkpoint
from pellucid.train.config import Run

AVERAGED, EMA = "averaged", "ema"  # before the names of their measures, and their folders' names


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


class MovingAverage:
    """The mean of the weights after each step, where each step's share fades by ``decay`` with every later step.

    mean ← mean + (1 − d) · (weights − mean), where d = min(decay, (1 + n) / (10 + n)) after n steps, so that the first
    weights, which were drawn, are soon forgotten. Only what is trained is averaged, in float32; what is frozen is the
    same anyhow.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self._trained.items()}

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Take in the weights after ``done`` steps."""
        share = 1 - min(self.decay, (1 + done) / (10 + done))
        for mean, weight in zip(self.weights.values(), self._trained.values(), strict=True):
            mean.lerp_(weight.detach().float(), share)

    def load(self, weights: Mapping[str, Tensor], source: Path) -> None:
        """Go on from what a checkpoint kept. Raises CheckpointError where that is of another model."""
        refuse_misfit(
            {name: w.shape for name, w in self.weights.items()}, {name: w.shape for name, w in weights.items()}, source
        )
        for name, mean in self.weights.items():
            mean.copy_(weights[name])


def means(folder: Path, run: Run, moving: MovingAverage | None) -> Iterator[tuple[str, Mapping[str, Tensor], str]]:
    """The means of weights that a run is asked for: (name, weights, what they are), one made after the other."""
    if run.keeping.average > 1:
        paths = last_checkpoints(folder, run, run.keeping.average)
        yield AVERAGED, mean_weights(paths), f"the mean of {len(paths)} checkpoints"
    if moving is not None:
        yield EMA, moving.weights, f"the mean that fades by {moving.decay:g} a step"


@contextmanager
def weights_in(model: AnyModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model's parameters of these names have these values while the block runs, then their own again."""
    own = {name: (p, p.detach().clone()) for name, p in model.named_parameters() if name in weights}
    with torch.no_grad():
        for name, (parameter, _) in own.items():
            parameter.copy_(weights[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in own.values():
                parameter.copy_(before)
