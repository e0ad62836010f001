"""Multi-head attention: project to queries, keys and values, attend, project back. To each other, or to an encoder.

::

    heads (MHA)        groups (GQA)       one (MQA)
    q q q q q q q q    q q q q q q q q    q q q q q q q q
    k k k k k k k k    k     k   (2 kv)   k        (1 kv)
    v v v v v v v v    v     v            v
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.nn.kernels import attend
from pellucid.nn.masks import lower, with_bias
from pellucid.nn.mixer import Mixer, ScoreBias, Store, merge_heads, split_heads
from pellucid.nn.norms import build_norm
from pellucid.nn.registry import computes
from pellucid.nn.rope import rotate, rotation
from pellucid.nn.stores import LayerCache, MemoryCache, StorePlan
from pellucid.nn.view import View
from pellucid.spec import AttentionSpec


@computes(AttentionSpec)
class Attention(Mixer):
    """o(attend(q(x), k(x), v(x))) (Vaswani et al. 2017, section 3.2).

    Paper names: W_i^Q, W_i^K, W_i^V are the rows of ``q``, ``k``, ``v`` that belong to head i; W^O is ``o``.
    Points: ``q`` (batch, heads, time, head_dim), ``k`` and ``v`` (batch, kv_heads, time, head_dim), all after norm and
    rotation; ``scores`` (before the mask) and ``pattern`` (batch, heads, query, key), computed only on request; ``z`` =
    pattern @ v (batch, heads, time, head_dim).
    """

    kind: ClassVar[str] = "attn"

    def __init__(self, spec: AttentionSpec, d_model: int):
        super().__init__()
        self.mask, self.rotary = spec.mask, spec.rotary
        self.n_kv_heads, self.head_dim, self.soft_cap = spec.n_kv_heads, spec.head_dim, spec.soft_cap
        self.scale = spec.head_dim**-0.5 if spec.scale is None else spec.scale
        self.q = nn.Linear(d_model, spec.n_heads * spec.head_dim, bias=spec.bias)
        self.k = nn.Linear(d_model, spec.n_kv_heads * spec.head_dim, bias=spec.bias)
        self.v = nn.Linear(d_model, spec.n_kv_heads * spec.head_dim, bias=spec.bias)
        self.o = nn.Linear(spec.n_heads * spec.head_dim, d_model, bias=spec.out_bias)
        self.q_norm = build_norm(spec.qk_norm, spec.head_dim)
        self.k_norm = build_norm(spec.qk_norm, spec.head_dim)

    def points(self) -> dict[str, str]:
        over_keys = dict.fromkeys(("k", "v"), "batch kv_heads key head_dim")
        maps = dict.fromkeys(("scores", "pattern"), "batch heads query key")
        return {"q": "batch heads time head_dim", **over_keys, **maps, "z": "batch heads time head_dim"}

    def view_key(self) -> Hashable:
        return self.mask, self.rotary, self.head_dim

    def view(self, tokens: Tokens, past: Store | None, score_bias: ScoreBias | None) -> View:
        """The keys that each of ``tokens`` sees (these tokens, or all that ``past`` lists), angles and score term."""
        turned = None if self.rotary is None else rotation(self.rotary, self.head_dim, tokens)
        keys = past.slots.keys if isinstance(past, LayerCache) else tokens
        bias = None if score_bias is None else score_bias(tokens, keys)
        visible = lower(self.mask, tokens, keys, sparse=bias is None)
        return View(tokens, visible if bias is None else with_bias(visible, bias), turned, bias)

    def new_store(self, plan: StorePlan) -> LayerCache:
        return plan.keys_values(self.n_kv_heads, self.head_dim, self.mask.reach())

    def keys_values(
        self, x: Float[Tensor, "batch time d_model"], view: View
    ) -> tuple[Float[Tensor, "batch kv_heads key head_dim"], Float[Tensor, "batch kv_heads key head_dim"]]:
        """Keys and values of what is attended to: x itself, or an encoder's states."""
        source = x if view.memory is None else view.memory
        k = self.k_norm(split_heads(self.k(source), self.head_dim))
        v = split_heads(self.v(source), self.head_dim)
        return (k if view.rotation is None else rotate(k, view.rotation)), v

    def forward(
        self, x: Float[Tensor, "batch time d_model"], view: View, past: LayerCache | MemoryCache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """``view``: who stands where and sees whom. ``past``: k and v of earlier tokens, to be extended, or of an
        encoder's, kept since the first call."""
        q = self.q_norm(split_heads(self.q(x), self.head_dim))
        if view.rotation is not None:
            q = rotate(q, view.rotation)
        q = self.tap("q", q)
        if isinstance(past, MemoryCache):
            if past.tensors is None:
                past.tensors = self.keys_values(x, view)
            k, v = self.tap("k", past.tensors[0]), self.tap("v", past.tensors[1])
        else:
            k, v = self.keys_values(x, view)
            k, v = self.tap("k", k), self.tap("v", v)
            if past is not None:
                k, v = past.extend(k, v)
        listen = self.tap if self.wants("scores") or self.wants("pattern") else None
        z = attend(q, k, v, view.visible, bias=view.bias, scale=self.scale, soft_cap=self.soft_cap, listen=listen)
        return self.o(merge_heads(self.tap("z", z)))
