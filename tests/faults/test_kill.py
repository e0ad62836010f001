"""The short form of kill_and_resume.py, and its control."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_and_resume import Run, digest, run_to_end, torture, torture_minutes


@pytest.mark.timeout(300)
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    report = torture(tmp_path, kills=2, steps=15)
    assert report.kills == 2
    assert report.in_checkpoint >= 1, "no kill fell inside a checkpoint write"
    assert report.differences == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_run_of_minutes_equals_its_repetition(tmp_path: Path) -> None:
    report = torture_minutes(tmp_path, kills=3, minutes=1.0)
    assert report.kills == 3
    assert report.differences == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_comparison_sees_another_length(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six\n" * 2000)
    run_to_end(Run(text, 6), tmp_path / "a")
    run_to_end(Run(text, 7), tmp_path / "b")
    assert digest(tmp_path / "a" / "model.safetensors") != digest(tmp_path / "b" / "model.safetensors")
