"""Blocks one after the other, and the views that they share."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.biases import build_bias
from pellucid.nn.block import Block
from pellucid.nn.cache import Cache
from pellucid.nn.documents import Documents
from pellucid.nn.masks import lower
from pellucid.nn.native import step
from pellucid.nn.norms import build_norm
from pellucid.nn.stores import Memory
from pellucid.nn.view import View
from pellucid.spec import BlockSpec, Full, StackSpec
from pellucid.taps import Tapped, heard


def block_with_weights_of(owner: Block, spec: BlockSpec, d_model: int) -> Block:
    """Another application of ``owner``: shared weights, registered once, by the owner; activation points of its own."""
    with torch.device("meta"):
        block = Block(spec, d_model)
    _share_weights(block, owner)
    return block


def _share_weights(module: Tapped, owner: Tapped) -> None:
    """Let ``module`` compute with the layers of ``owner``; modules with activation points stay its own."""
    for name, layer in owner.named_children():
        if isinstance(layer, Tapped):
            _share_weights(getattr(module, name), layer)
        else:
            delattr(module, name)
            object.__setattr__(module, name, layer)  # a plain attribute: a registered one would name each weight twice


class Stack(Tapped):
    """A residual stream: blocks, the score term they share, and the final norm. Models derive from it."""

    def __init__(self, spec: StackSpec):
        super().__init__()
        self.score_bias = build_bias(spec.bias, spec.score_heads)
        self.blocks = nn.ModuleList()
        for number, (block, owner) in enumerate(zip(spec.blocks, spec.owners, strict=True)):
            shared = None if owner == number else cast(Block, self.blocks[owner])
            self.blocks.append(
                Block(block, spec.d_model) if shared is None else block_with_weights_of(shared, block, spec.d_model)
            )
        self.final_norm = build_norm(spec.final_norm, spec.d_model)
        keys = [block.mixer.view_key() for block in self.layers]
        self._first_alike = [keys.index(key) for key in keys]  # for each block the first one that has the same view
        self._distinct = sorted(set(self._first_alike))

    @property
    def layers(self) -> list[Block]:
        """``blocks`` with their type."""
        return [cast(Block, block) for block in self.blocks]

    def blocks_from(
        self,
        x: Float[Tensor, "batch time d_model"],
        tokens: Tokens,
        cache: Cache | None = None,
        memory: Memory | None = None,
        *,
        first: int = 0,
        last: int | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """The residual stream after ``blocks[first:last]``; ``x`` is the stream that enters block ``first``.

        The cache, when given, has its places for these tokens taken. Raises DataError where a block attends to an
        encoder, but there is no ``memory``.
        """
        if memory is None and first == 0 and last is None and self.why_no_step(x, cache) is None:
            assert cache is not None
            return step.run(x, cache, [self._view(number, tokens, cache) for number in self._distinct])
        numbered = list(enumerate(self.layers))[first:last]
        if memory is None and any(block.reads_memory for _, block in numbered):
            raise DataError("this decoder attends to an encoder, but there is nothing from one", "pass its memory")
        cross = None
        if memory is not None:
            cross = View(tokens, lower(Full(), tokens, memory.tokens), None, None, memory.states)
        views: dict[int, View | Documents] = {}
        for i, block in numbered:
            past, alike = None if cache is None else cache.layers[i], self._first_alike[i]
            if alike not in views:
                views[alike] = self._view(i, tokens, cache)
            if block.reads_memory:
                x = heard(block)(x, views[alike], past, cross, None if cache is None else cache.cross[i])
            else:
                x = heard(block)(x, views[alike], past)
        return x

    def why_no_step(self, x: Float[Tensor, "batch time d_model"], cache: Cache | None) -> str | None:
        """Why these new tokens go block by block through torch; None where ``nn.native.step`` takes them at once."""
        if self.score_bias is not None:
            return "a term is added to the scores"
        return step.why_not(x, self.layers, cache, [self._distinct.index(number) for number in self._first_alike])

    def _view(self, number: int, tokens: Tokens, cache: Cache | None) -> View | Documents:
        """What the block of this number must know of the places of ``tokens``."""
        past = None if cache is None else cache.layers[number]
        return self.layers[number].mixer.view(tokens, past, self.score_bias)
