"""The blocks of a stack as a program: the forward of one new token a row, written out for ``operators.cpp``.

A program is a list of instructions::

    NORM      y = norm of each vector of x          ROTATE    turn the pairs of each head of q or k
    PRODUCT   y = x · Wᵀ + b                         ATTEND    keep k and v, z = softmax(q · kᵀ) · v
    ACTIVATE  gate = act(gate) · up                  JOIN      x = skip · x + branch · gain · y

Products that follow each other and read the same (q, k and v; gate and up) run as one. Between products, numbers are
float32; matrices that are packed in tiles (docs/quantised-decoding.md) read them in sixteen bits. A module, an
activation or a number format that has no instruction makes ``write`` raise Inexpressible.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, contains, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.weak import WeakTensorKeyDictionary

from pellucid.nn.attention import Attention
from pellucid.nn.block import Block
from pellucid.nn.feed_forward import ACTIVATIONS, FeedForward
from pellucid.nn.native.library import KINDS, library
from pellucid.nn.norms import LayerNorm, RMSNorm
from pellucid.nn.quantised import QuantisedLinear
from pellucid.nn.residual import LayerScale, Sublayer
from pellucid.taps import Tapped

FIELDS = 12
NORM, PRODUCT, ROTATE, ATTEND, ACTIVATE, JOIN = range(6)
NUMBERED = ("relu", "relu2", "gelu", "gelu_tanh", "silu")  # activations, as kernels.inl numbers them
KIND_NUMBERS = {"float32": 0, "bfloat16": 1, **{kind: number for number, kind in enumerate(KINDS, 2)}}
PLAIN = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_KNOWN = (
    Block,
    Attention,
    FeedForward,
    Sublayer,
    LayerScale,
    LayerNorm,
    RMSNorm,
    nn.Identity,
    nn.Linear,
    QuantisedLinear,
)


CHANGED = "the model has changed"
_TILES = WeakTensorKeyDictionary()  # of a weight's blocks: them packed, and the version of the blocks that was packed


class Inexpressible(Exception):
    """What a program has no instruction for."""


def tiles_of(blocks: Tensor, kind: str) -> Tensor | None:
    """Blocks packed by sixteen rows, kept as long as the blocks are; None where no kernel reads such, or is to."""
    if os.environ.get("PELLUCID_TILES", "1") == "0" or blocks.is_inference():
        return None
    if not library.ready() or not library.ops.packs(kind):
        return None
    kept = _TILES.get(blocks)
    if kept is None or kept[1] != blocks._version or kept[2] != blocks.data_ptr():
        kept = _TILES[blocks] = library.ops.pack(blocks, kind), blocks._version, blocks.data_ptr()
    return kept[0]


def bits(x: float) -> int:
    """A float64 as the integer with the same bits, so that all fields of an instruction are integers."""
    return struct.unpack("q", struct.pack("d", x))[0]


@dataclass
class Program:
    """Instructions (n, 12) and the workspace's width, for a model that is as it was when they were written."""

    lines: Tensor
    width: int
    modules: list[nn.Module]
    weights: list[tuple[dict[str, Any], str, Tensor, int]]  # where each is registered, its name, it, and its address
    tiles: list[tuple[Tensor, Tensor, int]]  # that are read, the blocks they are made of, their version

    def __post_init__(self) -> None:
        # Columns, not rows: ``why_not`` goes through them in C, as it runs before each token.
        parts = [(m._modules, name, child) for m in self.modules for name, child in m._modules.items()]  # pyright: ignore[reportPrivateUsage]
        kept = [*parts, *((owner, name, tensor) for owner, name, tensor, _ in self.weights)]
        self._owners, self._names, self._owned = zip(*kept, strict=True)
        self._tensors, self._addresses = [row[2] for row in self.weights], [row[3] for row in self.weights]
        self._blocks, self._versions = [row[1] for row in self.tiles], [row[2] for row in self.tiles]
        self._hooks = [hooks for m in self.modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]  # pyright: ignore[reportPrivateUsage]
        self._own = [vars(m) for m in self.modules]
        self._ears = [m.ears for m in self.modules if isinstance(m, Tapped)]
        self._sublayers = [m for m in self.modules if isinstance(m, Sublayer)]

    def why_not(self) -> str | None:
        """What has changed, or is asked of the blocks, that the program cannot do; None where it is as good as they."""
        if not all(map(is_, map(attrgetter("listener"), self._ears), repeat(None))):
            return "someone listens"
        if any(self._hooks) or torch_module._has_any_global_hook():  # pyright: ignore[reportPrivateUsage]
            return "there are hooks"
        compiled = map(dict.get, self._own, repeat("_compiled_call_impl"))
        if any(map(contains, self._own, repeat("forward"))) or not all(map(is_, compiled, repeat(None))):
            return "blocks are compiled or replaced"
        if any(part.training and part.dropout for part in self._sublayers):
            return "there is dropout"
        kept = all(map(is_, map(dict.get, self._owners, self._names), self._owned))
        kept = kept and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
        kept = kept and list(map(attrgetter("_version"), self._blocks)) == self._versions
        return None if kept else CHANGED


