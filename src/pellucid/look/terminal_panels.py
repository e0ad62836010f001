"""Tables of what was measured inside a model, in the terminal: deep layers above, a colour for what is large."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pellucid.look.ink import CERTAIN, LABEL, add_row, certain_step, fit, heading, new_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pellucid.look.seen import Look, Panel

LEAST, MOST = 5, 9  # columns of a number, and of the word above it where that is long
WORDS = 48  # columns of what is said of a row, at most, and never more than a third of the terminal


def show_panels(look: Look, console: Console) -> None:
    """The section: a table for each panel, as many of its last columns as fit."""
    for panel in look.panels:
        cell = max(LEAST, min(MOST, max(map(len, panel.columns))))
        words = min(WORDS, console.width // 3) if panel.words else 0
        shown = max(1, min(len(panel.columns), (console.width - LABEL - 1 - words) // (cell + 1)))
        total = len(panel.columns)
        cut = "" if shown == total else f"; the last {shown} of {total} columns (the HTML page has all)"
        console.print(heading(panel.title, panel.note + cut))
        console.print(_table(panel, shown, cell, words))


def _table(panel: Panel, shown: int, cell: int, words: int) -> Table:
    from rich.text import Text

    columns = range(len(panel.columns) - shown, len(panel.columns))
    table = new_table("", *(fit(panel.columns[column], cell) for column in columns), *([""] if words else []))
    rows = range(len(panel.rows)) if panel.ranked else reversed(range(len(panel.rows)))
    for row in rows:
        cells = [float(panel.values[row, column]) for column in columns]
        said = [Text(fit(panel.words[row], words))] if words else []
        add_row(table, Text(panel.rows[row], "dim"), *(Text(_number(x, cell), CERTAIN[_step(x)]) for x in cells), *said)
    return table


def _number(share: float, width: int) -> str:
    """In whole percent; nothing where there is no such cell."""
    return "" if math.isnan(share) else f"{round(100 * share)}%".rjust(width)


def _step(share: float) -> int:
    return 0 if math.isnan(share) else certain_step(min(1.0, max(0.0, share)))
