"""What every comparison here prints: how many cases are right, wrong, refused; and its exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

Verdict = Literal["right", "wrong", "refused", "explained"]
SHOWN = 8  # wrong cases


class Counts:
    """Cases by what became of them, a row for each group, and the first wrong ones in full.

    explained: otherwise than the reference, which is at fault there, as the comparison says.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Counter[Verdict]] = {}
        self.notes: list[str] = []

    def add(self, group: str, verdict: Verdict, note: str = "", n: int = 1) -> None:
        """``n`` cases of a group. note: what was expected and seen, or why it was refused."""
        self.rows.setdefault(group, Counter())[verdict] += n
        if note:
            self.notes.append(f"{verdict}: {group}: {note}")

    def report(self, title: str) -> int:
        """Print the table; the exit code, 1 where any case is wrong."""
        columns: Iterable[Verdict] = ("right", "explained", "wrong", "refused")
        total = sum(self.rows.values(), Counter[Verdict]())
        print(f"{title}: " + ", ".join(f"{total[name]:,} {name}" for name in columns))
        for group, row in self.rows.items():
            print(f"  {group:40}" + "".join(f"{row[name]:>9,} {name}" for name in columns if row[name]))
        for note in self.notes[: SHOWN + sum(note.startswith("refused") for note in self.notes)]:
            print(f"    {note}")
        return int(total["wrong"] > 0)
