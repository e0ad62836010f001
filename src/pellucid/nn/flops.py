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
from pellucid.spec import (
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    BucketedBiasSpec,
    CrossSpec,
    DecoderSpec,
    DeltaRule,
    EncoderDecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    GatedDecayRule,
    GatedFFNSpec,
    KernelRule,
    LayerNormSpec,
    LearnedSpec,
    LinearAttentionSpec,
    LMHeadSpec,
    Mask,
    MaskedLMHeadSpec,
    MixerSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
    PoolerHeadSpec,
    RecurrentSpec,
    TaggerHeadSpec,
)


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


def _norm(spec: NormSpec | None, width: int) -> int:
    if spec is None:
        return 0
    return 2 * width if isinstance(spec, LayerNormSpec) and spec.bias else width


# --- one layer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """What one layer has and does. matrices: values that a token is multiplied with; others: biases and the like.

    norms: values of its inner norms. memory_matrices: the part of ``matrices`` that an encoder's tokens are multiplied
    with instead. pair_flops: for each pair of tokens that see each other. state_flops: for each token, beside matrices.
    idle: values of matrices that this token is not given (other experts). inner: activations a token leaves.
    """

    matrices: int
    others: int = 0
    norms: int = 0
    memory_matrices: int = 0
    pair_flops: int = 0
    state_flops: int = 0
    idle: int = 0
    inner: int = 0

    @property
    def parameters(self) -> int:
        return self.matrices + self.others + self.idle

    def flops(self, time: int, pairs: int, memory: int = 0) -> int:
        """Of one forward over ``time`` tokens, with so many visible pairs, and an encoder's tokens beside."""
        own = 2 * time * (self.matrices - self.memory_matrices) + 2 * memory * self.memory_matrices
        return own + pairs * self.pair_flops + time * self.state_flops


def _attention(a: AttentionSpec, d: int, *, cross: bool = False) -> Layer:
    width, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    return Layer(
        matrices=2 * d * (width + kv),  # q and o; k and v
        others=(width + 2 * kv if a.bias else 0) + (d if a.out_bias else 0),
        norms=2 * _norm(a.qk_norm, a.head_dim),
        memory_matrices=2 * d * kv if cross else 0,
        pair_flops=4 * width,  # q·k, and pattern · v
        inner=2 * (width + kv),
    )


def _linear(a: LinearAttentionSpec, d: int) -> Layer:
    width, rule = a.n_heads * a.head_dim, a.rule
    gates = d * width if a.out_gate else 0
    others = (3 * width if a.bias else 0) + (d if a.out_bias else 0)
    if isinstance(rule, DeltaRule):
        gates += d * a.n_heads
    if isinstance(rule, GatedDecayRule):
        gates, others = gates + rule.rank * (d + width), others + width
    columns = a.head_dim + isinstance(rule, KernelRule)  # one more for what is divided by
    touches = 3 if isinstance(rule, DeltaRule) else 2  # write and read; the delta rule reads what it replaces, too
    return Layer(
        matrices=4 * d * width + gates,
        others=others,
        norms=_norm(a.out_norm, a.head_dim),
        state_flops=2 * touches * a.n_heads * a.head_dim * columns,
        inner=(6 if a.out_gate else 4) * width,
    )


def _recurrent(r: RecurrentSpec, d: int) -> Layer:
    gates, ways = 4 if r.cell == "lstm" else 3, 2 if r.both_directions else 1
    matrices = ways * gates * r.d_hidden * (d + r.d_hidden) + (r.d_out * d if r.project else 0)
    return Layer(matrices, others=ways * 2 * gates * r.d_hidden, inner=ways * (gates + 2) * r.d_hidden)


def _alignment(a: AlignmentSpec, d_query: int, d_memory: int) -> Layer:
    """The scores only: what is done with the context is the reader's."""
    if a.score == "additive":
        return Layer(
            a.d_align * (d_query + d_memory),
            others=a.d_align,  # v meets pairs, not tokens
            memory_matrices=d_memory * a.d_align,
            pair_flops=2 * a.d_align + 2 * d_memory,
        )
    own = d_query * d_memory if a.score == "general" else 0
    return Layer(own, memory_matrices=own, pair_flops=2 * d_query + 2 * d_memory)


