"""Mixtures of texts: shares, caps and order are functions of the row's number; copies and leaks are counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.data.corpus import Document
from pellucid.data.duplicates import leak, without_copies
from pellucid.data.feed import PackedText
from pellucid.data.mixture import Deal, MixedRows, Mixture
from pellucid.errors import DataError, UsageError
from pellucid.text.tokenizer import Tokenizer
from pellucid.train import derive, loop
from pellucid.train.config import Run, TrainOptions
from pellucid.train.precision import Peak
from pellucid.train.prepare import prepare
from pellucid.train.report import Progress, Reporter
from pellucid.train.run import train
from pellucid.train.world import ALONE, World

TINY: dict[str, Any] = {
    "depth": 1, "d_model": 16, "head_dim": 8, "vocab_size": 300, "context": 32, "batch_size": 4, "precision": "fp32",
    "steps": 6, "validate_every": 2, "checkpoint_every": 2, "validation": 0.1,
}  # fmt: skip


def tiny(**more: Any) -> dict[str, Any]:
    return TINY | more


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    for module in (derive, loop):
        monkeypatch.setattr(module, "measure_peak", lambda *_: Peak(2e11, 1e11))


def words(begin: str, n: int, seed: int) -> str:
    """Text whose every line says where it is from."""
    rng = np.random.default_rng(seed)
    return "".join(f"{begin} {' '.join(map(str, rng.integers(99, size=8)))}\n" for _ in range(n))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A long text and a short one, of several documents each."""
    folder = tmp_path_factory.mktemp("texts")
    for name, n in (("apple", 12), ("berry", 4)):
        documents = [words(name, 40, seed) for seed in range(n)]
        (folder / f"{name}.txt").write_text("<|endoftext|>\n".join(documents), encoding="utf-8")
    return str(folder / "apple.txt"), str(folder / "berry.txt")


# --- dealing


@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=5),
    st.lists(st.integers(1, 40), min_size=5, max_size=5),
    st.booleans(),
)
@settings(max_examples=examples(25), deadline=None)
def test_dealing_is_its_own_count_and_keeps_shares_and_caps(
    weights: list[float], most: list[int], capped: bool
) -> None:
    shares = [weight / sum(weights) for weight in weights]
    caps = most[: len(shares)] if capped else None
    deal, had = Deal(shares, caps), [0] * len(shares)
    for number in range(150):
        assert deal.counts(number) == tuple(had)
        pile, place = deal.place(number)
        assert place == had[pile]
        had[pile] += 1
        if caps is None:
            assert all(abs(h - (number + 1) * s) <= len(shares) for h, s in zip(had, shares, strict=True))
        elif number < deal.round:
            assert all(h <= cap for h, cap in zip(had, caps, strict=True))
    if caps is not None:
        assert deal.round == sum(caps) and deal.counts(deal.round) == tuple(caps), "all is read before anything again"


def test_temperature_flattens_weights() -> None:
    def shares(temperature: float) -> tuple[float, ...]:
        return Mixture(("a", "b"), (), (90.0, 10.0), temperature).shares

    assert shares(1.0) == pytest.approx((0.9, 0.1))
    assert shares(2.0) == pytest.approx((0.75, 0.25)), "√90 : √10 is 3 : 1"
    assert shares(1e6) == pytest.approx((0.5, 0.5), abs=1e-5)
    assert Mixture(("a", "b"), (), (1e300, 1e-300), 0.01).shares == (1.0, 0.0), "no overflow"


# --- rows


def mixture(texts: Sequence[str], folder: Path, **asked: Any) -> tuple[Tokenizer, Mixture]:
    prepared = prepare(list(texts), TrainOptions(vocab_size=300, **asked), folder, Reporter())
    assert isinstance(prepared.training, Mixture)
    return prepared.tokenizer, prepared.training


