"""The version ranges that pyproject.toml promises are those that are run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lowest() -> dict[str, str]:
    """What each package that running needs is at least, as pyproject.toml says."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(re.match(r"([\w-]+)>=([\d.]+)", need).groups() for need in needs)  # type: ignore[union-attr,misc]


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


def same(a: str, b: str) -> bool:
    """Whether 1.26 and 1.26.0 are meant alike."""
    return re.sub(r"(\.0)+$", "", a) == re.sub(r"(\.0)+$", "", b)


def test_oldest_constraints_are_the_lower_bounds() -> None:
    bounds, oldest = lowest(), pinned("constraints-oldest.txt")
    assert bounds.keys() <= oldest.keys()
    assert {name: oldest[name] for name in bounds if not same(bounds[name], oldest[name])} == {}


def test_documented_versions_are_those_of_the_constraints() -> None:
    page = (ROOT / "docs" / "versions.md").read_text()
    rows = {cells[0]: cells[1:3] for line in page.splitlines() if len(cells := re.findall(r"[^|\s]+", line)) >= 3}
    bounds, tested = lowest(), {name.lower(): version for name, version in pinned("constraints.txt").items()}
    for name, bound in bounds.items():
        assert rows[name] == [bound, tested[name]], name