def mixer_layer(spec: MixerSpec, d: int) -> Layer:
    """What a mixer has and does in a stream of width ``d``."""
    if isinstance(spec, AttentionSpec):
        return _attention(spec, d)
    if isinstance(spec, LinearAttentionSpec):
        return _linear(spec, d)
    if isinstance(spec, RecurrentSpec):
        return _recurrent(spec, d)
    return _attentive(spec, d)


def _attentive(r: AttentiveRecurrentSpec, d: int) -> Layer:
    gates, look = 4 if r.cell == "lstm" else 3, _alignment(r.alignment, r.d_hidden, d)
    cell = gates * r.d_hidden * (2 * d + r.d_hidden)  # it reads [x; context], both of the stream's width
    return Layer(
        matrices=cell + look.matrices + r.d_hidden * d,
        others=2 * gates * r.d_hidden + look.others,
        memory_matrices=look.memory_matrices,
        pair_flops=look.pair_flops,
        inner=(gates + 2) * r.d_hidden + d,
    )


def cross_layer(spec: CrossSpec, d: int) -> Layer:
    """What attention to an encoder has and does."""
    if isinstance(spec, AttentionSpec):
        return _attention(spec, d, cross=True)
    look = _alignment(spec, d, d)
    return Layer(
        look.matrices + 2 * d * d,  # tanh(W [context; h])
        others=look.others,
        memory_matrices=look.memory_matrices,
        pair_flops=look.pair_flops,
        inner=3 * d,
    )


def ffn_layer(spec: FeedForwardSpec, d: int) -> Layer:
    """What a feed-forward layer has and does; of experts, each token meets ``top_k``."""
    if isinstance(spec, MoESpec):
        each = ffn_layer(spec.expert, d)
        return Layer(
            spec.top_k * each.matrices + d * spec.n_experts,
            others=spec.n_experts * each.others,
            idle=(spec.n_experts - spec.top_k) * each.matrices,
            inner=spec.top_k * (each.inner + 2 * d) + spec.n_experts,
        )
    ups = 2 if isinstance(spec, GatedFFNSpec) else 1
    bias = ups * spec.d_ff + d if spec.bias else 0
    return Layer((ups + 1) * d * spec.d_ff, bias, inner=2 * ups * spec.d_ff)


def layers(block: BlockSpec, d: int) -> list[Layer]:
    """The sublayers of a block: mixer, then cross-attention and feed-forward where it has them."""
    found = [mixer_layer(block.mixer, d)]
    if block.cross is not None:
        found.append(cross_layer(block.cross, d))
    if block.ffn is not None:
        found.append(ffn_layer(block.ffn, d))
    return found


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


# --- whole models ---------------------------------------------------------------------------------------------------


def _block_parameters(block: BlockSpec, d: int) -> Parameters:
    parts, place = layers(block, d), block.placement
    each = (place.pre + place.post + place.out) * _norm(block.norm, d)
    each += 0 if block.residual.layer_scale is None else d
    ffn = parts[-1].parameters if block.ffn is not None else 0
    norms = len(parts) * each + sum(part.norms for part in parts)
    return Parameters(0, sum(part.parameters for part in parts) - ffn, ffn, norms, 0)


def _embedding(spec: DecoderSpec | EncoderSpec) -> int:
    """Parameters of what stands before the blocks, but for its norm."""
    embed, width = spec.embed, spec.d_embed
    rows = spec.vocab_size + embed.n_types
    rows += spec.context + embed.positions.offset if isinstance(embed.positions, LearnedSpec) else 0
    rows += 0 if embed.patches is None else embed.patches.n_values + 2  # a bias, and the vector before them
    return rows * width + (0 if embed.d_embed is None else (width + 1) * spec.d_model)


def embedding_flops(spec: DecoderSpec | EncoderSpec, time: int) -> int:
    """Of what stands before the blocks: patches and a factorised table have matrices; to look up a vector is none."""
    embed, width = spec.embed, spec.d_embed
    wider = 0 if embed.d_embed is None else 2 * time * width * spec.d_model
    return wider if embed.patches is None else wider + 2 * (time - 1) * embed.patches.n_values * width