def origins(tokenizer: Tokenizer, feed: PackedText, steps: int) -> list[str]:
    """The text that each row of the first steps is from."""
    rows = [row for step in range(steps) for batch in feed.batches(step, 1, ALONE) for row in batch.ids.tolist()]
    said = [tokenizer.decode(row) for row in rows]
    assert all(("apple" in text) != ("berry" in text) for text in said), "no row is of two texts"
    return ["apple" if "apple" in text else "berry" for text in said]


def test_rows_are_of_the_texts_in_the_shares_asked_for(texts: tuple[str, str], tmp_path: Path) -> None:
    tokenizer, mixed = mixture(texts, tmp_path, mix=(1.0, 3.0))
    feed = PackedText(mixed, None, context=64, batch_size=8, seed=5)
    found = origins(tokenizer, feed, 10)
    assert found.count("berry") == 60, "three quarters, to the row"
    assert all(4 <= found[i : i + 8].count("berry") <= 8 for i in range(0, 80, 8)), "in each step, too"
    read = feed.read(10)
    assert [one.rows for one in read] == [20, 60] and [one.name for one in read] == list(texts)
    assert read[1].tokens == 60 * 64 and read[1].epochs > 1 > read[0].epochs
    _, by_size = mixture(texts, tmp_path / "size", mix_temperature=1.5)
    assert 0.5 < by_size.shares[0] < 12 / 16, "without weights sizes decide, here flattened"


