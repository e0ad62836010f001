"""Where llama.cpp keeps each weight of a published checkpoint: under which name, and in which layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Size, Tensor


@dataclass(frozen=True)
class Layout:
    """do: a published tensor as llama.cpp keeps it. undo: the way back.

    by_rows: whether both only move whole rows, so that the blocks of a quantised row stay as they are. turns: whether
    the last two axes change places; every other layout keeps the shape.
    """

    do: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor]
    by_rows: bool = False
    turns: bool = False

    def shape(self, theirs: Size) -> Size:
        """The shape that a published tensor of this shape is kept in."""
        return Size((*theirs[:-2], theirs[-1], theirs[-2])) if self.turns else theirs


@dataclass(frozen=True)
class Place:
    """A tensor of the file, or of one that holds all experts' the slice ``part``; layout None: as published."""

    name: str
    part: int | None = None
    layout: Layout | None = None


TRANSPOSED = Layout(lambda theirs: theirs.mT, lambda kept: kept.mT, turns=True)
ONE_MORE = Layout(lambda theirs: theirs + 1, lambda kept: kept - 1)  # a gain that is published as 1 + weight


def _swapped(tensor: Tensor, sizes: tuple[int, int, int], axis: int) -> Tensor:
    """Rows seen as three axes; this one and the next change places."""
    return tensor.unflatten(0, sizes).transpose(axis, axis + 1).flatten(0, 2)


def side_by_side(head_dim: int) -> Layout:
    """Rows of q and k whose dimensions turn together next to each other, published with half a head between them."""
    half = head_dim // 2
    return Layout(
        lambda theirs: _swapped(theirs, (-1, 2, half), 1), lambda kept: _swapped(kept, (-1, half, 2), 1), by_rows=True
    )


def q_then_k_then_v(head_dim: int) -> Layout:
    """Rows of all heads' q, then k, then v, published head by head."""
    return Layout(
        lambda theirs: _swapped(theirs, (-1, 3, head_dim), 0),
        lambda kept: _swapped(kept, (3, -1, head_dim), 0),
        by_rows=True,
    )


def layouts(architecture: str, head_dim: int) -> dict[str, Layout]:
    """The layouts that differ from the published ones, by pattern of the name in the file."""
    if architecture == "llama":
        return {r"blk\.\d+\.attn_[qk]\.(weight|bias)": side_by_side(head_dim)}
    if architecture.startswith("gemma"):
        return {r".*norm\.weight": ONE_MORE}
    if architecture == "gpt2":
        return {r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight": TRANSPOSED}
    return {r"blk\.\d+\.attn_qkv\.(weight|bias)": q_then_k_then_v(head_dim)} if architecture == "gptneox" else {}


_EXPERT = re.compile(r"(?<=\.experts)\.(\d+)(?=\.)")


def places(architecture: str, names: Iterable[str], n_layers: int, head_dim: int) -> dict[str, Place | None]:
    """For each published name its place in a file of this architecture; None where llama.cpp has none."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    known, special = get_tensor_name_map(numbers[architecture], n_layers), layouts(architecture, head_dim)

    def place(theirs: str) -> Place | None:
        stem, _, kind = theirs.rpartition(".")
        expert = _EXPERT.search(stem)
        found = known.get_name(_EXPERT.sub("", stem))
        if found is None:
            return None
        kept = f"{found}.{kind}"
        layout = next((layout for pattern, layout in special.items() if re.fullmatch(pattern, kept)), None)
        return Place(kept, int(expert[1]) if expert else None, layout)

    return {theirs: place(theirs) for theirs in names}
