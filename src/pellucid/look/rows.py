"""Rows of a batch as a person reads them: what a step reads, and what of it is hidden and scored."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import Tensor

from pellucid.batch import IGNORE, Batch
from pellucid.look.ink import BLACK, heading
from pellucid.look.text import is_special, prose, reader
from pellucid.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.console import Console

SCORED, SHOWN = BLACK + "#f7cf7d", BLACK + "#adc8ef"  # what is predicted, and what stands in its place
MOST = 3  # rows


class _Writer:
    """Tokens as coloured text; without colour, what is scored stands in brackets."""

    def __init__(self, tokenizer: Tokenizer | None, colour: bool):
        from rich.text import Text

        self.read, self.tokenizer, self.colour, self.text = reader(tokenizer), tokenizer, colour, Text()

    def plain(self, token: int) -> None:
        """A token that is read only; special ones are faint."""
        self.text.append(prose(self.read(token)), "dim" if is_special(self.tokenizer, token) else "")

    def scored(self, tokens: list[int], note: str = "") -> None:
        """Neighbours that are predicted; note: what the model sees in their place, unless it sees nothing of them."""
        words = prose("".join(map(self.read, tokens)))
        brackets = ("", "") if self.colour else ("[[", "]]")
        self.text.append(brackets[0] + words, SCORED).append(note, SHOWN).append(brackets[1])


def _hidden(batch: Batch, row: int, writer: _Writer) -> None:
    """A row in which labels stand at their own places: masked tokens."""
    mask = None if writer.tokenizer is None else writer.tokenizer.mask_id
    for token, label in _read(batch.ids[row], batch.labels[row], batch.tokens.pos[row]):
        if label == IGNORE:
            writer.plain(token)
        else:
            seen = "" if token == mask else "=" if token == label else f" → {prose(writer.read(token))}"
            writer.scored([label], seen)


def _next(batch: Batch, row: int, writer: _Writer) -> None:
    """A row in which each label is the next token."""
    found = _read(batch.ids[row], batch.labels[row], batch.tokens.pos[row])
    if batch.source is None and found:
        writer.plain(found[0][0])
    following = [token for token, _ in found[1:]] + [IGNORE]
    pairs = zip(following, (label for _, label in found), strict=True)
    marked = [(token if label == IGNORE else label, label != IGNORE) for token, label in pairs]
    for scored, group in itertools.groupby(marked, key=lambda one: one[1]):
        tokens = [token for token, _ in group if token != IGNORE]
        if scored:
            writer.scored(tokens)
        else:
            for token in tokens:
                writer.plain(token)


def _read(ids: Tensor, labels: Tensor, pos: Tensor) -> list[tuple[int, int]]:
    """(token, label) of each place of a row that holds a token."""
    there = pos >= 0
    return list(zip(ids[there].tolist(), labels[there].tolist(), strict=True))


def show_rows(batch: Batch, tokenizer: Tokenizer | None, console: Console, *, shifted: bool) -> None:
    """Print the first rows of a batch. shifted: whether a label is the next token, as of decoders."""
    from rich.text import Text

    colour = console.color_system is not None and not console.no_color
    for row in range(min(MOST, len(batch.ids))):
        console.print(heading(f"row {row}", "what the step reads, and what it must say"))
        if batch.source is not None:
            source = _Writer(tokenizer, colour)
            for token, _ in _read(batch.source.ids[row], batch.source.ids[row], batch.source.tokens.pos[row]):
                source.plain(token)
            console.print(Text.assemble(("reads   ", "bold"), source.text))
        writer = _Writer(tokenizer, colour)
        (_next if shifted else _hidden)(batch, row, writer)
        console.print(Text.assemble(("writes  " if shifted else "reads   ", "bold"), writer.text))
    legend, brackets = Text("\n"), ("", "") if colour else ("[[", "]]")
    kinds = [("predicted", "")] + ([] if shifted else [("seen all the same", "="), ("predicted", " → seen instead")])
    for words, note in kinds:
        legend.append(brackets[0] + words, SCORED).append(note, SHOWN).append(brackets[1] + "  ")
    console.print(legend)
