"""Who takes part in attention_scaling.py: attention and its alternatives, ours and the peers', one row of n tokens.

kernel: q, k and v are given, 8 heads × 64. mixer: x of width 512 is given; projections in and out are part of the work.
decode: a model of two such mixers without feed-forward layers, which reads one token more than its cache holds.
Peers are imported by name, so that this file can be read, type-checked and run where some of them are not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.nn.documents import find_documents
from pellucid.nn.kernels import attend
from pellucid.nn.layout import classify
from pellucid.nn.masks import lower
from pellucid.nn.models import Decoder
from pellucid.nn.registry import build
from pellucid.nn.stores import LayerCache
from pellucid.nn.view import View
from pellucid.predicates import big_bird
from pellucid.spec import (
    CAUSAL,
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    DeltaRule,
    EmbedSpec,
    KernelRule,
    LinearAttentionSpec,
    Mask,
    MixerSpec,
    RecurrentSpec,
    RMSNormSpec,
    StackSpec,
    Window,
)

HEADS, HEAD_DIM = 8, 64
D_MODEL, SCALE = HEADS * HEAD_DIM, HEAD_DIM**-0.5
WINDOW, BLOCK = 256, 64
FLEX_BLOCK = 128  # FlexAttention's own default
LAYERS, VOCAB = 2, 256  # of the models that decode
ROOM = 512  # tokens that a cache takes beyond those it is filled with: the most that one turn decodes

Group = Literal["kernel", "mixer", "decode"]
Kind = Literal["full", "window", "blocks", "linear", "delta", "lstm"]
Mode = Literal["forward", "both"]
MODES: dict[Mode, str] = {"forward": "forward", "both": "forward and backward"}


@dataclass(frozen=True)
class Case:
    """prepare makes what the work needs beforehand: a mask, whose memory counts and whose time does not. call: one go.

    leaves: what gets a gradient; the first has the shape of the result.
    """

    prepare: Callable[[], Any]
    call: Callable[[Any], Tensor]
    leaves: tuple[Tensor, ...] = ()

    def work(self, mode: Mode) -> Callable[[Any], object]:
        """One go in this mode, as a function of what ``prepare`` has made."""
        if mode == "forward":
            return torch.no_grad()(self.call)
        gradient = torch.randn_like(self.leaves[0])
        return lambda made: torch.autograd.grad(self.call(made), self.leaves, gradient, allow_unused=True)


@dataclass(frozen=True)
class Contestant:
    """mask: whom a query sees, where the result can be compared with our reference. peer: its package, if not ours."""

    name: str
    group: Group
    kind: Kind
    build: Callable[[int], Case]
    note: str
    mask: Mask | None = None
    peer: str | None = None
    backward: bool = True

    @property
    def package(self) -> str:
        return self.peer or "pellucid"


def one_row(n: int, start: int = 0) -> Tokens:
    return Tokens.plain(1, n, start)


# --- kernels: q, k, v -> z --------------------------------------------------------------------------------------------

Kernel = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def kernel(run: Kernel, prepare: Callable[[int], Any] = lambda n: None) -> Callable[[int], Case]:
    """A case with random q, k and v."""

    def build(n: int) -> Case:
        q, k, v = (torch.randn(1, HEADS, n, HEAD_DIM, requires_grad=True) for _ in range(3))
        return Case(lambda: prepare(n), lambda mask: run(q, k, v, mask), (q, k, v))

    return build


def _causal_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _dense_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _dense_window(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril_().triu_(1 - WINDOW)


def _ours(q: Tensor, k: Tensor, v: Tensor, visible: Any) -> Tensor:
    return attend(q, k, v, visible, scale=SCALE)


def _seen(mask: Mask) -> Callable[[int], Any]:
    return lambda n: lower(mask, one_row(n), one_row(n))  # a layout is made once a length, then found again


def _window_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= k) & (q - k < WINDOW)


def _flex_blocks(n: int) -> Any:
    """FlexAttention's BlockMask; by ``create_block_mask`` it would take n² memory to make."""
    some, every = classify(CAUSAL & Window(WINDOW), one_row(n), one_row(n), FLEX_BLOCK)

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        order = blocks.int().argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]

    flex = import_module("torch.nn.attention.flex_attention")
    lists = (*listed(some & ~every), *listed(every))
    return flex.BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=FLEX_BLOCK, mask_mod=_window_mod, seq_lengths=(n, n))


_compiled: list[Any] = []


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    if not _compiled:
        flex = import_module("torch.nn.attention.flex_attention")
        _compiled.append(torch.compile(flex.flex_attention, dynamic=False))
    return _compiled[0](q.detach(), k.detach(), v.detach(), block_mask=mask)


