"""A tensor as it is stored: plain numbers, or blocks of codes that stay quantised in memory until they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Size, Tensor

from pellucid.nn.formats import FORMATS, Format
from pellucid.nn.native.library import opened

PIECE = 1 << 16  # numbers opened at a time
EXPONENT = 0x7C  # bits of a float16's second byte; all are set in infinity and NaN


@dataclass(frozen=True)
class Plain:
    """Numbers of one of torch's own types."""

    tensor: Shaped[Tensor, "*axes"]

    @property
    def shape(self) -> Size:
        return self.tensor.shape

    def is_finite(self, dtype: torch.dtype) -> bool:
        """Whether every number is finite in this type."""
        if self.tensor.numel() == 0:
            return True
        return all(bool(extreme.to(dtype).isfinite()) for extreme in torch.aminmax(self.tensor))  # NaN is both extremes

    def opened(self, dtype: torch.dtype) -> Tensor:
        """The numbers in this type; the very tensor where it has that type already."""
        return self.tensor.to(dtype)


@dataclass(frozen=True)
class Quantised:
    """Numbers of shape (*axes, d_in), in blocks along the last axis; ``kind`` names their layout in ``FORMATS``.

    A row's blocks stand beside each other, so the rows can be cut, permuted and joined as those of any tensor can.
    """

    blocks: UInt8[Tensor, "*axes bytes"]
    kind: str

    @property
    def format(self) -> Format:
        """How blocks of this kind are laid out."""
        return FORMATS[self.kind]

    @property
    def shape(self) -> Size:
        return Size((*self.blocks.shape[:-1], self.blocks.shape[-1] // self.format.n_bytes * self.format.numbers))

    def is_finite(self, dtype: torch.dtype) -> bool:
        """Whether every number is finite in this type. For a type of float32's range, scales alone tell."""
        if torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max:
            return all(bool(piece.to(dtype).isfinite().all()) for piece in self.pieces())
        # By numpy, whose code takes 4 MB less than torch's. Of a float16 the second byte in memory holds the exponent.
        blocks = self.blocks.reshape(-1, self.format.n_bytes).numpy(force=True)
        return not any(
            bool(((blocks[first : first + PIECE, place + 1] & EXPONENT) == EXPONENT).any())
            for place in self.format.scales
            for first in range(0, len(blocks), PIECE)
        )

    def pieces(self) -> Iterator[Float[Tensor, "blocks numbers"]]:
        """The numbers in float32, some blocks at a time."""
        for blocks in self.blocks.reshape(-1, self.format.n_bytes).split(PIECE // self.format.numbers):
            yield self.format.opened(blocks)

    def opened(self, dtype: torch.dtype) -> Tensor:
        """The numbers in this type: made in float32, as ggml makes them, and then rounded."""
        if (whole := opened(self.blocks, self.kind) if dtype == torch.float32 else None) is not None:
            return whole
        out = torch.empty(self.shape, dtype=dtype, device=self.blocks.device)
        places = out.view(-1, self.format.numbers).split(PIECE // self.format.numbers)
        for place, numbers in zip(places, self.pieces(), strict=True):
            place.copy_(numbers)
        return out


Stored: TypeAlias = Plain | Quantised


def row_bytes(d_in: int, kind: str) -> int:
    """How many bytes a row of ``d_in`` numbers takes in this format."""
    return d_in // FORMATS[kind].numbers * FORMATS[kind].n_bytes
