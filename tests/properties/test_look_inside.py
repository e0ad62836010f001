"""What a look shows of patching, traces and habits is what the measures say, in the terminal and on the page."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from planted_models import INDUCTION, PREVIOUS, with_induction
from rich.console import Console
from strategies import EXAMPLE, as_encoder, build

from pellucid.cli.look import main
from pellucid.errors import UsageError
from pellucid.interpret.patching import pair, patch
from pellucid.look.look import Look, look
from pellucid.look.page.html import to_html
from pellucid.look.terminal import show

CLEAN, CORRUPT = [0, 3, 8, 5, 2, 3], [0, 3, 9, 5, 2, 3]


@pytest.fixture(scope="module")
def seen() -> Look:
    return look(with_induction(), CLEAN, patch=(CLEAN, CORRUPT), heads=True)


def test_panels_hold_the_measures(seen: Look) -> None:
    states, heads, habits = seen.panels
    model = with_induction()
    prompts = pair(model, CLEAN, CORRUPT)
    np.testing.assert_allclose(states.values, patch(model, prompts, 8, 9).recovered[..., 0], atol=1e-6)
    assert states.rows == ("layer 0", "layer 1") and states.columns == tuple(f"#{token}" for token in CORRUPT)
    assert "#8 − #9" in states.note
    assert heads.values[INDUCTION] > 0.95 and abs(heads.values[PREVIOUS]) < 1e-3
    assert habits.ranked and habits.rows[0] in ("0.1", "1.2")
    best = dict(zip(habits.rows, habits.values, strict=True))
    assert best["1.2"][0] > 0.9 and best["0.1"][1] > 0.9


@pytest.mark.parametrize("width", [50, 80, 160])
def test_the_terminal_shows_panels_within_its_width(seen: Look, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    show(seen, console, only=("inside",))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split("  ")[0] for line in lines if line.startswith(("Patching", "Habits"))] == [
        "Patching: states", "Patching: heads", "Habits of heads",
    ]  # fmt: skip
    deep = next(line for line in lines if line.startswith("layer 1") and "head" not in line)
    assert deep.split()[2:] == ["0%", "0%", "100%", "0%", "0%", "0%"]  # where 8 stands, behind the earlier 3


def test_the_page_holds_panels_and_draws_them(seen: Look) -> None:
    page = to_html(seen)
    told: Any = json.loads(re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)[0])
    assert [panel["title"] for panel in told["panels"]] == [panel.title for panel in seen.panels]
    assert told["panels"][1]["values"][1][2] == pytest.approx(1, abs=0.01)
    assert "function measuredPanels()" in page and seen.to_json()["panels"][0]["rows"] == ["layer 0", "layer 1"]
    assert look(with_induction(), CLEAN).panels == ()


def test_looks_that_have_nothing_to_compare_are_refused() -> None:
    model = with_induction()
    for options, message in (
        ({"patch": (CLEAN, CLEAN)}, "both prompts are followed by #8"),
        ({"patch": (CLEAN, CLEAN[:-1])}, "the clean prompt has 6 tokens, the corrupt one 5"),
        ({"trace": "France"}, "has no tokenizer"),
    ):
        with pytest.raises(UsageError, match=message):
            look(model, CLEAN, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="this model is an encoder"):
        look(build(as_encoder(EXAMPLE)), CLEAN, heads=True)


def test_a_command_without_anything_to_read_is_refused() -> None:
    with pytest.raises(UsageError, match="no text to read"):
        main(["nowhere"])


def test_control_a_panel_of_another_row_is_seen(seen: Look) -> None:
    assert not np.allclose(seen.panels[1].values, seen.panels[1].values[::-1])
