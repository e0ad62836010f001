"""Attention in the terminal: heads by kind, how many there are of each and in which layers, and some of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pellucid.look.ink import SPARK, add_row, fit, habit_cells, head_name, heading, new_table, percent
from pellucid.look.seen import Head, Look

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLACES = ("first", "previous", "itself", "next", "last")  # where a head may look, as ``_shares`` has them
_MIXED = "mixed"  # the kind of a head that gives none of these places half of its attention
_MAX_HEADS = 24  # that are listed


def show_attention(look: Look, console: Console) -> None:
    """The section: a row for each kind of head, and beneath it the plainest heads of the kind."""
    from rich.text import Text

    heads = look.attention.heads
    if not heads:
        console.print(heading("Attention", "none to show: every layer keeps what it read in a running state"))
        return
    kinds = _kinds(heads, look.both_ways)
    counts = _share_out([len(alike) for alike in kinds.values()], _MAX_HEADS)
    cut = f"; {sum(counts)} of {len(heads)} heads" if sum(counts) < len(heads) else ""
    console.print(heading("Attention", f"heads by the place that gets at least half of their looking{cut}"))
    console.print(_table(look, kinds, counts, console.width))
    last = heads[-1]
    console.print(Text(f"{head_name(last)} is head {last.head} of {look.points['pattern'][last.layer]}", "dim"))


def _shares(head: Head, both_ways: bool) -> tuple[float, ...]:
    """The shares of a head's looking, in the order of ``_PLACES``."""
    beyond = (head.following, head.last) if both_ways else ()
    return head.first, head.previous, head.itself, *beyond


def _kinds(heads: Sequence[Head], both_ways: bool) -> dict[str, list[Head]]:
    """Kind -> its heads, the plainest first: those with the largest share; of mixed ones, with the strongest link."""
    found: dict[str, list[tuple[float, Head]]] = {kind: [] for kind in (*_PLACES, _MIXED)}
    for head in heads:
        shares = _shares(head, both_ways)
        most = max(shares)
        kind, plainness = (_PLACES[shares.index(most)], most) if most >= 0.5 else (_MIXED, head.weight)
        found[kind].append((plainness, head))
    return {
        kind: [head for _, head in sorted(ranked, key=lambda each: -each[0])]
        for kind, ranked in found.items()
        if ranked
    }


def _share_out(sizes: Sequence[int], most: int) -> list[int]:
    """How many of each group to list, ``most`` in all: the same number of each, and all of a small one."""
    given = [0] * len(sizes)
    while sum(given) < min(most, sum(sizes)):
        open_ones = [i for i, size in enumerate(sizes) if given[i] < size]
        for i in open_ones[: most - sum(given)]:
            given[i] += 1
    return given


def _table(look: Look, kinds: dict[str, list[Head]], counts: Sequence[int], width: int) -> Table:
    """Kinds in bold, with their number and a bar for each layer; then some of their heads."""
    from rich.text import Text

    both_ways = look.both_ways
    # the last column of two does without its long name where there are more before it
    place_names = _PLACES if both_ways else _PLACES[:3]
    table = new_table("layer.head", *place_names, "strongest link" if both_ways else "strongest link (query → key)")
    before = 45 if both_ways else 34  # columns before the last one
    room = max(3, (width - before - 8) // 2)  # " →  100%" takes 8
    for (kind, heads), count in zip(kinds.items(), counts, strict=True):
        by_layer = _by_layer(look, heads) if len(look.layers) <= width - before else ""
        add_row(table, Text(f"{kind} {len(heads)}", "bold"), *("" for _ in place_names), Text(by_layer, "blue"))
        for head in heads[:count]:
            query, key = (fit(look.tokens[place].label, room) for place in (head.query, head.key))
            link = f"{query} → {key} {percent(head.weight)}" if head.query != head.key else ""
            add_row(table, head_name(head), *habit_cells(_shares(head, both_ways)), link)
    return table


def _by_layer(look: Look, heads: Sequence[Head]) -> str:
    """A character a layer, shallow to deep: which share of its heads these are, a dot for none."""
    bars = ""
    for layer, pattern in enumerate(look.attention.patterns):
        share = sum(head.layer == layer for head in heads) / max(1, len(pattern))
        bars += SPARK[min(int(share * len(SPARK)), len(SPARK) - 1)] if share else "·"
    return bars
