"""torch.compile for training: the blocks only, and only for the one shape that training has.

Everything else (validation, samples, whatever is done with the model afterwards) runs eagerly: each of its many shapes
would cost seconds of compilation, and change which code the next training step runs.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from pellucid.batch import Batch, Tokens
from pellucid.nn.models import Decoder


def compiler_here() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)


def compile_blocks(model: Decoder) -> None:
    """Compile every block that can be (torch's recurrent kernels cannot); equal blocks share one compilation. Weights
    keep their names."""
    for block in model.blocks:
        if block.compiles:
            block.compile(fullgraph=True, dynamic=False)


def uncompile(model: Decoder) -> None:
    """Undo ``compile_blocks``."""
    for block in model.blocks:
        block._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]  (torch has no public way back)


def eagerly() -> AbstractContextManager[None]:
    """A context in which compiled blocks run their plain code."""
    return torch.compiler.set_stance("force_eager")


def one_form(batch: Batch) -> Batch:
    """The batch with its segments always written out, so that rows with and without a boundary run the same code."""
    return replace(batch, tokens=Tokens(batch.tokens.pos, batch.tokens.segments))
