"""One new token of each row through all blocks at once, by a program in C++: no Python over layers.

What a program cannot do is left to the blocks themselves, and ``why_not`` says what that is: listeners and hooks,
gradients, several new tokens a row, mixers other than attention, score terms, adapted weights. A program is written
for a cache when its first token comes, and looked over before each one: a weight that has moved, or a module that has
been replaced, makes a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _python_dispatch as dispatch

from pellucid.nn.block import Block
from pellucid.nn.cache import Cache
from pellucid.nn.documents import Documents
from pellucid.nn.native.library import library
from pellucid.nn.native.program import CHANGED, PLAIN, Inexpressible, Program, write
from pellucid.nn.stores import LayerCache
from pellucid.nn.view import View

MOST_ROWS = 16
_PROGRAMS: WeakKeyDictionary[Cache, Program | str] = WeakKeyDictionary()  # of a text; a str says why there is none


def why_not(x: Tensor, blocks: Sequence[Block], cache: Cache | None, alike: Sequence[int]) -> str | None:
    """Why the blocks run themselves; None where ``run`` can take this call. alike: the number of each block's view."""
    if cache is None or x.shape[1] != 1 or not 0 < x.shape[0] <= MOST_ROWS:
        return f"a program reads one new token of each of at most {MOST_ROWS} rows, over a cache"
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) is not Tensor:
        return "gradients, or a graph, are made"
    if x.dtype not in PLAIN or x.device.type != "cpu":
        return f"kernels do not compute {x.dtype} on {x.device.type}"
    if not library.ready():
        return f"native kernels are not there: {library.why}"
    if dispatch._get_current_dispatch_mode() is not None:  # pyright: ignore[reportPrivateUsage]
        return "somebody watches every operator"
    if not all(isinstance(layer, LayerCache) and layer.k.dtype in PLAIN for layer in cache.layers):
        return "layers keep something else than keys and values"
    found = _PROGRAMS.get(cache)
    if found is None:
        found = _PROGRAMS[cache] = _written(blocks, x.shape[-1], alike)
    if isinstance(found, str):
        return found
    why = found.why_not()
    if why == CHANGED:
        del _PROGRAMS[cache]  # it is written anew for the next token
    return why


def _written(blocks: Sequence[Block], d_model: int, alike: Sequence[int]) -> Program | str:
    try:
        return write(blocks, d_model, alike)
    except Inexpressible as what:
        return f"no instruction for {what}"


def run(
    x: Float[Tensor, "batch 1 d_model"], cache: Cache, views: Sequence[View | Documents]
) -> Float[Tensor, "batch 1 d_model"]:
    """The residual stream after all blocks, where ``why_not`` is None. views: those that blocks share, by number."""
    program = _PROGRAMS[cache]
    assert isinstance(program, Program)
    shared = [view for view in views if isinstance(view, View)]  # all are: no other mixer than attention has a program
    stores = [layer.reserved() for layer in cache.layers if isinstance(layer, LayerCache)]
    everything, none = torch.empty(0, dtype=torch.bool), torch.empty(0)
    seen = [everything if (mask := view.visible.dense()) is None else mask.contiguous() for view in shared]
    turned = [(none, none) if view.rotation is None else view.rotation for view in shared]
    y = x.float() if x.dtype != torch.float32 else x.clone(memory_format=torch.contiguous_format)
    library.ops.step(
        y, program.lines, program.width,
        [store.k for store in stores], [store.v for store in stores], [store.places for store in stores],
        [store.n_keys for store in stores],
        seen, [cos.contiguous() for cos, _ in turned], [sin.contiguous() for _, sin in turned],
    )  # fmt: skip
    return y.to(x.dtype)
