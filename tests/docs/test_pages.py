"""The pages of docs/: code that is the code, pictures and links that exist, and every part that a page promises."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("ideas/*.md"))
OTHERS = sorted(DOCS.glob("*.md"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def script(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


include = script("include")


def named(path: Path) -> str:
    return path.stem


def test_there_are_pages() -> None:
    assert len(PAGES) >= 10
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"ideas/{page.name}" not in index] == []


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=named)
def test_included_code_is_current(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert path in OTHERS or include.BLOCK.search(page), "a page shows the code that it is about"
    assert include.updated(page) == page, "run `make docs`"


def test_table_of_families_and_formats_is_current() -> None:
    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    assert "| `llama` | yes |" in page and script("families").updated(page) == page, "run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_page_has_all_its_parts(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    for part in ("Formula", "Shapes", "Code", "Look", "Exercise"):
        assert part in headings, part
    assert re.search(r"!\[[^\]]+\]\([^)]+\.(svg|png)\)", page), "one figure, with words for who cannot see it"


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_its_figure_is_drawn_by_the_package(path: Path) -> None:
    tree = ast.parse((DOCS / "figures.py").read_text(encoding="utf-8"))
    drawn = {node.name.replace("_", "-") for node in tree.body if isinstance(node, ast.FunctionDef)}
    shown = re.findall(r"\(\.\./pictures/([\w-]+)\.svg\)", path.read_text(encoding="utf-8"))
    assert path.stem in shown and set(shown) <= drawn


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_control_stale_code_is_seen() -> None:
    page = "<!-- code: src/pellucid/nn/rope.py rotate -->\n```python\nnot what stands there\n```\n"
    assert include.updated(page) != page and "def rotate(" in include.updated(page)
    with pytest.raises(KeyError, match="no nothing_like_this"):
        include.updated(page.replace("rotate", "nothing_like_this"))
