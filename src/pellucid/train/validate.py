"""Bits per byte: how well a text is predicted, in a unit that no tokenizer can flatter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch

from pellucid.batch import Batch
from pellucid.engine.modes import evaluating
from pellucid.nn.models import Model


def bits_per_byte(
    model: Model,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float:
    """Sum of -log2 p over all scored tokens, divided by the bytes of text they stand for (nan when there are none).

    The tokens that end documents are paid for too, but stand for no byte, so this is never better than the truth.
    """
    nats, n_bytes = 0.0, 0
    with evaluating(model), torch.no_grad(), autocast():
        for batch in batches:
            nats += float(model.nll_sum(batch))
            n_bytes += batch.n_bytes
    return nats / math.log(2) / n_bytes if n_bytes else math.nan
