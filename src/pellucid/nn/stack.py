"""Blocks one after the other, and the views that they share."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.biases import build_bias
from pellucid.nn.block import Block
from pellucid.nn.cache import Cache, Memory
from pellucid.nn.masks import carry, see
from pellucid.nn.norms import build_norm
from pellucid.nn.rope import rotation
from pellucid.nn.runs import Progress, Runs, find_runs
from pellucid.nn.view import View
from pellucid.spec import AttentionSpec, BlockSpec, Full, LinearAttentionSpec, MixerSpec, StackSpec
from pellucid.taps import Tapped, heard


def _sight(mixer: MixerSpec) -> tuple[object, ...]:
    """What a mixer's view depends on: mixers with the same share one."""
    if isinstance(mixer, AttentionSpec):
        return mixer.mask, mixer.rotary, mixer.head_dim
    return (mixer.rotary, mixer.head_dim) if isinstance(mixer, LinearAttentionSpec) and mixer.rotary else ()


def again(owner: Block, spec: BlockSpec, d_model: int) -> Block:
    """The same block once more, deeper: with points of its own, and the weights of ``owner`` under that one's names."""
    with torch.device("meta"):
        block = Block(spec, d_model)
    _adopt(block, owner)
    return block


def _adopt(module: Tapped, owner: Tapped) -> None:
    for name, part in owner.named_children():
        if isinstance(part, Tapped):
            _adopt(getattr(module, name), part)
        else:
            delattr(module, name)
            module.__dict__[name] = part  # not registered: its weights have one name


class Stack(Tapped):
    """A residual stream: blocks, the score term they share, and the final norm. Models derive from it."""

    def __init__(self, spec: StackSpec):
        super().__init__()
        heads = [block.mixer.n_heads for block in spec.blocks if isinstance(block.mixer, AttentionSpec)]
        self.score_bias = build_bias(spec.bias, heads[0]) if spec.bias else None
        blocks: list[Block] = []
        for i, (block, owner) in enumerate(zip(spec.blocks, spec.owners, strict=True)):
            own = owner == i
            blocks.append(Block(block, spec.d_model) if own else again(blocks[owner], block, spec.d_model))
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = build_norm(spec.final_norm, spec.d_model)
        # blocks that see alike share one view: which one each block takes, and an example of each
        kinds = [_sight(block.mixer) for block in spec.blocks]
        firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        self._examples = [(i, spec.blocks[i].mixer) for i in firsts]
        self._view_of = [firsts.index(kinds.index(kind)) for kind in kinds]
        self._readers = [i for i, block in enumerate(spec.blocks) if block.reads_memory]

    def _view(self, mixer: MixerSpec, tokens: Tokens, slots: object) -> View | Runs:
        rotary = mixer.rotary if isinstance(mixer, AttentionSpec | LinearAttentionSpec) else None
        turned = None if rotary is None else rotation(rotary, mixer.head_dim, tokens)  # type: ignore[union-attr]
        if not isinstance(mixer, AttentionSpec):
            return find_runs(tokens, slots.before if isinstance(slots, Progress) else None, turned)
        keys = tokens if slots is None else slots.keys  # type: ignore[attr-defined]
        bias = None if self.score_bias is None else self.score_bias(tokens, keys)
        visible = see(mixer.mask, tokens, keys, sparse=bias is None)
        return View(tokens, visible if bias is None else carry(visible, bias), turned, bias)

    def run(
        self,
        x: Float[Tensor, "batch time d_model"],
        tokens: Tokens,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """The residual stream after the last block. The cache, when given, has its places for these tokens taken.

        Raises DataError where blocks attend to an encoder, but there is no ``memory``.
        """
        if self._readers and memory is None:
            raise DataError("this decoder attends to an encoder, but there is nothing from one", "pass its memory")
        views = [
            self._view(mixer, tokens, None if cache is None else cache.layers[i].slots) for i, mixer in self._examples
        ]
        cross = None
        if memory is not None:
            cross = View(tokens, see(Full(), tokens, memory.tokens), None, None, memory.states)
        for i, block in enumerate(self.blocks):
            view, past = views[self._view_of[i]], None if cache is None else cache.layers[i]
            if i in self._readers:
                x = heard(block)(x, view, past, cross, None if cache is None else cache.cross[i])
            else:
                x = heard(block)(x, view, past)
        return x
