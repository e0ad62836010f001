"""What the terminal views share: colours, and how numbers, tokens, titles and tables are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from pellucid.look.seen import Head

Section = Literal["text", "next", "lens", "attention", "encoding", "experts", "stream", "inside"]
# Ink and paper are both set, so that the words are legible on a light and on a dark terminal.
BLACK, WHITE = "#111111 on ", "#ffffff on "
SURPRISE = ("", BLACK + "#fbedc3", BLACK + "#f7cf7d", BLACK + "#f0a35a", WHITE + "#bd5238", WHITE + "#8a2a2e")
CERTAIN = ("", BLACK + "#dde8f8", BLACK + "#adc8ef", BLACK + "#7ba4e0", WHITE + "#3a68b8", WHITE + "#1f3f86")
BITS_A_STEP = 2.0  # colour steps of surprise: 0-2 bits plain, 2-4, ... 10 and more
SPARK = "▁▂▃▄▅▆▇█"
FAR_OFF = "↑"
LABEL = 11  # columns of the first column of every table
CELL = 10  # columns of one lens cell: a guess and its percentage


def surprise_step(bits: float) -> int:
    """The index in ``SURPRISE`` of a loss in bits."""
    return min(int(bits / BITS_A_STEP), len(SURPRISE) - 1)


def certain_step(probability: float) -> int:
    """The index in ``CERTAIN`` of a probability."""
    return min(int(probability * len(CERTAIN)), len(CERTAIN) - 1)


def percent(probability: float) -> str:
    """A probability in whole percent; "<1%" where that would round to 0."""
    return f"{100 * probability:.0f}%" if probability >= 0.0095 or probability == 0 else "<1%"


def fit(text: str, width: int) -> str:
    """At most ``width`` terminal columns of ``text`` (wide characters take two)."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def spark(values: Sequence[float], most: float = math.inf) -> str:
    """One bar a value, from the smallest to the largest of those up to ``most``; an arrow for what is larger."""
    within = [value for value in values if value <= most] or [0.0]
    low, span = min(within), max(within) - min(within)
    steps = [round((len(SPARK) - 1) * (min(value, most) - low) / span) if span else 0 for value in values]
    return "".join(FAR_OFF if value > most else SPARK[step] for value, step in zip(values, steps, strict=True))


def layer_name(layer: int) -> str:
    """Of a row: the layer after which it stands, from 0; -1 is before the first."""
    return "embed" if layer < 0 else f"layer {layer}"


def head_name(head: Head) -> str:
    """Of a row: the head's layer and its number there, both from 0."""
    return f"{head.layer}.{head.head}"


def heading(text: str, note: str) -> Text:
    """The title of a panel, with a note behind it."""
    from rich.text import Text

    return Text.assemble(("\n" + text, "bold"), ("  " + note, "dim"))


def new_table(*headings: str) -> Table:
    """A table without lines, with these headings."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """One more row. A word of a text is never markup: "[/INST]" is a token."""
    from rich.text import Text

    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def habit_cells(shares: Sequence[float]) -> list[Text]:
    """Shares of a head's looking; what is at least half of it stands out."""
    from rich.text import Text

    return [Text(f"{percent(share):>5}", style="bold" if share >= 0.5 else "") for share in shares]
