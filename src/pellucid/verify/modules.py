"""What any torch module can be asked, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.engine.compiling import compilable, compile_each, compiler_here, uncompile
from pellucid.verify.measure import distance
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial


def embedding_gradient(
    table: nn.Module, ids: Int[Tensor, "batch time"], run: Callable[[], Tensor], score: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch time d_model"]:
    """Gradient of ``score(run())`` with respect to what ``table`` gave for ``ids``, in the last call that was for them.

    A table that two sides share is called for both; the side that writes comes last.
    """
    seen: list[Tensor] = []

    def leaf(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        vectors = out.detach().requires_grad_()
        if args and torch.equal(args[0].cpu(), ids):
            seen.append(vectors)
        return vectors

    handle = table.register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            value = score(run())
            if not seen:
                raise NotApplicable(f"{type(table).__name__} was not asked for the vectors of these ids")
            (gradient,) = torch.autograd.grad(value, seen[-1:], allow_unused=True, materialize_grads=True)
    finally:
        handle.remove()
    return gradient.cpu()


def sensitivity(subject: Subject, tables: Sequence[nn.Module], draws: int = 1, rows: int = 2, time: int = 8) -> float:
    """How far outputs move, at most, when every number that the tables give is rounded up or down at random.

    0 for a model that gives two answers to one question: what that hides is no rounding.
    """
    eps = torch.finfo(subject.dtype).eps
    generator = torch.Generator().manual_seed(0)

    def rounded(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out * (1 + eps * (torch.randint(0, 2, out.shape, generator=generator).to(out) * 2 - 1))

    seen = [0.0]
    for seed in range(draws):
        trial = Trial(seed, "sensitivity", Path())
        _, reading = next(trial.readings(subject, rows, min(time, trial.time(subject))))
        expected = subject.run(reading)
        if not torch.equal(subject.run(reading), expected):
            return 0.0
        handles = [table.register_forward_hook(rounded) for table in dict.fromkeys(tables)]
        try:
            seen.append(distance(subject.run(reading), expected))
        finally:
            for handle in handles:
                handle.remove()
    return max(seen)


def turbulence(subject: Subject, tables: Sequence[nn.Module]) -> float:
    """``sensitivity`` of more rows, longer ones, several times: in a chaotic model, few of many outputs jump far."""
    return sensitivity(subject, tables, draws=4, rows=4, time=16)


_Module = TypeVar("_Module", bound=nn.Module)


def roughen(module: _Module) -> _Module:
    """Move each weight, in place, by what rounding to bfloat16 takes from a number; the module.

    Published weights mostly are numbers of bfloat16 already, which rounding leaves alone: so √2 times each is rounded.
    """
    for weight in module.parameters():
        weight.data = (weight.data * math.sqrt(2)).bfloat16().to(weight.dtype) / math.sqrt(2)
    return module


@contextmanager
def compiled_blocks(module: nn.Module) -> Iterator[None]:
    """Every layer of every list of layers compiled while the block runs: equal ones share one compilation.

    Raises NotApplicable without a C++ compiler, which torch.compile needs on a CPU.
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    if on_cpu and not compiler_here():
        raise NotApplicable("torch.compile needs a C++ compiler (g++ or clang++), and there is none here")
    parts = compilable(module) or [module]
    torch.compiler.reset()
    compile_each(parts, fullgraph=False)
    try:
        yield
    finally:
        uncompile(parts)
        torch.compiler.reset()
