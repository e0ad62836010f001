"""What the pages of docs/ideas show of real models is what `pellucid look` prints of them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from pellucid.look.ink import SPARK

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path for path in DOCS.glob("ideas/*.md") if "<!-- look -->" in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def looks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("looks", DOCS / "looks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module.installed():
        pytest.skip("real checkpoints are not installed: `make .venv/.checkpoints` does it")
    return module


def parts(text: str) -> tuple[list[str], list[float]]:
    """The words of an output, and its numbers and bars: on another processor these may be a little different."""
    marks = re.findall(rf"\d+(?:\.\d+)?|[{SPARK}]", text)
    return re.sub(rf"\d+(?:\.\d+)?|[{SPARK}]", "#", text).split(), [
        float(SPARK.index(mark)) if mark in SPARK else float(mark) for mark in marks
    ]


def differs(shown: str, printed: str) -> bool:
    """Whether two outputs say something different: other words, or numbers that differ by more than rounding does."""
    (words, numbers), (others, measured) = parts(shown), parts(printed)
    if words != others or len(numbers) != len(measured):
        return True
    return any(abs(a - b) > max(1.01, 0.02 * abs(b)) for a, b in zip(numbers, measured, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_outputs_of_look_are_what_is_printed(path: Path, looks: ModuleType) -> None:
    page = path.read_text(encoding="utf-8")
    blocks = list(looks.BLOCK.finditer(page))
    assert len(blocks) == page.count("<!-- look -->"), "a command without its output"
    for block in blocks:
        assert not differs(block["output"], looks.printed(block["arguments"])), "run `make docs`"


def test_control_another_output_is_seen() -> None:
    shown = "layer 3  ▁▃█  50.0 12%\n"
    assert not differs(shown, "layer 3  ▁▄█  50.9 13%\n")
    for other in ("layer 3  ▁▆█  50.0 12%\n", "layer 3  ▁▃█  50.0 15%\n", "layer x  ▁▃█  50.0 12%\n", "layer 3\n"):
        assert differs(shown, other)
