"""Documents of different lengths through torch's recurrent kernels, without padding.

Each document is read as a row of its own. Sorted by length, those still going on at any time are the first ones, so the
whole is a staircase, and each step of the stairs a rectangle that a kernel takes at once::

    document 1   • • │ • • • │ • • •
    document 2   • • │ • • • └──────      no place is spent on padding, and there are
    document 3   • • │ • • • ┘            as many calls as there are different lengths
    document 4   • • ┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.nn.documents import Documents

State: TypeAlias = tuple[Tensor, ...]  # (h,) of a GRU, (h, c) of an LSTM; (rows, d_hidden) each


@dataclass(frozen=True)
class Stairs:
    """Documents sorted by length, the longest first, and their tokens in the order in which they are read.

    order, back: where each token is in (batch · time), step after step of all that still go on; from the last to first.
    sizes: (documents, steps) of each rectangle. row, doc: of each document, as in ``Documents``.
    """

    order: Int[Tensor, " tokens"]
    back: Int[Tensor, " tokens"]
    sizes: list[tuple[int, int]]
    row: Int[Tensor, " documents"]
    doc: Int[Tensor, " documents"]


def find_stairs(view: Documents, like: Float[Tensor, "batch time d_model"]) -> Stairs:
    """The stairs of a call; reads its sizes from the device."""
    batch, time = like.shape[:2]
    everywhere = torch.zeros(batch, time, dtype=torch.long, device=like.device)
    doc = everywhere if view.doc is None else view.doc
    valid = everywhere == 0 if view.valid is None else view.valid
    at = valid.flatten().nonzero()[:, 0]
    of_token = torch.arange(batch, device=like.device)[:, None] * (time + 1) + doc
    _, document, length = of_token.flatten()[at].unique_consecutive(return_inverse=True, return_counts=True)
    first = length.cumsum(0) - length
    place = torch.arange(len(at), device=like.device) - first[document]
    by_length = length.argsort(descending=True, stable=True)
    rank = by_length.argsort()[document]
    n_going, steps = place.bincount().unique_consecutive(return_counts=True)
    begin = at[first[by_length]]
    return Stairs(
        at[(place * len(length) + rank).argsort()],
        at[((length[document] - 1 - place) * len(length) + rank).argsort()],
        list(zip(n_going.tolist(), steps.tolist(), strict=True)),
        begin // time,
        doc.flatten()[begin],
    )


def run_cell(cell: nn.LSTM | nn.GRU, x: Float[Tensor, "time rows d_in"], state: State) -> tuple[Tensor, State]:
    """torch's kernel over a rectangle: h of each token (time, rows, d_hidden), and the newest state."""
    if isinstance(cell, nn.LSTM):
        h, new = cell(x, (state[0][None].contiguous(), state[1][None].contiguous()))
        return h, (new[0][0], new[1][0])
    h, new = cell(x, state[0][None].contiguous())
    return h, (new[0],)


def climb(
    cell: nn.LSTM | nn.GRU, x: Float[Tensor, "tokens d_in"], sizes: list[tuple[int, int]], state: State
) -> tuple[Float[Tensor, "tokens d_hidden"], State]:
    """All rectangles, one after the other: h of each token, and the last state of each document."""
    out, done = [], []
    for part, (n, steps) in zip(x.split([n * steps for n, steps in sizes]), sizes, strict=True):
        done.append([s[n:] for s in state])
        h, state = run_cell(cell, part.unflatten(0, (steps, n)), tuple(s[:n] for s in state))
        out.append(h.flatten(0, 1))
    ended = [list(state), *reversed(done)]  # the longest ends last
    return torch.cat(out), tuple(torch.cat(parts) for parts in zip(*ended, strict=True))
