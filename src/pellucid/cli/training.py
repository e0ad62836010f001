"""What it would take to train a model of so many parameters: tokens, FLOPs, hours on this machine, memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pellucid.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from pellucid.spec import ModelSpec

TOKENS_PER_PARAMETER = 20  # compute-optimal, about (Hoffmann et al. 2022, table 3)
MOST_DEPTH = 400
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def number_of(text: str) -> int:
    """A number that is written as people write sizes: 125M, 1.5B, 30_000_000. Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt]?)", text.replace("_", "").replace(",", "").lower())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--params {text} cannot be used", "it is a number such as 125M or 1B")
    return round(float(found[1]) * _UNITS[found[2]])


def of_parameters(subject: str, sizes: dict[str, int], wanted: int) -> ModelSpec:
    """The design in the depth that has the nearest number of parameters.

    Raises UsageError for what has its own sizes, a depth beside, and more parameters than the deepest has.
    """
    from pellucid.cli.info import read_spec
    from pellucid.designs import is_own, sized
    from pellucid.nn.flops import count_parameters

    if subject not in sized() and not is_own(subject):
        raise UsageError(f"--params is for a design, and {subject} has its own", "name a design, e.g. modern")
    if "depth" in sizes:
        raise UsageError("--params and --depth are both given", "give the one that should decide")

    def parameters(depth: int) -> int:
        return count_parameters(read_spec(subject, sizes | {"depth": depth})).total

    low, high = 1, 2
    while parameters(high) < wanted:
        low, high = high, 2 * high
        if high > MOST_DEPTH:
            raise UsageError(f"{wanted / 1e9:,.0f} B parameters need more than {MOST_DEPTH} layers", "give --d-model")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(middle) < wanted else (low, middle)
    depth = min((low, high), key=lambda depth: abs(parameters(depth) - wanted))
    return read_spec(subject, sizes | {"depth": depth})


def training_table(spec: ModelSpec) -> Table:
    """Tokens, FLOPs, time and memory of training it here; the speed of this machine is measured."""
    from rich.table import Table

    from pellucid.engine.memory import free_bytes, gigabytes
    from pellucid.nn.flops import count_parameters, training_flops
    from pellucid.train.derive import ASSUMED_UTILISATION
    from pellucid.train.needs import training_needs
    from pellucid.train.precision import measure_peak

    total, context = count_parameters(spec).total, spec.context
    tokens = TOKENS_PER_PARAMETER * total
    flops = tokens * training_flops(spec, context) / context
    peak = measure_peak()
    precision = peak.faster
    speed = peak.of(precision) * ASSUMED_UTILISATION
    needs = training_needs(spec, 1, context, precision=precision)
    table = Table("to train it", "", "", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.columns[1].justify, table.columns[2].style = "right", "dim"
    table.add_row("tokens", f"{tokens / 1e9:,.2f} B", f"{TOKENS_PER_PARAMETER} a parameter (Hoffmann et al. 2022)")
    table.add_row("FLOPs", f"{flops:.2e}", "forward and backward")
    said = f"at {ASSUMED_UTILISATION:.0%} of its measured {peak.of(precision) / 1e9:,.0f} GFLOP/s in {precision}"
    table.add_row("on this machine", duration(flops / speed), said)
    free = free_bytes()
    fits = "" if free is None else f"; {gigabytes(free)} are free here"
    table.add_row("memory", gigabytes(needs.total), f"one row of {context:,} tokens a time, with Muon{fits}")
    for name, size in needs._asdict().items():
        if size:
            table.add_row(f"  {name}", gigabytes(size), "")
    return table


def duration(seconds: float) -> str:
    """A time in the unit that suits it: "3.2 hours", "41 years"."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
