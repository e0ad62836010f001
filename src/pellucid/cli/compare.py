"""``pellucid compare``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from pellucid.cli.parse import parse
from pellucid.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.train.compare import Group, Interval, Trained

EXAMPLES = """
compare runs/book runs/hybrid
compare runs/modern-0 runs/modern-1 runs/modern-2 runs/hybrid-0 runs/hybrid-1 runs/hybrid-2
"""
SHARES = (0.25, 0.5, 0.75)
WIDTH = 24  # of a curve


def compare(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Set trained runs beside each other: what they differ in, how they went, and which came out better.

    Runs that differ in their seed alone are taken together: with two or more, their mean has an interval of 95 %, and a
    difference whose interval leaves out 0 is more than the chance of seeds.

    Args:
        runs: Folders that `pellucid train` wrote, two or more.
    """
    from rich.console import Console

    from pellucid.train.compare import Trained, groups

    if len(runs) < 2:
        raise UsageError("a comparison needs two runs", "pellucid compare RUN RUN")
    if twice := next(
        (folder for folder in runs if [each.resolve() for each in runs].count(folder.resolve()) > 1), None
    ):
        raise UsageError(f"{twice} is given twice", "give each run once")
    loaded = [Trained.load(folder) for folder in runs]
    found, console = groups(loaded), Console(highlight=False)
    _curves(loaded, console)
    _settings(loaded, console)
    _verdict(found, console)
    hashes = {each.run.feed.hash for each in loaded}
    if len(hashes) > 1:
        told = "they learned from different texts, or held out different parts: a part of the difference is the texts'"
        console.print(f"\n{told}\n(--held-out NAME holds out the same documents for every seed)", style="dim")


def _curves(runs: Sequence[Trained], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from pellucid.cli.display import sparkline
    from pellucid.nn.flops import count_parameters

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", overflow="fold")
    for name in ("seed", "steps", "tokens", "parameters", *(f"at {share:.0%}" for share in SHARES), "end"):
        table.add_column(name, justify="right")
    table.add_column(runs[0].measure.replace("_", " "))
    for each in runs:
        run = each.run
        values = [*(each.at(share) for share in SHARES), each.final]
        table.add_row(
            Text(each.name),
            str(run.seed),
            f"{run.steps:,}",
            f"{run.steps * run.tokens_per_step / 1e6:,.2f} M",
            f"{count_parameters(run.model).total / 1e6:,.2f} M",
            *("" if value is None else f"{value:.4f}" for value in values[:-1]),
            "not yet" if each.final is None else f"{each.final:.4f}",
            Text(sparkline([value for _, value in each.curve], WIDTH), "cyan"),
        )
    console.print(table)


def _settings(runs: Sequence[Trained], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from pellucid.train.compare import differences

    found = differences(runs)
    if not found:
        console.print("\nthey differ in their seeds alone", style="dim")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("what differs")
    for each in runs:
        table.add_column(each.name, overflow="fold")
    for name, values in found.items():
        table.add_row(name, *(Text(_shown(value)) for value in values))
    console.print()
    console.print(table)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return "derived" if value is None else str(value)


def _verdict(found: Sequence[Group], console: Console) -> None:
    """The mean of each group, and its difference from the first one."""
    console.print()
    for number, group in enumerate(found):
        n = len(group.runs)
        seeds = f"{n} seeds" if n > 1 else "one seed: no interval"
        console.print(f"{group.name}: [bold]{_interval(group.interval)}[/] ({seeds})", soft_wrap=True)
        if number:
            console.print(f"  {_difference(group.minus(found[0]))}", soft_wrap=True)
    if any(len(group.runs) < 2 for group in found):
        console.print("train each again with --seed 1, --seed 2, … to see what is chance", style="dim")


def _interval(interval: Interval, sign: str = "") -> str:
    half = "" if interval.half is None else f" ± {interval.half:.4f}"
    return f"{interval.mean:{sign}.4f}{half}"


def _difference(interval: Interval) -> str:
    """In words; all measures are better where they are smaller."""
    which = "better" if interval.mean < 0 else "worse"
    told = f"{_interval(interval, '+')} beside the first"
    if interval.half is None:
        return f"{told}: {which}, if that is no chance"
    return f"{told}: {which if abs(interval.mean) > interval.half else 'no more than chance'}"


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parse(compare, arguments, EXAMPLES)
