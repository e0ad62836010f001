"""GGUF, the file of llama.cpp: metadata and tensors, mostly quantised. No number in it is believed unchecked.

A file is a magic, a version and two counts; pairs of a key and a value; a description of each tensor; padding; their
bytes (ggml, docs/gguf.md, versions 2 and 3). What the bytes of a quantised tensor mean, ``nn.formats`` knows.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Size, Tensor

from pellucid.checkpoints.gguf.texts import Texts
from pellucid.errors import CheckpointError
from pellucid.nn.formats import FORMATS
from pellucid.nn.stored import Plain, Quantised, Stored, row_bytes

MAGIC, VERSIONS = b"GGUF", (2, 3)
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9
SCALARS = dict(enumerate(["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "u1", "", "", "<u8", "<i8", "<f8"]))

# beyond any published file, and little enough to hold: a vocabulary of 262,144 takes 7 MB and 800,000 items
MAX_HEADER, MAX_ITEMS, MAX_ENTRIES, MAX_DIMS = 1 << 28, 1 << 21, 1 << 16, 4
ALIGNMENTS = [1 << i for i in range(21)]
CHUNK = 1 << 17  # numbers converted at a time

# which of ggml's types are read: these, and the quantised ones of ``FORMATS``
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: ``shape`` in torch's order, ``kind`` ggml's name of its type, ``offset`` in the file.

    Its numbers come in blocks of ``block`` that take ``block_bytes``.
    """

    shape: Size
    kind: str
    offset: int
    block: int
    block_bytes: int

    @property
    def n_bytes(self) -> int:
        return self.shape.numel() // self.block * self.block_bytes


