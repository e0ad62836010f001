"""Which module computes which spec: a new kind of layer is one line here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pellucid.nn.alignment import Alignment
from pellucid.nn.attention import Attention
from pellucid.nn.ffn import FeedForward
from pellucid.nn.linear_attention import LinearAttention
from pellucid.nn.mixer import Mixer
from pellucid.nn.moe import MixtureOfExperts
from pellucid.nn.recurrent import AttentiveRecurrent, Recurrent
from pellucid.spec import (
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    FFNSpec,
    GatedFFNSpec,
    LinearAttentionSpec,
    MoESpec,
    RecurrentSpec,
)

# Each is called with (spec, d_model).
MIXERS: dict[type, Callable[..., Mixer]] = {
    AttentionSpec: Attention,
    LinearAttentionSpec: LinearAttention,
    RecurrentSpec: Recurrent,
    AttentiveRecurrentSpec: AttentiveRecurrent,
}
CROSS: dict[type, Callable[..., nn.Module]] = {
    AttentionSpec: Attention,
    AlignmentSpec: Alignment,
}
FEED_FORWARD: dict[type, Callable[..., nn.Module]] = {
    FFNSpec: FeedForward,
    GatedFFNSpec: FeedForward,
    MoESpec: MixtureOfExperts,
}
