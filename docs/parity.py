"""Write docs/parity.md: run the parity tests, and tabulate how far ours is from the reference and how far controls are.

    python docs/parity.py               # families on random weights and real checkpoints: some minutes
    python docs/parity.py -k llama      # of some tests only, shown and not written

Nothing is measured here that the tests do not assert: this only writes down each difference that they look at.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "parity.md"
TOLERANCE = 1e-5
VISIBLE = 1e-4  # no control differs by less: the tests assert that one is equal, or that it differs
REAL = {"gemma|gains": "Gemma 3 270M, GGUF of K-quants", "smollm2|rows": "SmolLM2-135M-Instruct, GGUF of Q4_1"}
HEAD = """# Parity

How far pellucid is from the implementation that a family was published with, and how far deliberately wrong models
are from it: a comparison that could not see a mistake would prove nothing. Written by `make parity`, which runs the
tests in [`tests/parity`](../tests/parity) and [`tests/real`](../tests/real) and notes every difference that they look
at: logits, hidden states, attention patterns, losses; at once, padded, over caches, exported and opened again. float32,
on a CPU.

"""
FAMILIES = """## Families, on random weights

Every norm and bias is moved off its default, so that nothing cancels. The reference is transformers {transformers}, but
where the first column says otherwise. The tolerance is 1e-5.

"""
CHECKPOINTS = """
## Real checkpoints

What is compared are logits for GGUF, by both sides' own readers of the same file, and hidden states for MiniLM.
Controls are layouts that are not undone, facts that a file omits, padding that is seen.

"""


@dataclass
class Row:
    """All differences of one family or checkpoint."""

    equal: list[float] = field(default_factory=list)
    controls: list[float] = field(default_factory=list)


class Recorder:
    """A pytest plugin: what ``against_hf.gap`` returned, by what was tested."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.here: list[float] = []
        self.unclear: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        against = import_module("against_hf")
        plain = against.gap

        def gap(a: Any, b: Any) -> float:
            self.here.append(plain(a, b))
            return self.here[-1]

        against.gap = gap  # before the test modules import it

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Generator[None, Any, Any]:
        self.here = []
        outcome = yield
        room, name = item.path.parent.name, (item.module.__doc__ or "").split(":")[0]
        if room == "real":
            name = next((long for words, long in REAL.items() if re.search(words, item.name)), name.split(" as ")[0])
        row = self.rows.setdefault((room, name), Row())
        row.equal += [gap for gap in self.here if gap <= TOLERANCE]
        row.controls += [gap for gap in self.here if gap > VISIBLE]
        between = [gap for gap in self.here if TOLERANCE < gap <= VISIBLE]
        self.unclear += [f"{item.nodeid} compares what differs by {gap:.1e}" for gap in between]
        return outcome


def table(rows: dict[str, Row]) -> str:
    lines = [
        "| model | comparisons | largest difference | controls | smallest difference of a control |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in sorted(rows.items()):
        if row.equal:
            smallest = f"{min(row.controls):.1e}" if row.controls else "–"
            lines.append(f"| {name} | {len(row.equal)} | {max(row.equal):.1e} | {len(row.controls)} | {smallest} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    recorder = Recorder()
    tests = [str(ROOT / "tests" / place) for place in ("parity", "real/test_gguf_models.py", "real/test_minilm.py")]
    traps = str(ROOT / "tests" / "parity" / "test_traps.py")  # not of a model
    code = pytest.main(["-q", "-p", "no:cacheprovider", f"--ignore={traps}", *tests, *arguments], plugins=[recorder])
    if code != 0 or recorder.unclear:
        print("nothing is written: a test failed, or is neither", *recorder.unclear, sep="\n  ", file=sys.stderr)
        return int(code) or 1
    families, checkpoints = (
        table({name: row for (place, name), row in recorder.rows.items() if place == room})
        for room in ("parity", "real")
    )
    page = HEAD + FAMILIES.format(transformers=version("transformers")) + families + CHECKPOINTS + checkpoints
    if arguments:
        print(page)
    else:
        PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
