"""What a model makes of held-out batches: sums over all of them, from which a feed makes its named measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pellucid.batch import Batch
from pellucid.engine.modes import evaluating
from pellucid.nn.base import Model
from pellucid.train.objectives import nll
from pellucid.train.world import ALONE, World


def held_out_sums(
    model: Model,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    world: World = ALONE,
    measured: Callable[[Model, Batch], tuple[Tensor, int | float, int]] | None = None,
) -> dict[str, float]:
    """nats: the sum of -ln p over scored places; count: how many those are, or the sum of their weights; bytes: of the
    text that they stand for; marked: places whose label is rarer than the other one, of a model that tells two apart.
    measured: gives nats, count and marked places of a batch, in place of the model's own.

    All processes are given the same batches, and share them out: each reads every ``size``-th.
    """
    nats, count, n_bytes, marked = 0.0, 0, 0, 0
    with evaluating(model), torch.no_grad(), autocast():
        for number, batch in enumerate(batches):
            if number % world.size == world.rank:
                batch = batch.to(world.device)
                each = measured(model, batch) if measured else (model.nll_sum(batch), nll.count(batch), 0)
                nats, count, marked = nats + float(each[0]), count + each[1], marked + each[2]
                n_bytes += batch.n_bytes
    found = {"nats": nats, "count": count, "bytes": n_bytes, "marked": marked}
    return {name: float(world.total(x)) for name, x in found.items()}
