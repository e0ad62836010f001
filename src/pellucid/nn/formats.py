"""Formats of quantised numbers: blocks of small integer codes, each block with scales of its own.

A weight w is stored as an integer code q; a group of neighbours shares a scale d, and in some formats an offset m:
w = d · q, or w = d · q + m. The K formats quantise the scales of 8 or 16 groups once more, and keep 256 numbers in one
block. IQ4 formats look the code up in a table of 16 values that are not evenly spaced. The layouts are those of ggml
(``ggml-quants.c``, ``ggml-common.h``); ``FORMATS`` has one entry for each, and nothing here knows a file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

# the 16 values of the IQ4 formats (ggml-common.h, kvalues_iq4nl)
_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Format:
    """How a block looks: ``numbers`` of them in ``n_bytes``; ``opened`` gives the numbers of many blocks in float32.

    scales: at which bytes a float16 begins, by which codes are multiplied or to which they are added. Where these are
    finite, so are all numbers: no product of theirs leaves the range of float32.
    """

    numbers: int
    n_bytes: int
    opened: Callable[[UInt8[Tensor, "blocks bytes"]], Float[Tensor, "blocks numbers"]]
    scales: tuple[int, ...]


# --- fields of a block -----------------------------------------------------------------------------------------------


def _half(field: UInt8[Tensor, "blocks 2"]) -> Float[Tensor, "blocks 1"]:
    """A float16, in float32."""
    return field.contiguous().view(torch.float16).float()


def _signed(field: UInt8[Tensor, "blocks bytes"]) -> Int[Tensor, "blocks bytes"]:
    return field.contiguous().view(torch.int8)


def _unpacked(field: UInt8[Tensor, "blocks bytes"], bits: int, run: int) -> UInt8[Tensor, "blocks codes"]:
    """Codes of ``bits`` bits each: the lowest of ``run`` bytes, then the next ones of these bytes, then other bytes.

    Four bytes are shifted at a time where that is possible: what moves from one into the next is masked away.
    """
    copied = field.clone(memory_format=torch.contiguous_format)  # it begins where a word does
    words = copied.view(torch.int32 if field.shape[1] % 4 == 0 else torch.uint8)
    mask = (2**bits - 1) * (0x01010101 if words.dtype == torch.int32 else 1)
    parts = [(words >> shift & mask).view(torch.uint8).unflatten(1, (-1, run)) for shift in range(0, 8, bits)]
    return torch.stack(parts, 2).flatten(1)


def _minus(codes: UInt8[Tensor, "blocks codes"], offset: int) -> Int[Tensor, "blocks codes"]:
    return codes.to(torch.int8) - offset


def _grouped(
    scale: Float[Tensor, "blocks groups"], codes: Tensor, offset: Float[Tensor, "blocks groups"] | None = None
) -> Float[Tensor, "blocks codes"]:
    """scale · code − offset, each group of neighbours with its own scale and offset."""
    product = scale[..., None] * codes.float().unflatten(1, (scale.shape[1], -1))
    return (product if offset is None else product - offset[..., None]).flatten(1)


def _six_bits(field: UInt8[Tensor, "blocks 12"]) -> tuple[UInt8[Tensor, "blocks 8"], UInt8[Tensor, "blocks 8"]]:
    """Eight scales and eight offsets of six bits each, as Q4_K and Q5_K pack them into twelve bytes."""
    scale, offset, both = field.split(4, dim=1)
    scales = torch.cat((scale & 0x3F, (both & 0x0F) | ((scale >> 2) & 0x30)), 1)
    return scales, torch.cat((offset & 0x3F, (both >> 4) | ((offset >> 2) & 0x30)), 1)


# --- one function a format -------------------------------------------------------------------------------------------


def _q8_0(b: Tensor) -> Tensor:
    return _signed(b[:, 2:]).float() * _half(b[:, :2])


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _minus(_unpacked(b[:, 2:], 4, 16), 8).float()


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _unpacked(b[:, 4:], 4, 16).float() + _half(b[:, 2:4])


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    return _unpacked(low, 4, 16) | (_unpacked(high, 1, 1) << 4)


def _q5_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _minus(_five_bits(b[:, 2:6], b[:, 6:]), 16).float()


def _q5_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _five_bits(b[:, 4:8], b[:, 8:]).float() + _half(b[:, 2:4])


def _q2_k(b: Tensor) -> Tensor:
    scales, codes, d, offset = b.split((16, 64, 2, 2), dim=1)
    return _grouped(_half(d) * (scales & 15).float(), _unpacked(codes, 2, 32), _half(offset) * (scales >> 4).float())


def _q3_k(b: Tensor) -> Tensor:
    high, low, scales, d = b.split((32, 64, 12, 2), dim=1)
    six = _unpacked(scales[:, :8], 4, 8) | (_unpacked(scales[:, 8:], 2, 4) << 4)
    codes = _minus(_unpacked(low, 2, 32) | (_unpacked(high, 1, 32) << 2), 4)
    return _grouped(_half(d) * _minus(six, 32).float(), codes)


def _q4_k(b: Tensor) -> Tensor:
    d, least, packed, codes = b.split((2, 2, 12, 128), dim=1)
    scales, offsets = _six_bits(packed)
    return _grouped(_half(d) * scales.float(), _unpacked(codes, 4, 32), _half(least) * offsets.float())


def _q5_k(b: Tensor) -> Tensor:
    d, least, packed, high, low = b.split((2, 2, 12, 32, 128), dim=1)
    scales, offsets = _six_bits(packed)
    codes = _unpacked(low, 4, 32) | (_unpacked(high, 1, 32) << 4)
    return _grouped(_half(d) * scales.float(), codes, _half(least) * offsets.float())


def _q6_k(b: Tensor) -> Tensor:
    low, high, scales, d = b.split((128, 64, 16, 2), dim=1)
    codes = _minus(_unpacked(low, 4, 64) | (_unpacked(high, 2, 32) << 4), 32)
    return _grouped(_half(d) * _signed(scales).float(), codes)


def _iq4_values(codes: Tensor) -> Tensor:
    return torch.tensor(_IQ4_VALUES, dtype=torch.int8, device=codes.device)[codes.int()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _iq4_values(_unpacked(b[:, 2:], 4, 16)).float()


def _iq4_xs(b: Tensor) -> Tensor:
    d, high, low, codes = b.split((2, 2, 4, 128), dim=1)
    six = _unpacked(low, 4, 1) | (_unpacked(high, 2, 1) << 4)
    return _grouped(_half(d) * _minus(six, 32).float(), _iq4_values(_unpacked(codes, 4, 16)))


FORMATS = {
    "Q8_0": Format(32, 34, _q8_0, (0,)),
    "Q4_0": Format(32, 18, _q4_0, (0,)),
    "Q4_1": Format(32, 20, _q4_1, (0, 2)),
    "Q5_0": Format(32, 22, _q5_0, (0,)),
    "Q5_1": Format(32, 24, _q5_1, (0, 2)),
    "Q2_K": Format(256, 84, _q2_k, (80, 82)),
    "Q3_K": Format(256, 110, _q3_k, (108,)),
    "Q4_K": Format(256, 144, _q4_k, (0, 2)),
    "Q5_K": Format(256, 176, _q5_k, (0, 2)),
    "Q6_K": Format(256, 210, _q6_k, (208,)),
    "IQ4_NL": Format(32, 18, _iq4_nl, (0,)),
    "IQ4_XS": Format(256, 136, _iq4_xs, (0,)),
}
