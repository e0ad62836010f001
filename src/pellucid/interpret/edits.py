"""Edits for ``model.taps(edit=...)`` that are modules: compiled with the block that they edit, once for all values.

Their values are buffers. Another module of the same class and shapes, or other numbers in the same module
(``patch.positions.fill_(7)``), run the graph that is there, so a loop over places, heads or strengths compiles once.
They move with ``.to(device)``, and one that is built from tensors is on their device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.errors import UsageError


class Patch(nn.Module):
    """Put values at places: x[rows[i], positions[i]] = values[i] (activation patching; Meng et al. 2022, section 2.1).

    Each place is in a row of its own choice, so that one forward can try as many places as the batch has rows. axis:
    where the positions are counted, 1 for streams (batch, time, ...), 2 where heads stand before the time. values have
    the axes of x that are left, and any dtype. Raises UsageError where the three do not name as many places.
    """

    rows: Tensor
    positions: Tensor
    values: Tensor

    def __init__(
        self,
        rows: Int[Tensor, " places"],
        positions: Int[Tensor, " places"],
        values: Float[Tensor, "places ..."],
        axis: int = 1,
    ):
        super().__init__()
        if not len(rows) == len(positions) == len(values):
            raise UsageError(
                f"Patch: {len(rows)} rows, {len(positions)} positions, {len(values)} values", "give one of each a place"
            )
        self.axis = axis
        self.register_buffer("rows", rows)
        self.register_buffer("positions", positions)
        self.register_buffer("values", values)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        by_place = x.movedim(self.axis, 1)
        return by_place.index_put((self.rows, self.positions), self.values.to(x.dtype)).movedim(1, self.axis)


class Scale(nn.Module):
    """x · factor, for any factor that broadcasts to x: 0 for a channel or head that is to be knocked out.

    Heads of ``z`` (batch, heads, time, head_dim) take a factor of shape (heads, 1, 1).
    """

    factor: Tensor

    def __init__(self, factor: Float[Tensor, "*axes"] | float):
        super().__init__()
        self.register_buffer("factor", torch.as_tensor(factor))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return x * self.factor.to(x.dtype)


class Add(nn.Module):
    """x + strength · vector, for any vector that broadcasts to x (steering; Turner et al. 2023, section 3)."""

    vector: Tensor
    strength: Tensor

    def __init__(self, vector: Float[Tensor, "*axes"], strength: Float[Tensor, ""] | float = 1.0):
        super().__init__()
        self.register_buffer("vector", vector)
        self.register_buffer("strength", torch.as_tensor(strength))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return x + (self.strength * self.vector).to(x.dtype)