class _Header:
    """The beginning of a file, read once from front to back; nothing is allocated that the file does not hold."""

    def __init__(self, stream: BinaryIO, path: Path):
        self.stream, self.path = stream, path
        self.size = os.fstat(stream.fileno()).st_size
        self.left = min(self.size, MAX_HEADER)
        self.items_left = MAX_ITEMS

    def damaged(
        self, problem: str, remedy: str = "the file is damaged or incomplete: fetch it again"
    ) -> CheckpointError:
        """The error that names the file; the caller raises it."""
        return CheckpointError(f"{self.path}: {problem}", remedy)

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes. Raises CheckpointError where there are not so many."""
        if n_bytes > self.left:
            raise self.damaged(f"{what} takes {n_bytes:,} bytes, but the header has at most {self.left:,} more")
        self.left -= n_bytes
        read = self.stream.read(n_bytes)
        if len(read) != n_bytes:
            raise self.damaged(f"the file ends in {what}")
        return read

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, most: int) -> int:
        """How many of something follow. What they take is checked as each is read."""
        n = self.u64(f"the number of {what}")
        if n > most:
            raise self.damaged(f"it says that {n:,} {what} follow; no file has more than {most:,}")
        return n

    def strings(self, n: int, what: str) -> Texts:
        """``n`` texts. Raises CheckpointError for one cut short, or not UTF-8."""

        def each() -> Iterator[bytes]:
            read = self.stream.read
            for _ in range(n):
                length = int.from_bytes(read(8), "little")
                self.left -= 8 + length
                if self.left < 0:
                    raise self.damaged(f"{what} is a text of {length:,} bytes, which the header cannot hold")
                yield read(length)

        try:
            return Texts(each())
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from error

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def scalars(self, kind: int, n: int, what: str) -> list[Any]:
        """``n`` numbers, or truth values, as Python has them."""
        form = np.dtype(SCALARS[kind])
        read = np.frombuffer(self.take(n * form.itemsize, what), form)
        if kind == BOOL:
            if (read > 1).any():
                raise self.damaged(f"{what} is neither true nor false, but {read.max()}")
            read = read.astype(bool)
        return read.tolist()

    def value(self, what: str) -> Any:
        """What stands behind a key: a number, a truth value, a string, or a list of one kind of them."""
        kind = self.u32(f"the type of {what}")
        if kind == STRING:
            return self.string(what)
        if kind == FLOAT32:  # as short as it can be said: 1e-05, not 9.999999747378752e-06
            return float(str(np.float32(self.scalars(kind, 1, what)[0])))
        if SCALARS.get(kind):
            return self.scalars(kind, 1, what)[0]
        if kind != ARRAY:
            raise self.damaged(f"{what} is of the unknown type {kind}")
        kind = self.u32(f"the type of {what}'s items")
        if kind != STRING and not SCALARS.get(kind):
            raise self.damaged(f"{what} is a list of {'lists' if kind == ARRAY else f'the unknown type {kind}'}")
        n = self.count(f"items of {what}", self.items_left)
        self.items_left -= n
        return self.strings(n, what) if kind == STRING else self.scalars(kind, n, what)


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _metadata(header: _Header, n: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for i in range(n):
        key = header.string(f"the name of key {i}")
        if key in metadata:
            raise header.damaged(f"the key {_shown(key)} occurs twice")
        metadata[key] = header.value(_shown(key))
    return metadata


def _tensor(header: _Header, name: str, alignment: int) -> TensorInfo:
    """One description, all that can be said about it alone being checked; its offset still counts from the data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    n_dims = header.u32(f"the number of dimensions of {name}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise header.damaged(f"{name} has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")
    dims = [header.u64(f"a dimension of {name}") for _ in range(n_dims)]
    kind, offset = header.u32(f"the type of {name}"), header.u64(f"the offset of {name}")
    try:
        known = GGMLQuantizationType(kind)
    except ValueError as error:
        raise header.damaged(f"{name} is of the unknown type {kind}") from error
    if known.name not in PLAIN and known.name not in FORMATS:
        remedy = f"use a file with other types: {', '.join((*PLAIN, *FORMATS))}"
        raise header.damaged(f"{name} is of the type {known.name}, which is not read", remedy)
    block, block_bytes = GGML_QUANT_SIZES[known]
    size, limit = 1, 8 * header.size  # no type has less than a bit a number
    for dim in dims:
        size *= dim
        if not 1 <= size <= limit:
            raise header.damaged(f"{name} has the dimensions {dims}, which the file cannot hold")
    if dims[0] % block:
        raise header.damaged(f"{name} has rows of {dims[0]:,}, no multiple of the {block} in a block of {known.name}")
    if offset % alignment:
        raise header.damaged(f"{name} begins at {offset:,}, no multiple of the alignment {alignment}")
    return TensorInfo(Size(reversed(dims)), known.name, offset, block, block_bytes)


def _tensors(header: _Header, n: int, alignment: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for i in range(n):
        name = header.string(f"the name of tensor {i}")
        if name in tensors:
            raise header.damaged(f"the tensor {_shown(name)} occurs twice")
        tensors[name] = _tensor(header, _shown(name), alignment)
    return tensors


def _placed(header: _Header, tensors: Mapping[str, TensorInfo], alignment: int) -> dict[str, TensorInfo]:
    """The tensors with offsets in the file. Raises CheckpointError where two overlap or one is not all there."""
    data = -(-header.stream.tell() // alignment) * alignment
    placed = {
        name: TensorInfo(info.shape, info.kind, data + info.offset, info.block, info.block_bytes)
        for name, info in tensors.items()
    }
    end, before = data, ""
    for name, info in sorted(placed.items(), key=lambda item: item[1].offset):
        if info.offset < end:
            raise header.damaged(f"the tensors {_shown(before)} and {_shown(name)} overlap")
        end, before = info.offset + info.n_bytes, name
        if end > header.size:
            raise header.damaged(f"{_shown(name)} ends at byte {end:,}, but the file at {header.size:,}")
    return placed


def _own_pages(shape: Size) -> UInt8[Tensor, "*axes bytes"]:
    """Memory for blocks that goes back to the system as soon as they are opened; the heap would keep a hole of it."""
    return torch.frombuffer(mmap.mmap(-1, max(shape.numel(), 1)), dtype=torch.uint8)[: shape.numel()].view(shape)


def _counts(header: _Header) -> tuple[int, int]:
    """How many tensors and how many keys there are. Raises CheckpointError for what is no GGUF of a known version."""
    if header.take(4, "the magic") != MAGIC:
        raise header.damaged("it does not begin with GGUF", "give a GGUF file, or a folder with config.json")
    version = header.u32("the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        remedy = "convert it for a little-endian machine with gguf-convert-endian" if swapped else "convert it again"
        raise header.damaged(f"it is of version {version:#x}; {VERSIONS[0]} and {VERSIONS[1]} are read", remedy)
    return header.count("tensors", MAX_ENTRIES), header.count("keys", MAX_ENTRIES)


class GGUFFile:
    """An opened GGUF: ``metadata`` as plain Python values, and the ``tensors``, each of which is read when asked for.

    Raises CheckpointError naming what is wrong with the header: truncated, unknown type, absurd count or dimension,
    something twice, tensors that overlap, are not aligned or reach past the end; one part of a file that was split.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            if not self.path.is_file():
                raise CheckpointError(f"{self.path} is no file", "give a GGUF file")
            with self.path.open("rb") as stream:
                header = _Header(stream, self.path)
                n_tensors, n_keys = _counts(header)
                self.metadata = _metadata(header, n_keys)
                self._refuse_parts(header)
                alignment = self.metadata.get("general.alignment", 32)
                if type(alignment) is not int or alignment not in ALIGNMENTS:
                    raise header.damaged(f"general.alignment = {_shown(repr(alignment))} is no power of two of bytes")
                self.tensors = _placed(header, _tensors(header, n_tensors, alignment), alignment)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}", "check the path and disk") from error

    def _refuse_parts(self, header: _Header) -> None:
        parts, number = self.metadata.get("split.count", 0), self.metadata.get("split.no", 0)
        if parts not in (0, 1):
            remedy = "join the parts with llama.cpp's `llama-gguf-split --merge`"
            raise header.damaged(f"it is number {number!r:.80}, from 0, of {parts!r:.80} parts of a model", remedy)

    def read(self, name: str, dtype: torch.dtype | None = None, part: int | None = None) -> Stored:
        """One tensor as the file has it; ``part``: only that slice along its first axis.

        dtype: what plain numbers are converted to while they are read (default: the file's own type). Raises
        CheckpointError where the file has become shorter, or is gone.
        """
        info = self.tensors[name]
        shape = info.shape if part is None else info.shape[1:]
        try:
            with self.path.open("rb") as stream:
                stream.seek(info.offset + (part or 0) * shape.numel() // info.block * info.block_bytes)
                if info.kind in PLAIN:
                    return Plain(self._numbers(stream, shape, PLAIN[info.kind], dtype, name))
                blocks = _own_pages(Size((*shape[:-1], row_bytes(shape[-1], info.kind))))
                self._fill(stream, blocks, name)
                return Quantised(blocks, info.kind)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error.strerror}", "did it change meanwhile?"
            ) from error

    def _numbers(self, stream: BinaryIO, shape: Size, own: torch.dtype, dtype: torch.dtype | None, name: str) -> Tensor:
        """The next numbers of the type ``own``, in ``dtype``."""
        out = torch.empty(shape, dtype=dtype or own)
        if out.dtype == own:
            self._fill(stream, out, name)
            return out
        for piece in out.view(-1).split(CHUNK):
            read = torch.empty(piece.shape, dtype=own)
            self._fill(stream, read, name)
            piece.copy_(read)
        return out

    def _fill(self, stream: BinaryIO, out: Tensor, name: str) -> None:
        """Read the next bytes into a tensor. Raises CheckpointError where the file ends before it is full."""
        if stream.readinto(out.view(-1).view(torch.uint8).numpy().data) != out.nbytes:  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.path}: it ends in {_shown(name)}", "it changed while it was read")
