"""Attention before 2017: a decoder's state is scored against each of an encoder's, and they are averaged by weight.

::

    score(h, s_j)      dot: h·s_j      general: h·W s_j      additive: vᵀ tanh(W h + U s_j)
    pattern            softmax over j
    context            c = Σ_j pattern_j s_j

One head, no scale, and nothing of the encoder's is projected on the way into c.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.errors import DataError, SpecError
from pellucid.nn.kernels.reference import forbidden, masked_softmax
from pellucid.nn.registry import computes
from pellucid.nn.stores import MemoryCache
from pellucid.nn.view import View
from pellucid.nn.wide import wide
from pellucid.spec import AlignmentSpec
from pellucid.taps import Tapped


class Scores(nn.Module):
    """score(h, s_j) of every query h and memory s_j (Luong et al. 2015, section 3.1; Bahdanau et al. 2015, A.1.2).

    Paper names: W_a of the general score is ``k``; of the additive one W_a is ``q``, U_a ``k``, v_a ``v``. Raises
    SpecError where dot scores would compare vectors of different width.
    """

    def __init__(self, spec: AlignmentSpec, d_query: int, d_memory: int):
        super().__init__()
        if spec.score == "dot" and d_query != d_memory:
            raise SpecError(
                f"AlignmentSpec: dot scores compare queries of width {d_query} with memory of width {d_memory}",
                'make them equal, or choose score="general"',
            )
        additive = spec.score == "additive"
        self.q = nn.Linear(d_query, spec.d_align, bias=False) if additive else None
        width = spec.d_align if additive else d_query
        self.k = None if spec.score == "dot" else nn.Linear(d_memory, width, bias=False)
        self.v = nn.Linear(spec.d_align, 1, bias=False) if additive else None

    def keys(
        self, memory: Float[Tensor, "batch key d_memory"], past: MemoryCache | None
    ) -> Float[Tensor, "batch key width"]:
        """The part of the scores that is the memory's own; computed once where ``past`` keeps it."""
        if past is None:
            return memory if self.k is None else self.k(memory)
        if past.tensors is None:
            past.tensors = (self.keys(memory, None),)
        return past.tensors[0]

    def forward(
        self, h: Float[Tensor, "batch query d_query"], keys: Float[Tensor, "batch key width"]
    ) -> Float[Tensor, "batch 1 query key"]:
        """Scores before the mask, in float32 or wider."""
        if self.q is None or self.v is None:
            scores = h @ keys.mT
        else:
            scores = self.v(torch.tanh(self.q(h)[:, :, None] + keys[:, None])).squeeze(-1)  # (b, q, k, d_align) inside
        return wide(scores[:, None])


def memory_of(view: View) -> Float[Tensor, "batch key d_memory"]:
    """The encoder's states. Raises DataError where there are none."""
    if view.memory is None:
        raise DataError("alignment has nothing to look at: the view has no memory", "pass what an encoder has read")
    return view.memory


@computes(AlignmentSpec)
class Alignment(Tapped):
    """tanh(o([c; h])): what a block adds to a decoder's state h, given the context c (Luong et al. 2015, equation 5).

    Paper name: W_c is ``o``. Points: ``scores`` (before the mask) and ``pattern`` (batch, 1, query, key); ``z``, the
    context c (batch, query, d_model).
    """

    def __init__(self, spec: AlignmentSpec, d_model: int):
        super().__init__()
        self.score = Scores(spec, d_model, d_model)
        self.o = nn.Linear(2 * d_model, d_model, bias=False)

    def points(self) -> dict[str, str]:
        maps = dict.fromkeys(("scores", "pattern"), "batch heads query key")
        return {**maps, "z": "batch time d_model"}

    def forward(
        self, x: Float[Tensor, "batch query d_model"], view: View, past: MemoryCache | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """``view``: the memory, and who sees what of it. ``past``: the memory's projection, kept since the first call.

        Raises DataError for a view without memory.
        """
        memory = memory_of(view)
        scores = self.tap("scores", self.score(x, self.score.keys(memory, past)))
        pattern = self.tap("pattern", masked_softmax(scores, forbidden(view.visible, scores)))
        z = self.tap("z", pattern[:, 0].to(memory.dtype) @ memory)
        return torch.tanh(self.o(torch.cat((z, x), -1)))