@dataclass
class Writer:
    """Writes the program of a stack's blocks."""

    lines: list[list[int]] = field(default_factory=list[list[int]])
    columns: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    width: int = 0
    weights: list[tuple[dict[str, Any], str, Tensor, int]] = field(default_factory=list[Any])
    tiles: list[tuple[Tensor, Tensor, int]] = field(default_factory=list[Any])

    def buffer(self, name: str, width: int) -> int:
        """The column at which a buffer begins; blocks share those of one name, as wide as the widest needs."""
        key = f"{name} {width}"
        if key not in self.columns:
            self.columns[key] = self.width, width
            self.width += width
        return self.columns[key][0]

    def emit(self, *fields: int) -> None:
        """Write an instruction; fields that it lacks are 0."""
        self.lines.append([*fields, *[0] * (FIELDS - len(fields))])

    def address(self, owner: nn.Module, name: str) -> tuple[int, int]:
        """Where a weight lies, and whether its numbers are bfloat16; zeros where there is none."""
        registered: dict[str, Any] = owner._buffers if name in owner._buffers else owner._parameters  # pyright: ignore
        tensor = registered.get(name)
        if tensor is None:
            return 0, 0
        if not (type(tensor) in (Tensor, nn.Parameter) and tensor.is_contiguous() and tensor.device.type == "cpu"):
            raise Inexpressible(f"a weight that is a {type(tensor).__name__}, strided, or not on a processor")
        if tensor.dtype not in (*PLAIN, torch.uint8):
            raise Inexpressible(f"weights of {tensor.dtype}")
        self.weights.append((registered, name, tensor, tensor.data_ptr()))
        return tensor.data_ptr(), int(tensor.dtype == torch.bfloat16)

    def norm(self, norm: nn.Module, x: int, y: int, vectors: int, width: int) -> int:
        """y = norm(x), each vector by itself; which buffer holds the result: x for no norm."""
        if isinstance(norm, nn.Identity):
            return x
        assert isinstance(norm, LayerNorm | RMSNorm)
        offset, centred = (norm.offset, 0) if isinstance(norm, RMSNorm) else (0.0, 1)
        weight, bias = self.address(norm, "weight"), self.address(norm, "bias")
        self.emit(NORM, x, y, vectors, width, *weight, *bias, bits(norm.eps), bits(offset), centred)
        return y

    def product(self, linear: nn.Module, x: int, y: int) -> None:
        """y = x · Wᵀ + b."""
        assert isinstance(linear, nn.Linear | QuantisedLinear)
        weight, _ = self.address(linear, "weight")
        kind = linear.kind if isinstance(linear, QuantisedLinear) else PLAIN[linear.weight.dtype]
        if kind not in KIND_NUMBERS:
            raise Inexpressible(f"weights in {kind}")
        bias, packed, blocks = self.address(linear, "bias"), 0, linear.weight
        assert blocks is not None
        if (tiles := tiles_of(blocks, kind)) is not None:
            self.tiles.append((tiles, blocks, blocks._version))
            weight, packed = tiles.data_ptr(), 1
        self.emit(PRODUCT, x, y, weight, KIND_NUMBERS[kind], linear.out_features, linear.in_features, *bias, packed)

    def join(self, x: int, y: int, width: int, skip: float, branch: float, gain: nn.Module) -> None:
        """x = skip · x + branch · gain · y."""
        scale = self.address(gain, "weight") if isinstance(gain, LayerScale) else (0, 0)
        self.emit(JOIN, x, y, width, bits(skip), bits(branch), *scale)

    def attention(self, a: Attention, x: int, y: int, layer: int, view: int) -> None:
        """y = attention(x), whose new keys and values go into the layer's store."""
        n_heads = a.q.out_features // a.head_dim
        sizes = {"q": n_heads, "k": a.n_kv_heads, "v": a.n_kv_heads, "z": n_heads}
        q, k, v, z = (self.buffer(name, heads * a.head_dim) for name, heads in sizes.items())
        for linear, buffer in ((a.q, q), (a.k, k), (a.v, v)):
            self.product(linear, x, buffer)
        for norm, buffer, heads in ((a.q_norm, q, n_heads), (a.k_norm, k, a.n_kv_heads)):
            self.norm(norm, buffer, buffer, heads, a.head_dim)
            if a.rotary is not None:
                self.emit(ROTATE, buffer, heads, a.head_dim, a.rotary.dims(a.head_dim) // 2, view)
        scale, cap = bits(a.scale), bits(a.soft_cap or 0.0)
        self.emit(ATTEND, q, k, v, z, layer, n_heads, a.n_kv_heads, a.head_dim, scale, cap, view)
        self.product(a.o, z, y)

    def feed_forward(self, ffn: FeedForward, x: int, y: int) -> None:
        """y = ffn(x)."""
        names = [name for name in NUMBERED if ACTIVATIONS[name] is ffn.activation]
        if not names:
            raise Inexpressible("an activation of one's own")
        width = ffn.up.out_features
        up, act = self.buffer("up", width), self.buffer("gate", width)
        if ffn.gate is None:
            act, up = up, -1
            self.product(ffn.up, x, act)
        else:
            self.product(ffn.gate, x, act)
            self.product(ffn.up, x, up)
        self.emit(ACTIVATE, act, up, width, NUMBERED.index(names[0]))
        self.product(ffn.down, act, y)

    def block(self, block: Block, d_model: int, layer: int, view: int) -> None:
        """x = block(x)."""
        x, h = self.buffer("x", d_model), self.buffer("h", d_model)
        mixed, fed = self.buffer("mixed", d_model), self.buffer("fed", d_model)
        norms, ffn_norms = block.mixer_norms, block.ffn_norms

        def branch(norms: Sublayer, y: int, write: Callable[[int, int], None]) -> None:
            write(self.norm(norms.pre, x, h, 1, d_model), y)
            self.norm(norms.post, y, y, 1, d_model)

        def join(norms: Sublayer, y: int, skip: float) -> None:
            self.join(x, y, d_model, skip, norms.branch_factor, norms.gain)

        assert isinstance(block.mixer, Attention)
        mixer, ffn = block.mixer, block.ffn
        branch(norms, mixed, lambda a, y: self.attention(mixer, a, y, layer, view))
        if block.parallel:
            assert ffn_norms is not None and isinstance(ffn, FeedForward)
            branch(ffn_norms, fed, lambda a, y: self.feed_forward(ffn, a, y))
            join(norms, mixed, norms.skip_factor)
            join(ffn_norms, fed, 1.0)
            return
        join(norms, mixed, norms.skip_factor)
        self.norm(norms.out, x, x, 1, d_model)
        if ffn_norms is not None:
            assert isinstance(ffn, FeedForward)
            branch(ffn_norms, fed, lambda a, y: self.feed_forward(ffn, a, y))
            join(ffn_norms, fed, ffn_norms.skip_factor)
            self.norm(ffn_norms.out, x, x, 1, d_model)


def _parts(blocks: Sequence[Block]) -> Iterator[nn.Module]:
    """All modules of the blocks, those that they share with others included."""
    for block in blocks:
        yield from block.modules()
        for part in block.modules():  # what is shared is a plain attribute of the block that borrows it
            yield from (value for value in vars(part).values() if isinstance(value, nn.Module))


def write(blocks: Sequence[Block], d_model: int, views: Sequence[int]) -> Program:
    """The program of these blocks. views: for each the number of its view. Raises Inexpressible."""
    modules = list(dict.fromkeys(_parts(blocks)))
    for module in modules:
        if type(module) not in _KNOWN:
            raise Inexpressible(f"a {type(module).__name__}")
    writer = Writer()
    for layer, (block, view) in enumerate(zip(blocks, views, strict=True)):
        if block.cross is not None:
            raise Inexpressible("attention to an encoder")
        writer.block(block, d_model, layer, view)
    return Program(torch.tensor(writer.lines), writer.width, modules, writer.weights, writer.tiles)
