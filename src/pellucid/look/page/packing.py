"""Large arrays of a look as base64 strings of bytes: attention and likeness, merged where a page would grow too big."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pellucid.look.seen import Attention

# Bytes of quantised attention that a page may carry; beyond it neighbouring cells are merged, so that a long text in a
# large model stays a page of a few MB that a phone can open (12 layers x 12 heads x 64 tokens fit unmerged).
MAX_PATTERN_BYTES = 3_000_000


def quantise(weights: Float[np.ndarray, " ..."]) -> UInt8[np.ndarray, " ..."]:
    """Weights in [0, 1] as bytes on a square-root scale: at most 0.004 off near 1, and 0.00002 is still not 0."""
    return np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)


def merge(pattern: Float[np.ndarray, "heads query key"], stride: int) -> Float[np.ndarray, "heads rows columns"]:
    """The largest weight of every ``stride`` x ``stride`` tile (a mean would fade the single strong links away)."""
    if stride == 1:
        return pattern
    rows, columns = (np.arange(0, size, stride) for size in pattern.shape[1:])
    return np.maximum.reduceat(np.maximum.reduceat(pattern, rows, axis=1), columns, axis=2)


def pack_patterns(attention: Attention) -> dict[str, Any]:
    """The attention of all heads within a text: bytes row by row (of lower triangles, if causal), one string a head."""
    patterns = attention.patterns
    time = patterns[0].shape[1]
    n_heads = sum(len(layer) for layer in patterns)
    causal = not any(np.triu(layer, 1).any() for layer in patterns)
    stride = 1
    while n_heads * (size := -(-time // stride)) * ((size + 1) // 2 if causal else size) > MAX_PATTERN_BYTES:
        stride += 1
    rows, columns = np.tril_indices(size) if causal else np.indices((size, size)).reshape(2, -1)
    encoded = [[_base64(quantise(head[rows, columns])) for head in merge(layer, stride)] for layer in patterns]
    return {"size": size, "stride": stride, "causal": causal, "heads": encoded}


def pack_across(attention: Attention) -> dict[str, Any]:
    """How the decoder's heads look at the source: bytes row by row, one string a head."""
    rows, columns = attention.patterns[0].shape[1:]
    stride = 1
    while len(attention.heads) * -(-rows // stride) * -(-columns // stride) > MAX_PATTERN_BYTES:
        stride += 1
    encoded = [[_base64(quantise(head)) for head in merge(layer, stride)] for layer in attention.patterns]
    return {"rows": -(-rows // stride), "columns": -(-columns // stride), "stride": stride, "heads": encoded}


def pack_likeness(alike: Sequence[Float[np.ndarray, "time time"]]) -> dict[str, Any] | None:
    """Cosines between states: bytes of the lower triangles row by row, one string a layer; None without any."""
    if not alike:
        return None
    time, stride = len(alike[0]), 1
    while len(alike) * (size := -(-time // stride)) * (size + 1) // 2 > MAX_PATTERN_BYTES:
        stride += 1
    rows, columns = np.tril_indices(size)
    merged = (merge(cosines[None], stride)[0] for cosines in alike)
    encoded = [_base64(np.rint(127.5 * (1 + cosines[rows, columns])).astype(np.uint8)) for cosines in merged]
    return {"size": size, "stride": stride, "rows": encoded}


def _base64(values: UInt8[np.ndarray, " ..."]) -> str:
    return base64.b64encode(values.tobytes()).decode()
