"""What was found: one line a check, as a table, as JSON, and as an exit code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pellucid.errors import shown

Verdict = Literal["pass", "fail", "not applicable", "error"]
_ROOMY = 110  # columns
STYLES: dict[str, str] = {"pass": "green", "fail": "bold red", "error": "bold magenta", "not applicable": "dim"}
OWNERS = {"pellucid": "pellucid", "transformers": "transformers", "function": "a function that was given"}


@dataclass(frozen=True)
class Finding:
    """One check. error and tolerance are shares of what ``why`` names; None where nothing was measured.

    verdict: "fail" when the promise was broken, "error" when the model (or the check) raised an exception instead,
    "not applicable" when it could not be tried, which says nothing. detail: where the largest error was, or why.
    """

    check: str
    promise: str
    verdict: Verdict
    error: float | None = None
    tolerance: float | None = None
    why: str = ""
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """All findings about one subject. made_by: whose code computed: pellucid's, transformers', or a function's."""

    subject: str
    kind: str
    seed: int
    findings: tuple[Finding, ...]
    made_by: str = "pellucid"

    @property
    def broken(self) -> list[Finding]:
        """Promises that were not kept, and checks that ended in an exception."""
        return [finding for finding in self.findings if finding.verdict in ("fail", "error")]

    @property
    def ok(self) -> bool:
        """Whether no promise is broken."""
        return not self.broken

    @property
    def exit_code(self) -> int:
        """0: every promise that could be tried was kept; 1: not so."""
        return 0 if self.ok else 1

    def __getitem__(self, check: str) -> Finding:
        """The finding of one check; KeyError where it was not tried."""
        return {finding.check: finding for finding in self.findings}[check]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings of each verdict."""
        return dict(Counter(finding.verdict for finding in self.findings))

    @property
    def summary(self) -> str:
        """``12 pass, 1 fail, 3 not applicable``."""
        return ", ".join(f"{self.counts[verdict]} {verdict}" for verdict in STYLES if verdict in self.counts)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON; an error that is not a number is the string "nan" or "inf"."""
        plain = [{name: _json(value) for name, value in asdict(finding).items()} for finding in self.findings]
        about = {"subject": self.subject, "kind": self.kind, "made_by": self.made_by, "seed": self.seed}
        return {**about, "ok": self.ok, "findings": plain}

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        title = f"{self.subject} ({self.kind}), computed by {OWNERS.get(self.made_by, self.made_by)}"
        table = Table(title=Text(shown(title)), title_justify="left", box=None, padding=(0, 2, 0, 0))
        # where there is little room, it is the promise that needs it, and only a promise takes two lines
        short = "n/a" if options.max_width < _ROOMY else "not applicable"
        table.add_column("check", no_wrap=True)
        table.add_column("promise")
        table.add_column("verdict", no_wrap=True)
        for heading in ("error", "tolerance"):
            table.add_column(heading, justify="right", no_wrap=True)
        for finding in self.findings:
            verdict = Text(short if finding.verdict == "not applicable" else finding.verdict, STYLES[finding.verdict])
            numbers = [_shown(finding.error), _shown(finding.tolerance)]
            table.add_row(finding.check, finding.promise, verdict, *numbers)
        yield table
        for verdict in ("not applicable", "error", "fail"):  # what matters comes last, above the sum
            yield from self._told(verdict)
        yield Text(self.summary, "bold green" if self.ok else "bold red")

    def reasons(self) -> Iterator[Any]:
        """Why the tolerances of what passed are what they are, as lines for a terminal."""
        yield from self._told("pass")

    def _told(self, verdict: Verdict) -> Iterator[Any]:
        from rich.text import Text

        for reason, checks in self._grouped(verdict).items():
            yield Text.assemble((", ".join(checks), STYLES[verdict]), f": {shown(reason)}")

    def _grouped(self, verdict: Verdict) -> dict[str, list[str]]:
        """Checks by what is to be said of them: of those that passed, why their tolerance is what it is."""
        groups: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.verdict == verdict:
                why = f"tolerance: {finding.why}" if finding.why else ""
                broken = f"not so: {finding.promise}. {finding.detail}. " if verdict == "fail" else ""
                reason = broken + why if verdict in ("pass", "fail") else finding.detail
                groups.setdefault(reason, []).append(finding.check)
        return groups


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
