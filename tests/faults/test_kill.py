"""The short form of kill_and_resume.py, and its control."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_and_resume import digest, run_to_end, torture


@pytest.mark.timeout(300)
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    report = torture(tmp_path, kills=3)
    assert report.kills == 3
    assert report.in_checkpoint >= 1, "no kill fell inside a checkpoint write"
    assert report.differences == []


@pytest.mark.timeout(300)
def test_the_comparison_sees_another_length(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six\n" * 2000)
    run_to_end(text, tmp_path / "a", 6)
    run_to_end(text, tmp_path / "b", 7)
    assert digest(tmp_path / "a" / "model.safetensors") != digest(tmp_path / "b" / "model.safetensors")
