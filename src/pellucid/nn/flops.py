"""What a model must cost, from its spec alone: parameters, FLOPs, cache and activation bytes. No weight is made.

FLOPs are those of the matrix products (two a multiply-add), with attention counted over the pairs that its mask lets
see each other: half of n² for a causal model, n·w for a window. What a kernel computes beyond that is not useful work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pellucid.spec import (
    BlockSpec,
    BucketedBiasSpec,
    Causal,
    DecoderSpec,
    Full,
    GatedFFNSpec,
    LayerNormSpec,
    LearnedSpec,
    Mask,
    NormSpec,
)


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained values, by part; a tied head has none."""

    embedding: int
    attention: int
    ffn: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.ffn + self.norms + self.head


def _norm(spec: NormSpec | None, width: int) -> int:
    if spec is None:
        return 0
    return 2 * width if isinstance(spec, LayerNormSpec) and spec.bias else width


def _attention_matrices(block: BlockSpec, d_model: int) -> int:
    a = block.mixer
    return 2 * d_model * a.head_dim * (a.n_heads + a.n_kv_heads)  # q and o; k and v


def _ffn_matrices(block: BlockSpec, d_model: int) -> int:
    return (3 if isinstance(block.ffn, GatedFFNSpec) else 2) * d_model * block.ffn.d_ff


def _block_parameters(block: BlockSpec, d: int) -> tuple[int, int, int]:
    a, f, place = block.mixer, block.ffn, block.placement
    attention = _attention_matrices(block, d)
    attention += a.head_dim * (a.n_heads + 2 * a.n_kv_heads) if a.bias else 0
    attention += d if a.out_bias else 0
    gates = 2 if isinstance(f, GatedFFNSpec) else 1
    ffn = _ffn_matrices(block, d) + (gates * f.d_ff + d if f.bias else 0)
    norms = 2 * (place.pre + place.post + place.out) * _norm(block.norm, d) + 2 * _norm(a.qk_norm, a.head_dim)
    return attention, ffn, norms


def count_parameters(spec: DecoderSpec) -> Parameters:
    """Parameters of the model that this spec builds, exactly."""
    d, vocab = spec.d_model, spec.vocab_size
    blocks = [_block_parameters(block, d) for block in spec.stack.blocks]
    embedding = vocab * d + (spec.context * d if isinstance(spec.embed.positions, LearnedSpec) else 0)
    bias = spec.stack.bias
    shared = bias.n_buckets * spec.stack.blocks[0].mixer.n_heads if isinstance(bias, BucketedBiasSpec) else 0
    norms = _norm(spec.stack.final_norm, d) + _norm(spec.embed.norm, d)
    return Parameters(
        embedding=embedding,
        attention=sum(b[0] for b in blocks) + shared,
        ffn=sum(b[1] for b in blocks),
        norms=sum(b[2] for b in blocks) + norms,
        head=(0 if spec.head.tied else vocab * d) + (vocab if spec.head.bias else 0),
    )


@lru_cache(maxsize=256)
def visible_pairs(mask: Mask, time: int) -> int:
    """How many (query, key) pairs of one document of ``time`` tokens the mask lets see each other."""
    if isinstance(mask, Full):
        return time * time
    if isinstance(mask, Causal):
        return time * (time + 1) // 2
    keys, zero = np.arange(time), np.zeros((), dtype=np.int64)
    pairs = 0
    for start in range(0, time, 256):
        queries = np.arange(start, min(start + 256, time))[:, None]
        allowed = mask.allow(queries, keys[None], zero, zero)
        pairs += int(np.broadcast_to(allowed, (len(queries), time)).sum())
    return pairs


def forward_flops(spec: DecoderSpec, time: int) -> int:
    """FLOPs of one forward over one row of ``time`` tokens, logits included."""
    d = spec.d_model
    total = 2 * time * d * spec.vocab_size
    for block in spec.stack.blocks:
        a = block.mixer
        total += 2 * time * (_attention_matrices(block, d) + _ffn_matrices(block, d))
        total += 2 * 2 * visible_pairs(a.mask, time) * a.n_heads * a.head_dim  # q·k, and pattern · v
    return total


def training_flops(spec: DecoderSpec, time: int) -> int:
    """FLOPs of forward and backward over one row of ``time`` tokens: each product has two gradients of its size."""
    return 3 * forward_flops(spec, time)


def cache_bytes(spec: DecoderSpec, time: int, bytes_per_value: int = 4) -> int:
    """Bytes of keys and values after ``time`` tokens of one row; a windowed layer keeps no more than its window."""
    total = 0
    for block in spec.stack.blocks:
        a = block.mixer
        reach = a.mask.reach()
        kept = time if reach is None else min(reach, time)
        total += 2 * kept * a.n_kv_heads * a.head_dim * bytes_per_value
    return total


def activation_bytes(spec: DecoderSpec, batch: int, time: int, bytes_per_value: int = 4) -> int:
    """Bytes that one eager forward keeps for its backward, blocks only, with the fused attention kernel.

    Per token and block: the streams that the norms and projections read, q, k, v and z, and the inner activations;
    logits come and go in chunks (``heads.CHUNK_BYTES``).
    """
    values = 0
    for block in spec.stack.blocks:
        a, f, place = block.mixer, block.ffn, block.placement
        normed = 2 * (place.pre + place.post + place.out)  # the input of each norm; its output feeds a projection
        projections = 2 * place.pre
        heads = a.head_dim * (2 * a.n_heads + 2 * a.n_kv_heads)
        inner = (4 if isinstance(f, GatedFFNSpec) else 2) * f.d_ff
        values += (normed + projections) * spec.d_model + heads + inner
    return values * batch * time * bytes_per_value
