"""What was found: findings with their numbers, three rows with what is scored, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from pellucid.doctor.subject import Row, Subject
from pellucid.errors import DataError, shown

Severity = Literal["refuse", "warn"]
STYLES: dict[Severity, str] = {"refuse": "bold red", "warn": "yellow"}
SHOWN = 3  # rows
LONGEST = 700  # characters of a row that are shown
SCORED = "black on #f7cf7d"


@dataclass(frozen=True)
class Complaint:
    """What a check says. severity: "refuse" where training would not learn what is meant; "warn" where it may not."""

    severity: Severity
    problem: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One fault. check: its name; question: what the check asks."""

    check: str
    question: str
    severity: Severity
    problem: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Report:
    """All findings about one subject. asked: the checks that could be made; open: what the others would have needed."""

    subject: Subject
    findings: tuple[Finding, ...]
    asked: tuple[str, ...]
    open: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def refused(self) -> list[Finding]:
        """Faults with which nobody should train."""
        return [finding for finding in self.findings if finding.severity == "refuse"]

    @property
    def exit_code(self) -> int:
        """0: nothing, or warnings alone; 1: a fault with which nobody should train."""
        return 1 if self.refused else 0

    def names(self) -> set[str]:
        """The checks that found something."""
        return {finding.check for finding in self.findings}

    def require(self) -> Report:
        """The report itself. Raises DataError for the first fault with which nobody should train."""
        if self.refused:
            first, *more = self.refused
            others = f" (and {', '.join(each.check for each in more)})" if more else ""
            raise DataError(f"{first.check}: {first.problem}{others}", first.remedy)
        return self

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        about = {"subject": self.subject.name, "kind": self.subject.kind, "ok": self.ok}
        return {**about, "findings": [asdict(each) for each in self.findings], "asked": list(self.asked)}

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield Text(shown(f"{self.subject.name} ({self.subject.kind}): {len(self.subject.rows):,} rows looked at"))
        for number, row in enumerate(self.subject.rows[:SHOWN]):
            yield Text.assemble((f"row {number}  ", "bold"), as_text(row, self.subject, colour=console.color_system))
        for finding in self.findings:
            yield Text.assemble((f"{finding.severity}  ", STYLES[finding.severity]), (finding.check, "bold"))
            yield Text(f"  {shown(finding.problem)}\n  {shown(finding.remedy)}")
        for need, checks in _by_need(self.open).items():
            yield Text(f"not asked, without {need}: {', '.join(checks)}", "dim")
        passed = len(self.asked) - len(self.names())
        refused, warned = len(self.refused), len(self.findings) - len(self.refused)
        style = "bold red" if refused else "yellow" if warned else "bold green"
        yield Text(f"{passed} checks found nothing, {warned} warn, {refused} refuse", style)


def _by_need(needs: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check, need in needs.items():
        found.setdefault(need, []).append(check)
    return found


def as_text(row: Row, subject: Subject, colour: object = None) -> Any:
    """A row as a person reads it: what is scored in colour, or in double brackets without colours."""
    from rich.text import Text

    said, used = Text(), 0
    if row.source:
        said.append(shown(_written(row.source, subject)[:LONGEST]).replace("\n", "⏎")).append("  →  ", "dim")
    for tokens, scored in _stretches(row, subject):
        words = _written(tokens, subject).replace("\n", "⏎")
        words = shown(words[: LONGEST - used])
        used += len(words)
        said.append(words if not scored or colour else f"[[{words}]]", SCORED if scored and colour else "")
        if used >= LONGEST:
            return said.append("…", "dim")
    return said


def _stretches(row: Row, subject: Subject) -> Iterator[tuple[list[int], bool]]:
    """Neighbours that are all scored, or all read only; padding is left out."""
    if subject.kind == "classifier":
        yield list(row.ids), False
        return
    marked: list[tuple[int, bool]] = []
    for place, number in enumerate(row.documents):
        target = row.targets[place]
        if subject.kind == "decoder":
            before = row.targets[place - 1] if place else None
            if number >= 0:
                marked.append((row.ids[place], before is not None))
        elif number >= 0 or target is not None:
            marked.append((row.ids[place] if target is None else target, target is not None))
    if subject.kind == "decoder" and row.targets and (last := row.targets[-1]) is not None:
        marked.append((last, True))
    group: list[int] = []
    for at, (token, scored) in enumerate(marked):
        group.append(token)
        if at + 1 == len(marked) or marked[at + 1][1] != scored:
            yield group, scored
            group = []


def _written(tokens: Sequence[int], subject: Subject) -> str:
    """Special tokens by their names, and what stands between them decoded together."""
    words = subject.vocabulary
    if words is None:
        return " ".join(map(str, tokens))
    special = {number: text for text, number in words.special.items()}
    parts = groupby(tokens, key=special.get)
    return "".join(name * len(list(group)) if name else words.decode(list(group)) for name, group in parts)


def number_of(n: int, of: int, what: str) -> str:
    """``3 of 40 rows (7.5 %)``"""
    return f"{n:,} of {of:,} {what} ({n / max(1, of):.1%})"


def first_words(texts: Sequence[str]) -> str:
    """The beginning of the first one, for a message."""
    return repr(texts[0][:40]) if texts else ""
