"""Evaluation mode for a while: dropout is off inside, and afterwards each part of the model is as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def evaluating(
    model: nn.Module, *, inference: bool = False, modules: Iterable[nn.Module] | None = None
) -> Iterator[None]:
    """Every module of ``model`` in eval mode; afterwards each is again in its own, however the block is left.

    inference: also torch's inference mode, in which nothing is recorded for gradients. modules: those of the model, for
    a caller who enters for each token and has listed them once.
    """
    training = [module for module in (model.modules() if modules is None else modules) if module.training]
    try:
        for module in training:
            module.training = False
        with torch.inference_mode() if inference else nullcontext():
            yield
    finally:
        for module in training:
            module.training = True
