"""Nothing in the repository belongs to one machine: no path of its disk, no package index of its network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from package import ROOT

# Written with a class of one letter each, so that this file does not hold what it forbids.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.~/-])/(?:roo[t]|hom[e]|User[s]|wor[k]|op[t]|mn[t])/\w"),
    "a package index": re.compile(
        r"--(?:extra-)?inde[x]-url|--find-link[s]|\bPIP_[A-Z]+_UR[L]|download\.pytorc[h]\.org"
    ),
    "a file of one machine": re.compile(r"fil[e]:///\w"),
}


def violations(text: str) -> list[str]:
    """What the text names that it must not, each with its line."""
    return [
        f"line {number}: {what}: {found.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if (found := pattern.search(line))
    ]


def committed() -> list[Path]:
    """What is in the repository, or would be at the next commit."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="git lists what is committed; this is not a git checkout",
)
def test_nothing_belongs_to_one_machine() -> None:
    found: dict[str, list[str]] = {}
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        if seen := violations(text):
            found[str(path.relative_to(ROOT))] = seen
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "open('/" + "home/me/x')",
        "cd /" + "root/project",
        "pip install --" + "index-url https://x",
        "see file" + ":///x/y",
    ],
)
def test_a_violation_is_seen(line: str) -> None:
    assert len(violations(line)) == 1


@pytest.mark.parametrize(
    "line", ["~/home/x", "https://example.org/opt/x", "src/" + "root/x", "the work / home balance"]
)
def test_other_paths_are_allowed(line: str) -> None:
    assert violations(line) == []
