"""A whole model in words, as the tables, the drawing in a terminal and the diagram say alike.

What one layer is, its spec says itself (``spec.words``); here stands what is before, after and around the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pellucid.spec import BlockSpec, DecoderSpec, EncoderSpec, StackSpec
from pellucid.spec.words import norm_name, times


def table_words(spec: DecoderSpec | EncoderSpec) -> str:
    """Where vectors come from: a table of tokens, or a matrix for patches."""
    patches = spec.embed.patches
    return f"{spec.vocab_size:,} × {spec.d_embed}" if patches is None else f"patches {patches.n_values}→{spec.d_embed}"


def wider_words(spec: DecoderSpec | EncoderSpec) -> list[str]:
    """The matrix from a width of its own to the stream's."""
    return [] if spec.embed.d_embed is None else [f"linear {spec.d_embed}→{spec.d_model}"]


def embed_words(spec: DecoderSpec | EncoderSpec) -> list[str]:
    """What happens to token vectors before the first block."""
    embed = spec.embed
    words = [f"× {times(embed.scale)}"] if embed.scale != 1 else []
    if embed.positions is not None:
        words.append(embed.positions.words)
    words += [f"+ {embed.n_types} token types"] if embed.n_types else []
    return words + ([norm_name(embed.norm)] if embed.norm else []) + wider_words(spec)


def input_words(spec: DecoderSpec | EncoderSpec) -> str:
    """What goes in."""
    patches = spec.embed.patches
    return "token ids" if patches is None else f"image, {patches.channels} × {patches.height} × {patches.width}"


def shared_words(spec: StackSpec) -> str:
    """Which blocks have whose weights; nothing where each has its own."""
    n = len(set(spec.owners))
    if n == len(spec.blocks):
        return ""
    if n == 1:
        return "all layers have the same weights"
    return f"{n} sets of weights, of layers {', '.join(map(str, spec.owners))}"


def head_words(spec: DecoderSpec | EncoderSpec) -> tuple[str, list[str]]:
    """What a model gives, and how."""
    return ("states", ["one vector a token"]) if spec.head is None else spec.head.words(spec)


# --- equal blocks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """``runs`` of equal blocks (how many, which), and how many times all of them come; ``at``: number of the first."""

    at: int
    times: int
    runs: tuple[tuple[int, BlockSpec], ...]


def fold(blocks: Sequence[BlockSpec]) -> list[Group]:
    """Blocks as what repeats: twelve equal ones as 12 × one, a pattern of four as 3 × (3 × one, another)."""
    runs = [(len(list(same)), block) for block, same in groupby(blocks)]
    groups: list[Group] = []
    i = at = 0
    while i < len(runs):
        period, best = 1, 1
        for p in range(2, (len(runs) - i) // 2 + 1):
            k = 1
            while runs[i + k * p : i + (k + 1) * p] == runs[i : i + p]:
                k += 1
            if k > 1 and k * p > period * best:
                period, best = p, k
        found = tuple(runs[i : i + period])
        groups.append(Group(at, best, found))
        at += best * sum(n for n, _ in found)
        i += best * period
    return groups