def _head(spec: DecoderSpec | EncoderSpec) -> tuple[int, int, int]:
    """Parameters of the head but for norms, of its norms, and values that each token is multiplied with."""
    d, vocab, head = spec.d_model, spec.vocab_size, spec.head
    if head is None:
        return 0, 0, 0
    if isinstance(head, LMHeadSpec):
        return (0 if head.tied else vocab * d) + (vocab if head.bias else 0), 0, vocab * d
    if isinstance(head, MaskedLMHeadSpec):
        width = spec.d_embed
        own = (0 if head.tied else vocab * width) + (vocab if head.bias else 0) + (d + 1) * width
        return own, _norm(head.norm, width), (vocab + d) * width
    if isinstance(head, TaggerHeadSpec):
        return (d + 1) * head.n_classes, 0, d * head.n_classes
    pooler = head if isinstance(head, PoolerHeadSpec) else head.pooler
    own = d * d + d if pooler.dense else 0
    return own + (0 if isinstance(head, PoolerHeadSpec) else (d + 1) * head.n_classes), 0, 0  # once a row: nothing


def count_parameters(spec: ModelSpec) -> Parameters:
    """Parameters of the model that this spec builds, exactly."""
    if isinstance(spec, EncoderDecoderSpec):
        both = count_parameters(spec.encoder) + count_parameters(spec.decoder)
        shared = spec.vocab_size * spec.decoder.d_embed if spec.shared_embedding else 0
        return both + Parameters(-shared, 0, 0, 0, 0)
    d, bias = spec.d_model, spec.stack.bias
    heads = next((b.mixer.n_heads for b in spec.stack.blocks if isinstance(b.mixer, AttentionSpec)), 0)
    buckets = bias.n_buckets * heads if isinstance(bias, BucketedBiasSpec) else 0
    head, head_norm, _ = _head(spec)
    total = Parameters(
        embedding=_embedding(spec),
        mixers=buckets,
        ffn=0,
        norms=_norm(spec.stack.final_norm, d) + _norm(spec.embed.norm, spec.d_embed) + head_norm,
        head=head,
    )
    for i in sorted(set(spec.stack.owners)):
        total += _block_parameters(spec.stack.blocks[i], d)
    return total


def forward_flops(spec: ModelSpec, time: int, source_time: int | None = None) -> int:
    """FLOPs of one forward over one row of ``time`` tokens, logits included.

    source_time: tokens that the encoder of an encoder–decoder reads beside (default: as many).
    """
    source_time = time if source_time is None else source_time
    if isinstance(spec, EncoderDecoderSpec):
        return forward_flops(spec.encoder, source_time) + forward_flops(spec.decoder, time, source_time)
    d = spec.d_model
    total = embedding_flops(spec, time) + 2 * time * _head(spec)[2]
    for block in spec.stack.blocks:
        mixer, *others = layers(block, d)
        if isinstance(block.mixer, AttentionSpec):
            total += mixer.flops(time, visible_pairs(block.mixer.mask, time))
        else:
            total += mixer.flops(time, time * source_time, source_time)  # pairs: of one that reads an encoder
        total += sum(layer.flops(time, time * source_time, source_time) for layer in others)
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
    total = 0
    for block in spec.stack.blocks:
        mixer, cross = block.mixer, block.cross
        if isinstance(mixer, AttentionSpec):
            reach = mixer.mask.reach()
            kept = time if reach is None or reach >= time else reach + 1  # a ring has one more place, for padding
            total += 2 * kept * mixer.n_kv_heads * mixer.head_dim * bytes_per_value
        elif isinstance(mixer, LinearAttentionSpec):
            columns = mixer.head_dim + isinstance(mixer.rule, KernelRule)
            total += mixer.n_heads * mixer.head_dim * columns * max(4, bytes_per_value)
        else:
            total += (2 if mixer.cell == "lstm" else 1) * mixer.d_hidden * bytes_per_value
        if isinstance(cross, AttentionSpec):
            total += 2 * source_time * cross.n_kv_heads * cross.head_dim * bytes_per_value
        alignment = mixer.alignment if isinstance(mixer, AttentiveRecurrentSpec) else cross
        if isinstance(alignment, AlignmentSpec) and alignment.score != "dot":
            width = alignment.d_align or (mixer.d_hidden if isinstance(mixer, AttentiveRecurrentSpec) else spec.d_model)
            total += source_time * width * bytes_per_value
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
        values += sum(streams * spec.d_model + layer.inner for layer in layers(block, spec.d_model))
    return values * batch * time * bytes_per_value
