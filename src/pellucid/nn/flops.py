"""What a model must cost, from its spec alone: parameters, FLOPs, cache and activation bytes. No weight is made.

FLOPs are those of the matrix products (two a multiply-add), with attention counted over the pairs that its mask lets
see each other: half of n² for a causal model, n·w for a window; a running state as one update and one reading a token,
experts as those that a token is given. What a kernel computes beyond that is not useful work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pellucid.predicates import ORDINARY, PREFIX, Place, Span
from pellucid.spec import BlockSpec, DecoderSpec, EncoderDecoderSpec, EncoderSpec, Mask, ModelSpec
from pellucid.spec.heads import HeadCost
from pellucid.spec.parts import norm_parameters


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained values, by part; a tied head has none. ``mixers``: what mixes tokens, cross-attention too."""

    embedding: int
    mixers: int
    ffn: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.mixers + self.ffn + self.norms + self.head

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(*(a + b for a, b in zip(_fields(self), _fields(other), strict=True)))


def _fields(p: Parameters) -> tuple[int, ...]:
    return p.embedding, p.mixers, p.ffn, p.norms, p.head


@lru_cache(maxsize=256)
def visible_pairs(mask: Mask, time: int, prefix: int = 0) -> int:
    """How many (query, key) pairs of one document of ``time`` tokens, the first ``prefix`` of them a prefix of its own,
    the mask lets see each other.

    The square is cut into quarters, and they again, where the mask's bounds prove them neither empty nor full.
    """
    size, q, k = 1 << time.bit_length(), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    pairs = 0
    while size > 32 and len(q):
        size //= 2  # q and k: where the squares begin
        q, k = np.concatenate((q, q, q + size, q + size)), np.concatenate((k, k + size, k, k + size))
        q, k = q[inside := (q < time) & (k < time)], k[inside]
        q_last, k_last = np.minimum(q + size, time) - 1, np.minimum(k + size, time) - 1
        spans = (
            Span(first, last, 0, 0, *(np.where(x < prefix, PREFIX, ORDINARY) for x in (last, first)))
            for first, last in ((q, q_last), (k, k_last))
        )
        some, every = (np.broadcast_to(x, q.shape) for x in mask.bounds(*spans))
        pairs += int(((q_last - q + 1) * (k_last - k + 1))[some & every].sum())
        q, k = q[some & ~every], k[some & ~every]
    place = np.arange(size)
    for at in range(0, len(q), 1024):
        down, across = q[at : at + 1024, None, None] + place[:, None], k[at : at + 1024, None, None] + place
        at, other = (Place(x, part=np.where(x < prefix, PREFIX, ORDINARY)) for x in (down, across))
        pairs += int((mask.allow(at, other) & (down < time) & (across < time)).sum())
    return pairs


def _head(spec: DecoderSpec | EncoderSpec) -> HeadCost:
    return HeadCost(0, 0, 0) if spec.head is None else spec.head.cost(spec)


def _block_parameters(block: BlockSpec, d: int) -> Parameters:
    own = [cost.parameters for cost in block.costs(d)]
    ffn = own.pop() if block.ffn is not None else 0
    return Parameters(0, sum(own), ffn, block.norm_parameters(d), 0)


def count_parameters(spec: ModelSpec) -> Parameters:
    """Parameters of the model that this spec builds, exactly."""
    if isinstance(spec, EncoderDecoderSpec):
        both = count_parameters(spec.encoder) + count_parameters(spec.decoder)
        shared = spec.vocab_size * spec.decoder.d_embed if spec.shared_embedding else 0
        return both + Parameters(-shared, 0, 0, 0, 0)
    d, stack, head = spec.d_model, spec.stack, _head(spec)
    total = Parameters(
        embedding=spec.embed.parameters(spec.vocab_size, spec.context, d),
        mixers=stack.bias.parameters(stack.score_heads) if stack.bias else 0,
        ffn=0,
        norms=norm_parameters(stack.final_norm, d) + norm_parameters(spec.embed.norm, spec.d_embed) + head.norms,
        head=head.parameters,
    )
    for i in sorted(set(stack.owners)):
        total += _block_parameters(stack.blocks[i], d)
    return total


def forward_flops(spec: ModelSpec, time: int, source_time: int | None = None) -> int:
    """FLOPs of one forward over one row of ``time`` tokens, logits included.

    source_time: tokens that the encoder of an encoder–decoder reads beside (default: as many).
    """
    source_time = time if source_time is None else source_time
    if isinstance(spec, EncoderDecoderSpec):
        return forward_flops(spec.encoder, source_time) + forward_flops(spec.decoder, time, source_time)
    total = spec.embed.flops(time, spec.d_model) + 2 * time * _head(spec).matrices
    for block in spec.stack.blocks:
        mixer, *others = block.costs(spec.d_model)
        mask, across = block.mixer.visible, time * source_time  # a mixer without a mask has pairs with an encoder only
        total += mixer.flops(time, across if mask is None else visible_pairs(mask, time), source_time)
        total += sum(layer.flops(time, across, source_time) for layer in others)
    return total


def training_flops(spec: ModelSpec, time: int, source_time: int | None = None) -> int:
    """FLOPs of forward and backward over one row: each product has two gradients of its size."""
    return 3 * forward_flops(spec, time, source_time)


def cache_bytes(spec: ModelSpec, time: int, bytes_per_value: int = 4, source_time: int | None = None) -> int:
    """Bytes of a cache for one row of ``time`` tokens: keys and values, of a window no more than it reaches; or a
    state, which does not grow (in float32 for linearised attention). An encoder keeps nothing; of what it read, the
    side that writes keeps states, keys and values of ``source_time`` tokens (default: as many)."""
    if isinstance(spec, EncoderSpec):
        return 0
    source_time = time if source_time is None else source_time
    if isinstance(spec, EncoderDecoderSpec):
        read = spec.d_model * source_time * bytes_per_value
        return read + cache_bytes(spec.decoder, time, bytes_per_value, source_time)
    d, total = spec.d_model, 0
    for block in spec.stack.blocks:
        total += block.mixer.kept_bytes(d, time, source_time, bytes_per_value)
        total += block.cross.kept_bytes_across(d, source_time, bytes_per_value) if block.cross else 0
    return total


def activation_bytes(spec: ModelSpec, batch: int, time: int, bytes_per_value: int = 4) -> int:
    """Bytes that one eager forward keeps for its backward, blocks only, with kernels that hold no scores; an estimate.

    Per token and sublayer: the streams that norms and projections read, and the inner activations; logits come and go
    in chunks (``loss.CHUNK_BYTES``).
    """
    if isinstance(spec, EncoderDecoderSpec):
        return sum(activation_bytes(side, batch, time, bytes_per_value) for side in (spec.encoder, spec.decoder))
    values = 0
    for block in spec.stack.blocks:
        place = block.placement
        # the input of each norm; the output of the first feeds a projection
        streams = (place.pre + place.post + place.out) + place.pre
        values += sum(streams * spec.d_model + layer.inner for layer in block.costs(spec.d_model))
    return values * batch * time * bytes_per_value
