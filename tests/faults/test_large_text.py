"""A text is read, split and encoded in bounded memory (memory_of_texts.py is the long form: 2 GB within 1 GB)."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_of_texts import peak_of, train, write_text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_peak_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Both texts are longer than what the vocabulary is learned from; the second is 80 MB longer than the first."""
    peaks: list[float] = []
    for megabytes in (60, 140):
        text = tmp_path / f"{megabytes}.txt"
        write_text(text, megabytes)
        code, peak, said = train(text, tmp_path / f"out{megabytes}", vocab_size=512)
        assert code == 0, said
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 40


def test_control_peak_is_of_the_measured_process_alone() -> None:
    """What this process holds is not counted: a process that only starts needs little."""
    held = b"x" * 300_000_000
    code, idle, said = peak_of(["--version"])
    assert code == 0, said
    assert 5 < idle < 100 < len(held)
