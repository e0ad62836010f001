"""Models whose every weight is set by hand: an induction head and a neuron that looks a fact up, where they were put.

The stream has one channel for each token, each position, each token as the one before, and each token as output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.nn.attention import Attention
from pellucid.nn.feed_forward import FeedForward
from pellucid.nn.models import Decoder
from pellucid.nn.positions import Learned
from pellucid.spec import (
    NO_NORM,
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    StackSpec,
)

VOCAB, PLACES, SHARP = 10, 16, 40.0
TOKEN, PLACE, BEFORE, OUT = 0, VOCAB, VOCAB + PLACES, 2 * VOCAB + PLACES  # where each part of the stream begins
WIDTH = 3 * VOCAB + PLACES
PREVIOUS, INDUCTION = (0, 1), (1, 2)  # layer, head
FACT, READER = (0, 3), (1, 0)  # layer and neuron, layer and head


def empty(n_layers: int = 2, n_heads: int = 3) -> Decoder:
    """Tokens and positions are read, and nothing is done with them."""
    block = BlockSpec(
        AttentionSpec(n_heads, n_heads, PLACES, scale=1.0), FFNSpec(5, "relu", bias=True), LayerNormSpec(), NO_NORM
    )
    stack = StackSpec(WIDTH, (block,) * n_layers, None)
    model = Decoder(DecoderSpec(VOCAB, PLACES, EmbedSpec(LearnedSpec()), stack, LMHeadSpec(tied=False)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        tokens, positions, table = model.embed.tokens.weight, model.embed.positions, model.head.weight
        assert isinstance(positions, Learned) and tokens is not None and table is not None
        part(tokens, TOKEN, VOCAB).fill_diagonal_(1)
        part(positions.weight, PLACE, PLACES).fill_diagonal_(1)
        part(table, OUT, VOCAB).fill_diagonal_(1)
    return model.double().eval()


def part(weight: Tensor, begin: int, size: int) -> Tensor:
    """Columns of a matrix, a view."""
    return weight[..., begin : begin + size]


@torch.no_grad()
def with_induction() -> Decoder:
    """Head 0.1 tells each token what stood before it; head 1.2 looks for what followed the same token, and says it."""
    model = empty()
    layer, head = PREVIOUS
    q, k, v, o = of_head(model, layer, head)
    part(q, PLACE, PLACES).fill_diagonal_(SHARP)
    part(k, PLACE, PLACES)[1:, :-1].fill_diagonal_(1)  # position p is looked for by p + 1
    part(v, TOKEN, VOCAB)[:VOCAB].fill_diagonal_(1)
    o[BEFORE : BEFORE + VOCAB, :VOCAB].fill_diagonal_(1)
    q, k, v, o = of_head(model, *INDUCTION)
    part(q, TOKEN, VOCAB)[:VOCAB].fill_diagonal_(SHARP)
    part(k, BEFORE, VOCAB)[:VOCAB].fill_diagonal_(1)
    part(v, TOKEN, VOCAB)[:VOCAB].fill_diagonal_(1)
    o[OUT : OUT + VOCAB, :VOCAB].fill_diagonal_(5)
    return model


@torch.no_grad()
def with_fact() -> Decoder:
    """Neuron 0.3 knows that 7 belongs to token 4; head 1.0 takes what stands before a token, and says it."""
    model = empty()
    ffn = model.layers[FACT[0]].ffn
    assert isinstance(ffn, FeedForward)
    ffn.up.weight[FACT[1], TOKEN + 4] = 10
    ffn.up.bias[FACT[1]] = -5
    ffn.down.weight[BEFORE + 7, FACT[1]] = 5
    q, k, v, o = of_head(model, *READER)
    part(q, PLACE, PLACES).fill_diagonal_(SHARP)
    part(k, PLACE, PLACES)[1:, :-1].fill_diagonal_(1)
    part(v, BEFORE, VOCAB)[:VOCAB].fill_diagonal_(1)
    o[OUT : OUT + VOCAB, :VOCAB].fill_diagonal_(1)
    return model


def of_head(model: Decoder, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the rows of q, k, v and the columns of o that belong to a head."""
    attention = model.layers[layer].mixer
    assert isinstance(attention, Attention)
    rows = slice(head * PLACES, (head + 1) * PLACES)
    q, k, v = (linear.weight[rows] for linear in (attention.q, attention.k, attention.v))
    return q, k, v, attention.o.weight[:, rows]