def _local(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    return mask(q, k, v)


def _local_attention(size: int) -> Callable[[int], Any]:
    """``size`` tokens a bucket, so many buckets back that the window is 256; "exact" counts one token more."""
    settings = {"causal": True, "look_backward": WINDOW // size, "exact_windowsize": True, "autopad": True}
    return lambda n: import_module("local_attention").LocalAttention(size, use_rotary_pos_emb=False, **settings)


# --- mixers: x -> y ---------------------------------------------------------------------------------------------------


def mixer(make: Callable[[], nn.Module], *view: Callable[[int], Any]) -> Callable[[int], Case]:
    """A case with random x; ``view``: what else the module is called with."""

    def build(n: int) -> Case:
        torch.manual_seed(0)
        module = make()
        x = torch.randn(1, n, D_MODEL, requires_grad=True)
        return Case(lambda: tuple(each(n) for each in view), lambda views: module(x, *views), (x, *module.parameters()))

    return build


def _attention(mask: Mask = CAUSAL) -> AttentionSpec:
    return AttentionSpec(HEADS, HEADS, HEAD_DIM, mask)


LINEAR, DELTA = LinearAttentionSpec(HEADS, HEAD_DIM), LinearAttentionSpec(HEADS, HEAD_DIM, DeltaRule())
LSTM = RecurrentSpec("lstm", D_MODEL, project=False)
WINDOWED = CAUSAL & Window(WINDOW)
BIG_BIRD = CAUSAL & big_bird(BLOCK)
assert isinstance(LINEAR.rule, KernelRule)


def _built(spec: MixerSpec) -> Callable[[int], Case]:
    def view(n: int) -> Any:
        if isinstance(spec, AttentionSpec):
            return View(one_row(n), _seen(spec.mask)(n), None, None)
        return find_documents(one_row(n))

    return mixer(lambda: build(spec, D_MODEL), view)


def _x_transformers() -> nn.Module:
    layer = import_module("x_transformers.x_transformers").Attention
    return layer(D_MODEL, dim_head=HEAD_DIM, heads=HEADS, causal=True, flash=True)


def _linear_transformer(blind: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = import_module("linear_attention_transformer.linear_attention_transformer").SelfAttention
        return layer(D_MODEL, HEADS, causal=True, blindspot_size=blind)

    return make


# --- decoding: one token more -----------------------------------------------------------------------------------------


def decoder(spec: MixerSpec) -> Callable[[int], Case]:
    """A case that decodes token after token, from a cache that already holds ``n``."""

    def build(n: int) -> Case:
        torch.manual_seed(0)
        block = BlockSpec(spec, None, RMSNormSpec())
        stack = StackSpec(D_MODEL, (block,) * LAYERS, RMSNormSpec())
        model = Decoder(DecoderSpec(VOCAB, n + ROOM, EmbedSpec(), stack)).eval()
        token = torch.zeros(1, 1, dtype=torch.long)
        return Case(lambda: filled(model, n), lambda cache: model(token, cache=cache))

    return build


def filled(model: Decoder, n: int) -> Any:
    """A cache as after reading ``n`` tokens, with random keys and values in it: what they are costs no time."""
    cache = model.new_cache(1, n + ROOM)
    tokens = one_row(n)
    cache.take(tokens)
    for layer in cache.layers:
        if isinstance(layer, LayerCache):
            layer.extend(torch.randn(1, HEADS, n, HEAD_DIM), torch.randn(1, HEADS, n, HEAD_DIM))
    cache.commit(tokens)
    return cache


# --- all of them ------------------------------------------------------------------------------------------------------


def contestants() -> Iterator[Contestant]:
    """In the order of the tables."""
    near = CAUSAL & Window(WINDOW + 1)
    full, blocks = kernel(_causal_sdpa), kernel(_ours, _seen(BIG_BIRD))
    yield Contestant("full: SDPA", "kernel", "full", full, "torch, is_causal=True", CAUSAL, "torch")
    window = kernel(_ours, _seen(WINDOWED))
    yield Contestant("window: blocked", "kernel", "window", window, "ours, through attend()", WINDOWED)
    dense = kernel(_dense_sdpa, _dense_window)
    yield Contestant("window: SDPA + mask", "kernel", "window", dense, "a bool mask of n²", WINDOWED, "torch")
    flex = kernel(_flex, _flex_blocks)
    note = "FlexAttention, compiled; on a CPU it has no backward"
    yield Contestant("window: Flex", "kernel", "window", flex, note, WINDOWED, "torch", backward=False)
    for size in (256, 64):
        local = kernel(_local, _local_attention(size))
        note = f"LocalAttention({size}, look_backward={WINDOW // size}, exact_windowsize=True): sees 257"
        name = f"window: local {size}×{WINDOW // size}"
        yield Contestant(name, "kernel", "window", local, note, near, "local-attention")
    note = "ours, through attend(): window of 3 blocks, 2 global, 3 random, causal"
    yield Contestant("BigBird: blocked", "kernel", "blocks", blocks, note, BIG_BIRD)

    yield Contestant("full", "mixer", "full", _built(_attention()), "Attention, no rotation")
    x = mixer(_x_transformers)
    yield Contestant("full: x-transformers", "mixer", "full", x, "Attention(flash=True)", peer="x-transformers")
    yield Contestant("window", "mixer", "window", _built(_attention(WINDOWED)), "the same Attention, window 256")
    yield Contestant("linear", "mixer", "linear", _built(LINEAR), "LinearAttention, elu + 1")
    for blind in (1, 64):
        note = f"SelfAttention(causal=True, blindspot_size={blind})"
        note += f": a token sees nothing of its own {blind}, itself included" if blind > 1 else ""
        name = f"linear: LAT, blind {blind}" if blind > 1 else "linear: LAT"
        made = mixer(_linear_transformer(blind))
        yield Contestant(name, "mixer", "linear", made, note, peer="linear-attention-transformer")
    yield Contestant("delta rule", "mixer", "delta", _built(DELTA), "LinearAttention, delta rule")
    yield Contestant("LSTM", "mixer", "lstm", _built(LSTM), "torch's, 512 wide: no projection out")

    note = f"{LAYERS} layers"
    yield Contestant("full", "decode", "full", decoder(_attention()), note)
    yield Contestant("ring window", "decode", "window", decoder(_attention(WINDOWED)), f"{note}, window {WINDOW}")
    yield Contestant("linear", "decode", "linear", decoder(LINEAR), note)
    yield Contestant("delta rule", "decode", "delta", decoder(DELTA), note)
    yield Contestant("LSTM", "decode", "lstm", decoder(LSTM), note)
