"""Every planted fault is found by the check that is for it, and nothing is said of clean sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_cases import CLEAN, PLANTED, sentence

import pellucid
from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.cli.main import run as command
from pellucid.designs import design
from pellucid.doctor import ours
from pellucid.doctor.checks import all_checks
from pellucid.doctor.examine import examine
from pellucid.doctor.ours import subject_of
from pellucid.errors import DataError
from pellucid.train import derive, loop
from pellucid.train.precision import Peak


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found_by_its_check(name: str) -> None:
    check, make = PLANTED[name]
    report = examine(make())
    assert check in report.names(), [finding.problem for finding in report.findings]
    (finding,) = (each for each in report.findings if each.check == check)
    assert finding.problem and finding.remedy


@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_said_of_a_clean_set(name: str) -> None:
    report = examine(CLEAN[name]())
    assert report.ok, [(finding.check, finding.problem) for finding in report.findings]
    assert len(report.asked) > 5, "control: it was looked at"


def test_every_check_has_a_planted_fault() -> None:
    checks = set(all_checks())
    assert {check for check, _ in PLANTED.values()} | set(OURS) == checks


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known without measuring it."""
    for module in (derive, loop):
        monkeypatch.setattr(module, "measure_peak", lambda *_: Peak(1e7, 5e6))


# --- ours ------------------------------------------------------------------------------------------------------------


class Given:
    """A feed that always gives one batch."""

    hash, tokens_per_step = "given", 1

    def __init__(self, batch: Batch):
        self.batch = batch

    def batches(self, step: int, micro_batches: int, world: Any) -> list[Batch]:
        return [self.batch]

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        return iter(())

    def score(self, sums: Any) -> dict[str, float]:
        return {}


def rows_of_documents() -> Batch:
    """Rows of two documents, as packing makes them."""
    ids = torch.randint(5, 64, (16, 33), generator=torch.Generator().manual_seed(0))
    seg = (torch.arange(32) >= 20).long().expand(16, 32)
    labels = ids[:, 1:].clone()
    labels[:, 19] = IGNORE
    return Batch(ids[:, :-1], Tokens.packed(seg), labels)


def unshifted(batch: Batch) -> Batch:
    return replace(batch, labels=batch.ids)


def twice(batch: Batch) -> Batch:
    return replace(batch, labels=torch.nn.functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORE))


def padded_and_scored(batch: Batch) -> Batch:
    pos = batch.tokens.pos.clone()
    pos[:, 28:] = -1
    return replace(batch, tokens=replace(batch.tokens, pos=pos))


def strange_ids(batch: Batch) -> Batch:
    return replace(batch, ids=batch.ids.index_fill(1, torch.tensor([3]), 64))


# the check, how a batch becomes wrong, and what is said
OURS: dict[str, tuple[Callable[[Batch], Batch], str]] = {
    "shift": (unshifted, "shift: labels are shifted never"),
    "padding-scored": (padded_and_scored, "padding-scored: 64 of 64 places"),
    "unknown-ids": (strange_ids, "has the id 64"),
    "nothing-scored": (
        lambda batch: replace(batch, labels=torch.full_like(batch.labels, IGNORE)),
        "no batches with labels",
    ),
    "labels": (
        lambda batch: replace(batch, labels=batch.labels.masked_fill(batch.labels == IGNORE, -1)),
        "labels: 16 of 512 labels .3.1%. are none of 64 tokens, such as -1",
    ),
    "same-rows": (
        lambda batch: replace(batch, ids=batch.ids[:1].expand(16, -1), labels=batch.labels[:1].expand(16, -1)),
        "same-rows: 16 rows are 1 different",
    ),
}


def small() -> Any:
    return pellucid.build(design("modern")(64, 32, 2, 32, 8), seed=0)


@pytest.mark.parametrize("check", OURS)
def test_fault_in_a_feed_of_ones_own_is_refused_before_training(check: str, tmp_path: Path) -> None:
    change, says = OURS[check]
    feed = Given(change(rows_of_documents()))
    known = subject_of(feed, small().spec, None)
    assert check in {finding.check for finding in examine(known).refused}
    with pytest.raises(DataError, match=says):
        pellucid.train(feed, tmp_path / "run", model=small().spec, steps=1)
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_labels_of_a_feed_shifted_twice_are_refused() -> None:
    report = pellucid.doctor(Given(twice(rows_of_documents())), small())
    with pytest.raises(DataError, match="shifted twice"):
        report.require()


def test_nothing_is_said_of_a_feed_and_a_model_of_ours() -> None:
    report = pellucid.doctor(Given(rows_of_documents()), small())
    assert report.ok and {"crosstalk", "accumulation", "shift", "frozen"} <= set(report.asked)


def test_documents_that_a_mask_of_ours_lets_see_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control for crosstalk: where segments are forgotten, it is told."""
    batch = rows_of_documents()
    monkeypatch.setattr(ours, "batch_of", lambda rows, device: replace(batch, tokens=Tokens.plain(16, 32)))
    assert pellucid.doctor(Given(batch), small(), only=["crosstalk"]).names() == {"crosstalk"}


SMALL: dict[str, Any] = {"depth": 1, "d_model": 16, "context": 16, "batch_size": 4, "vocab_size": 300}


def book(path: Path, different: int = 60) -> str:
    path.write_text("\n<|endoftext|>\n".join(sentence(i % different, 40) for i in range(60)))
    return str(path)


@pytest.mark.usefixtures("known_machine")
def test_command_shows_rows_of_a_run_and_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    pellucid.train(book(tmp_path / "book.txt"), run, steps=2, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    asked = ["shift", "crosstalk", "loss-at-start", "end-never", "accumulation"]
    assert command(["doctor", str(run), "--only", *asked]) == 0
    said = capsys.readouterr().out
    assert "row 2" in said and "[[" in said and "5 checks found nothing, 0 warn, 0 refuse" in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before, "nothing is written"


def test_command_writes_findings_about_texts_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["doctor", book(tmp_path / "book.txt", different=5), "--only", "duplicates", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["check"], found["severity"]) == ("duplicates", "warn") and "55 of 60 texts" in found["problem"]
    assert command(["doctor", "book.txt", "--only", "duplicate"]) == 2
    assert "duplicates" in capsys.readouterr().err
    assert command(["doctor", "--list"]) == 0 and "loss-at-start" in capsys.readouterr().out


@pytest.mark.usefixtures("known_machine")
def test_rate_that_diverges_in_twenty_steps_is_refused(tmp_path: Path) -> None:
    text = book(tmp_path / "book.txt")
    for rate, found in ((0.01, set[str]()), (50.0, {"rate"})):
        report = pellucid.doctor(text, only=["rate"], learning_rate=rate, optimizer="adamw", steps=2, **SMALL)
        assert report.names() == found
    assert report.exit_code == 1


@pytest.mark.usefixtures("known_machine")
def test_run_that_is_refused_can_be_had_without_the_doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise DataError("shift: labels are shifted twice", "shift in one place")

    monkeypatch.setattr("pellucid.train.run.look_first", refuse)
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    asked = ["train", book(tmp_path / "book.txt"), "--out", str(tmp_path / "run"), "--steps", "1", *sizes]
    assert command(asked) == 1 and "shifted twice" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert command([*asked, "--no-doctor"]) == 0
