"""What only models with an encoder have to show: masks filled in, states grown alike, a verdict, looks across."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from pellucid.look.ink import LABEL, add_row, fit, habit_cells, head_name, heading, layer_name, new_table, percent
from pellucid.look.seen import Across, Encoding, Guesses, Look, Pooled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MAX_LINKS = 24  # heads of cross-attention that are listed
_MAX_CLASSES = 10


def show_encoding(look: Look, console: Console) -> None:
    """The sections that this look has."""
    if look.guesses is not None and look.guesses.masked:
        console.print(heading("What the masks hide", "best guesses, from the whole text"))
        console.print(_masks(look, look.guesses, console.width))
    if look.across is not None and look.across.attention.heads:
        n_heads = len(look.across.attention.heads)
        note = f"; {_MAX_LINKS} of {n_heads} heads, those with the strongest links" if n_heads > _MAX_LINKS else ""
        console.print(heading("Looking at the source", f"share of each head's looking, on average{note}"))
        console.print(_links(look, look.across, console.width))
    if look.encoding is not None:
        _show_encoding(look, look.encoding, console)


def _show_encoding(look: Look, encoding: Encoding, console: Console) -> None:
    if len(look.tokens) > 1:
        console.print(heading("How alike the tokens are", "cosine between their states; special tokens left out"))
        console.print(_alike(look, encoding, console.width))
    if encoding.pooled is not None:
        console.print(heading("The text as one vector", _pooled(encoding.pooled)))
        if len(encoding.pooled.likeness):
            console.print(_nearest(look, encoding.pooled))
    if encoding.classes is not None:
        per_token = len(encoding.classes) > 1
        console.print(heading("Classes", "of each token" if per_token else "of the text"))
        console.print(_classes(look, encoding.classes, encoding.class_names))


def _masks(look: Look, guesses: Guesses, width: int) -> Table:
    table = new_table("place", *("" for _ in range(max(1, min(5, (width - LABEL) // 14)))))
    for place in guesses.masked:
        best = zip(guesses.top_ids[place], guesses.top_probs[place], strict=True)
        cells = [f"{fit(look.labels[int(token)], 9)} {percent(float(p))}" for token, p in best]
        add_row(table, f"{place}", *cells[: len(table.columns) - 1])
    return table


def _links(look: Look, across: Across, width: int) -> Table:
    strongest = sorted(across.attention.heads, key=lambda head: -head.weight)[:_MAX_LINKS]
    table = new_table("layer.head", "first", "last", "strongest link (written → read)")
    room = (width - 36) // 2
    for head in sorted(strongest, key=lambda head: (head.layer, head.head)):
        written, read = look.tokens[head.query].label, across.source.tokens[head.key].label
        link = f"{fit(written, room)} → {fit(read, room)} {percent(head.weight)}"
        add_row(table, head_name(head), *habit_cells((head.first, head.last)), link)
    return table


def _alike(look: Look, encoding: Encoding, width: int) -> Table:
    """Deep layers above: the mean over pairs, and the pair that is most alike."""
    words = [place for place, token in enumerate(look.tokens) if not token.special]
    words = words if len(words) > 1 else list(range(len(look.tokens)))
    table = new_table("", "mean", "most alike")
    room = (width - LABEL - 20) // 2
    for depth, cosines in reversed(list(enumerate(encoding.alike))):
        among = cosines[np.ix_(words, words)].copy()
        different = ~np.eye(len(words), dtype=bool)
        mean = float(among[different].mean())
        # the same word twice is no news where it stands, only how far its context has drawn it apart
        same = np.array([[look.tokens[a].id == look.tokens[b].id for b in words] for a in words])
        among[same] = -2.0
        a, b = (int(i) for i in np.unravel_index(int(among.argmax()), among.shape))
        pair = f"{fit(look.tokens[words[a]].label, room)} ~ {fit(look.tokens[words[b]].label, room)} {among[a, b]:.2f}"
        add_row(table, layer_name(depth - 1), f"{mean:.2f}", pair if among[a, b] > -2.0 else "")
    return table


def _pooled(pooled: Pooled) -> str:
    states = {"first": "the first token's state", "last": "the last token's state", "mean": "the mean of all states"}
    through = ", through a dense layer" if pooled.dense else ""
    return f"{states.get(pooled.take, 'the maximum of all states')}{through}; length {pooled.norm:.3g}"


def _nearest(look: Look, pooled: Pooled) -> Table:
    table = new_table("cosine", "token")
    for place in np.argsort(-pooled.likeness)[:5]:
        add_row(table, f"{pooled.likeness[place]:.2f}", look.tokens[place].label)
    return table


def _classes(look: Look, classes: Float[np.ndarray, "places classes"], names: tuple[str, ...]) -> Table:
    """The likeliest classes of the text; of a tagger, the likeliest of each token."""
    if len(classes) == 1:
        table = new_table("class", "")
        for number in np.argsort(-classes[0])[:_MAX_CLASSES]:
            add_row(table, names[number], f"{percent(float(classes[0, number])):>4}")
        return table
    table = new_table("token", "class", "")
    for token, row in zip(look.tokens, classes, strict=True):
        add_row(table, token.label, names[row.argmax()], f"{percent(float(row.max())):>4}")
    return table
