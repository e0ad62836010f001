"""The examples of docs/ideas run, and print what the page says that they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
# `<!-- run -->`, then the example, then what it prints
EXAMPLE = re.compile(r"<!-- run -->\n```python\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)
PAGES = sorted(DOCS.glob("ideas/*.md"))


def printed(code: str) -> str:
    """What an example prints, in a namespace of its own."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    return out.getvalue()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples_print_what_is_shown(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    examples = EXAMPLE.findall(page)
    assert len(examples) == page.count("<!-- run -->"), "an example without its output"
    assert len(examples) >= 2, "one in the text, one in the answer"
    for code, shown in examples:
        assert printed(code) == shown


def test_control_a_wrong_output_is_seen() -> None:
    ((code, shown),) = EXAMPLE.findall("<!-- run -->\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    assert printed(code) == "2\n" != shown
