"""torch.compile for blocks: is there a compiler, and how are blocks compiled and given back?

Only the blocks are compiled. Everything around them (embedding, head, validation, samples) runs eagerly: each of its
many shapes would cost seconds of compilation, and change which code the next training step runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import nn


def compiler_here() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)


def compilable(model: nn.Module) -> list[nn.Module]:
    """Every layer of the model's lists of layers, of any library, except those that say they cannot be compiled."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    return [layer for layers in lists for layer in layers if getattr(layer, "compiles", True)]


def compile_each(parts: Iterable[nn.Module], *, fullgraph: bool = True, dynamic: bool | None = False) -> None:
    """Compile each module; equal ones share one compilation. Weights keep their names.

    dynamic: False compiles again for each new shape; None notices which sizes change, and then leaves them open.
    """
    for part in parts:
        part.compile(fullgraph=fullgraph, dynamic=dynamic)


def uncompile(parts: Iterable[nn.Module]) -> None:
    """Undo ``compile_each``."""
    for part in parts:
        part._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]  (torch has no public way back)


def eagerly() -> AbstractContextManager[None]:
    """A context in which compiled modules run their plain code."""
    return torch.compiler.set_stance("force_eager")
