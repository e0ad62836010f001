"""A test's name says its subject and what is expected of it: a red line in CI then tells what broke."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from package import ROOT

# Words that stand for a subject which the name does not give.
PRONOUNS = ("it", "they", "so", "what", "theirs", "ours", "this", "that", "these", "those")
NAMELESS = re.compile(rf"^\s*(?:async )?def (test_(?:{'|'.join(PRONOUNS)})_\w+)", re.MULTILINE)


def nameless(source: str) -> list[str]:
    """Tests of a file whose names begin with a pronoun."""
    return NAMELESS.findall(source)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.name)
def test_names_of_tests_begin_with_their_subject(path: Path) -> None:
    assert nameless(path.read_text(encoding="utf-8")) == []


def test_control_a_name_without_a_subject_is_seen() -> None:
    assert nameless("def test_" + "it_works() -> None: ...") == ["test_" + "it_works"]
    assert nameless("def test_items_are_sorted() -> None: ...") == []