def test_a_capped_text_gives_way(texts: tuple[str, str], tmp_path: Path) -> None:
    tokenizer, mixed = mixture(texts, tmp_path, mix=(1.0, 3.0), mix_epochs=1.0)
    feed = PackedText(mixed, None, context=64, batch_size=8, seed=5)
    assert isinstance(feed.rows, MixedRows)
    limit = feed.rows.sources[1].rows
    found = origins(tokenizer, feed, feed.rows.rows // 8)
    assert found.count("berry") == limit and "berry" not in found[-8:]
    assert feed.read(feed.rows.rows // 8)[1].epochs == 1.0


def test_a_mixed_step_is_the_same_for_any_number_of_processes(texts: tuple[str, str], tmp_path: Path) -> None:
    _, mixed = mixture(texts, tmp_path, mix=(2.0, 1.0))
    feed = PackedText(mixed, None, context=32, batch_size=6, seed=5)
    for step in (0, 3, 50):
        (whole,) = feed.batches(step, 1, ALONE)
        parts = [batch for rank in range(2) for batch in feed.batches(step, 1, World(rank=rank, size=2))]
        assert torch.equal(whole.ids, torch.cat([part.ids for part in parts]))
    assert mixed.hash != mixture(texts, tmp_path / "other", mix=(1.0, 1.0))[1].hash


# --- runs


class PowerCut(Exception):
    pass


class CutAt(Reporter):
    def progress(self, state: Progress) -> None:
        if state.step == 5:
            raise PowerCut


@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_a_mixed_run_resumes_bit_for_bit_and_says_what_it_read(
    texts: tuple[str, str], tmp_path: Path, objective: str
) -> None:
    asked = tiny(objective=objective, mix=(1.0, 2.0))
    whole = train(list(texts), tmp_path / "whole", **asked)
    with pytest.raises(PowerCut):
        train(list(texts), tmp_path / "cut", reporter=CutAt(), **asked)
    assert train(list(texts), tmp_path / "cut", **asked).metrics == whole.metrics
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    said = json.loads((tmp_path / "cut" / "mixture.json").read_text())
    assert said["steps"] == 6 and [one["rows"] for one in said["texts"]] == [8, 16]
    run = Run.load(tmp_path / "whole" / "run.json")
    assert {"share of apple.txt", "share of berry.txt"} <= {reason.field for reason in run.reasons}
    plain = train(list(texts), tmp_path / "plain", **tiny(objective=objective))
    assert plain.metrics != whole.metrics and not (tmp_path / "plain" / "mixture.json").exists(), "control"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mix": (1.0,)}, "1 weights for 2 texts"),
        ({"mix": (1.0, 0.0)}, "berry.txt has the weight 0"),
        ({"mix": (1.0, float("inf"))}, "berry.txt has the weight inf"),
        ({"mix": (1.0, 2.0), "held_out": ("apple.txt",)}, "a mixture holds out a share of each"),
        ({"mix_temperature": 0.0}, "mix_temperature = 0"),
        ({"mix": (1.0, 1.0), "objective": "seq2seq"}, "--mix decides nothing for the objective seq2seq"),
        ({"mix": (1.0, 1.0), "context": 4096}, "berry.txt: the text has"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(
    texts: tuple[str, str], tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        train(list(texts), tmp_path / "out", **tiny(**asked))
    assert not (tmp_path / "out").exists()


# --- copies and leaks


def test_copies_are_left_out_and_counted(texts: tuple[str, str], tmp_path: Path) -> None:
    """Also where they stand in two texts of a mixture, which would be a leak: one held out, the other trained on."""
    copied = tmp_path / "copied.txt"
    new = words("cherry", 60, 1)
    copied.write_text(
        "<|endoftext|>\n".join([words("apple", 40, 3), new, new, words("apple", 40, 4)]), encoding="utf-8"
    )
    heard: list[str] = []

    class Listening(Reporter):
        def message(self, text: str) -> None:
            heard.append(text)

    names = [texts[0], str(copied)]
    found = prepare(names, TrainOptions(vocab_size=300, mix=(1.0, 1.0)), tmp_path / "run", Listening())
    assert isinstance(found.training, Mixture)
    assert any("3 of 16 documents are copies, 3 exactly" in line for line in heard)
    assert found.training.stores[1].n_bytes <= len(new), "one of two equal documents, less what is held out"
    plain = prepare(names, TrainOptions(vocab_size=300), tmp_path / "plain", Reporter())
    assert plain.training.n_tokens > found.training.n_tokens, "control"
    with pytest.raises(DataError, match="text 2 of the mixture holds only copies"):
        prepare([texts[0], texts[0]], TrainOptions(vocab_size=300, mix=(1.0, 1.0)), tmp_path / "twice", Reporter())


def test_near_copies_are_found_by_minhash() -> None:
    text = words("apple", 60, 1)
    changed, half = text.replace("apple", "pear", 2), text[: len(text) // 2] + words("berry", 30, 2)
    documents = [Document(str(i), each) for i, each in enumerate([text, changed, half, text])]
    kept = without_copies(documents, near=True)
    assert (list(kept.numbers), kept.equal, kept.alike) == ([0, 2], 1, 1), "half a text is no copy"
    assert list(without_copies(documents).numbers) == [0, 1, 2]


def test_near_copies_without_their_library_are_refused(
    texts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(UsageError, match=r"pellucid\[near\]"):
        train(list(texts), tmp_path / "out", **tiny(deduplicate="near"))


def test_held_out_lines_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    lines = [f"line number {n} is long enough to be no chance at all" for n in range(40)]
    held = Document("held", "\n".join(lines[:10]) + "\nshort\n")
    assert leak([Document("all", "\n".join(lines[8:]))], [held]) == (10, 2)
    assert leak([Document("other", "\n".join(lines[10:]))], [held]) == (10, 0), "control"
    assert leak([], [held]) == (10, 0) and leak([held], []) == (0, 0)
    heard: list[str] = []

    class Listening(Reporter):
        def message(self, text: str) -> None:
            heard.append(text)

    (tmp_path / "twice.txt").write_text("\n".join(lines * 20), encoding="utf-8")
    prepare([str(tmp_path / "twice.txt")], TrainOptions(vocab_size=300), tmp_path / "run", Listening())
    assert any("held-out lines" in line and "--deduplicate near" in line for line in heard)
