"""One training step, the same for every objective: sum over micro-batches, divide by the global count, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.batch import Batch
from pellucid.nn.base import Model
from pellucid.train.objectives import Objective
from pellucid.train.world import ALONE, World


@dataclass(frozen=True)
class StepResult:
    """loss: mean over scored terms, in nats. grad_norm: before clipping. finite: both are; else nothing was updated."""

    loss: float
    grad_norm: float
    count: int | float
    finite: bool


def accumulate(
    model: Model,
    objective: Objective,
    batches: Sequence[Batch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    world: World = ALONE,
) -> tuple[Tensor, int | float]:
    """Gradients of the mean loss over all batches of all processes, this one's part, added to ``.grad``.

    Returns this process's part of that loss, and how many terms all have. Dividing by the global count first makes any
    split into micro-batches and processes give the same gradient. Averaging their means would weigh a short batch like
    a long one (measured on uneven batches: cosine 0.865 to the true gradient).
    """
    count = world.total(sum(objective.count(batch) for batch in batches))
    total = torch.zeros((), device=world.device)
    for batch in batches:
        with autocast():
            loss = objective(model, batch) / (count or 1)
        loss.backward()
        total = total + loss.detach()
    return total, count


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))


def _sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Each gradient becomes its sum over all processes; one that a process does not have counts as zeros there."""
    for p in parameters:
        if p.requires_grad:
            p.grad = world.sum(torch.zeros_like(p) if p.grad is None else p.grad)


def step(
    model: Model,
    optimizers: Sequence[torch.optim.Optimizer],
    objective: Objective,
    batches: Sequence[Batch],
    *,
    clip: float | None = 1.0,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    world: World = ALONE,
    trained: nn.Module | None = None,
) -> StepResult:
    """One update from this process's micro-batches of one global batch.

    clip: largest gradient norm; None leaves it be. trained: what has all parameters that are trained, where the model
    does not: it and its aids. The result is the same on every process.
    A loss or gradient that is not finite updates nothing: the caller decides whether to stop or to go on.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    total, count = accumulate(model, objective, batches, autocast, world)
    parameters = list((model if trained is None else trained).parameters())
    if world.size > 1:
        _sum_gradients(parameters, world)
    norm = gradient_norm(parameters)
    loss, size = world.total(float(total)), float(norm)
    finite = torch.isfinite(torch.tensor((loss, size))).all().item() is True
    if finite:
        if clip is not None and size > clip:
            for p in parameters:
                if p.grad is not None:
                    p.grad.mul_(clip / (size + 1e-6))
        for optimizer in optimizers:
            optimizer.step()
    return StepResult(loss, size, count, finite)
