"""Pairs from files of every form, batches counted in tokens, the 2017 recipe cooked, and translations with a score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pellucid.batch import IGNORE
from pellucid.cli.main import run
from pellucid.cli.train import cooked, of_pairs
from pellucid.data.groups import Groups
from pellucid.data.pair_files import Pair, read_pairs, split_pairs
from pellucid.data.pairs import PairedText, encode_pairs
from pellucid.designs import attention_is_all_you_need, design
from pellucid.errors import DataError, UsageError
from pellucid.evaluate import translation
from pellucid.evaluate.translation import Translated, translate
from pellucid.nn.init import initialise
from pellucid.nn.models import build_model
from pellucid.recipes.attention_is_all_you_need import RECIPES
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.config import TrainOptions
from pellucid.train.derive import Numbers
from pellucid.train.feeds import PreparedPairs, prepare_for
from pellucid.train.report import Reporter
from pellucid.train.schedule import too_short
from pellucid.train.world import ALONE, World

PAIRS = [Pair(f"word {n} " * (n * n % 7) + "end", f"Wort {n}, und mehr " * (1 + n % 5) + ".") for n in range(120)]


def written(folder: Path, form: str) -> list[str]:
    """The pairs in a form; the names of the files."""
    if form == "tsv":
        texts = {"a.tsv": "".join(f"doc\t{a}\t{b}\n" for a, b in PAIRS)}
    elif form == "jsonl":
        texts = {"a.jsonl": "".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in PAIRS)}
    elif form == "data set":
        texts = {"a.jsonl": "".join(json.dumps({"translation": {"en": a, "de": b}}) + "\n" for a, b in PAIRS)}
    else:
        texts = {"a.en": "".join(f"{a}\n" for a, _ in PAIRS), "a.de": "".join(f"{b}\n" for _, b in PAIRS)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [str(folder / name) for name in texts]


@pytest.mark.parametrize("form", ["tsv", "jsonl", "data set", "two files"])
def test_pairs_of_every_form_are_the_same_pairs(form: str, tmp_path: Path) -> None:
    assert read_pairs(written(tmp_path, form)) == PAIRS


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.en": "one\ntwo\n", "a.de": "eins\n"}, r"a\.de ends before line 2, but .*a\.en goes on"),
        ({"a.jsonl": '{"source": "one"}\n'}, r"a\.jsonl line 1 holds no pair"),
        ({"a.jsonl": '{"source": "one", "target": 2}\n'}, "line 1 holds no pair"),
        ({"a.jsonl": '{"translation": {"en": "one"}}\n'}, "line 1 holds no pair"),
        ({"a.jsonl": "[1, 2]\n"}, "line 1 holds no pair"),
        ({"a.jsonl": "one\n"}, "line 1"),
        ({"a.en": "\n\n", "a.de": "\n\n"}, "holds no pair"),
        ({"a.tsv": "one\n"}, "line 1 has no tab"),
    ],
)
def test_files_without_pairs_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_pairs([str(tmp_path / name) for name in files])


def test_empty_sides_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\n\nthree\nfour\n", encoding="utf-8")
    (tmp_path / "a.de").write_text("eins\nzwei\n\nfour\n", encoding="utf-8")
    told = list[str]()
    found = read_pairs([str(tmp_path / "a.en"), str(tmp_path / "a.de")], told.append)
    assert found == [Pair("one", "eins"), Pair("four", "four")], "an empty line keeps its place"
    assert told == ["2 pairs with an empty side are left out", "1 of 2 pairs have the same text on both sides"]


# --- batches counted in tokens


def lengths(seed: int, pairs: int = 4000) -> np.ndarray:
    """Of sentences such as real ones have: median 12, some of 100; the two sides are alike in length."""
    rng = np.random.default_rng(seed)
    sources = np.clip(rng.lognormal(2.5, 0.7, pairs).astype(np.int64), 1, 120)
    return np.stack((sources, np.clip((sources * rng.normal(1.05, 0.15, pairs)).astype(np.int64), 1, 120)), 1)


@pytest.mark.parametrize("tokens", [50, 2000, 10**9])
def test_an_epoch_of_groups_reads_every_pair_once(tokens: int) -> None:
    found = lengths(0)
    groups = Groups(found, tokens, seed=1)
    for epoch in range(2):
        rows = [groups.rows(epoch * groups.count + i) for i in range(groups.count)]
        assert sorted(np.concatenate(rows).tolist()) == list(range(len(found))) and all(len(row) for row in rows)
        sizes = [int(found[row, 1].sum()) for row in rows]
        assert max(sizes) - min(sizes) <= 2 * int(found[:, 1].max())
    first, other = Groups(found, tokens, seed=1), Groups(found, tokens, seed=2)
    assert all(np.array_equal(groups.rows(step), first.rows(step)) for step in (0, 3, 5))
    assert groups.count == 1 or not all(np.array_equal(groups.rows(s), other.rows(s)) for s in range(3))


def test_groups_of_like_length_waste_little_on_padding() -> None:
    """Less than a tenth of the places; rows in a random order waste more than a third."""
    found = lengths(0)

    def waste(rows: list[np.ndarray]) -> float:
        places = sum(len(row) * int(found[row].max(0).sum()) for row in rows)
        return 1 - sum(int(found[row].sum()) for row in rows) / places

    groups = Groups(found, 1000, seed=0)
    order = np.random.default_rng(0).permutation(len(found))
    assert waste([groups.rows(i) for i in range(groups.count)]) < 0.1
    assert waste(np.array_split(order, groups.count)) > 1 / 3, "control"


def test_a_step_of_tokens_is_the_same_for_any_number_of_processes() -> None:
    tokenizer = Tokenizer.train([text for pair in PAIRS for text in pair], 300)
    data = encode_pairs(PAIRS, tokenizer)
    feed = PairedText(data, data, context=128, batch_size=4, seed=3, start_id=0, batch_tokens=200)
    assert 150 < feed.tokens_per_step < 260
    for step in (0, 7, 40):
        (whole,) = feed.batches(step, 1, ALONE)
        parts = [b for rank in range(2) for b in feed.batches(step, 1, World(rank=rank, size=2))]
        said = [row[row != IGNORE].tolist() for b in parts for row in b.labels]
        assert said == [row[row != IGNORE].tolist() for row in whole.labels]
        assert whole.ids.shape[1] == max(map(len, said)), "rows are as long as the longest of them"


# --- what follows from pairs, where nothing is asked for


def numbers_of(**asked: Any) -> Numbers:
    tokenizer = Tokenizer.train([text for pair in PAIRS for text in pair], 300)
    prepared = PreparedPairs(tokenizer, encode_pairs(PAIRS, tokenizer), None, ())
    asked = {"objective": "seq2seq", "depth": 2, "steps": 100, "precision": "fp32"} | asked
    return Numbers(TrainOptions(**asked), prepared)


def test_pairs_have_smoothed_labels_steps_in_tokens_and_a_context_of_their_lengths() -> None:
    numbers = numbers_of()
    assert (numbers.smoothing, numbers.batch_tokens) == (0.1, 2048)
    longer = encode_pairs(PAIRS, numbers.prepared.tokenizer).lengths.max(1)
    assert numbers.context / 2 < np.quantile(longer, 0.99) <= numbers.context
    assert (longer <= numbers.context).mean() >= 0.99, "hardly a pair is left out"
    assert numbers_of(batch_size=4).batch_tokens is None, "rows, where rows are asked for"
    assert numbers_of(smoothing=0.0).smoothing == 0.0
    assert {"smoothing", "batch_tokens", "context"} <= {reason.field for reason in numbers.reasons}


@pytest.mark.parametrize("batch_tokens", [None, 200])
def test_padding_is_the_share_of_places_without_a_token(batch_tokens: int | None) -> None:
    tokenizer = Tokenizer.train([text for pair in PAIRS for text in pair], 300)
    data = encode_pairs(PAIRS, tokenizer)
    how: Any = {"context": 128, "batch_size": 4, "seed": 3, "start_id": 0, "batch_tokens": batch_tokens}
    feed = PairedText(data, data, **how)
    steps = len(PAIRS) // 4 if batch_tokens is None else round(data.n_tokens / batch_tokens)
    sides = [
        side.pos
        for i in range(steps)
        for b in feed.batches(i, 1, ALONE)
        if b.source
        for side in (b.tokens, b.source.tokens)
    ]
    counted = sum(int((pos < 0).sum()) for pos in sides) / sum(pos.numel() for pos in sides)
    assert feed.padding() == pytest.approx(counted)
    least, most = (0.0, 0.2) if batch_tokens else (0.3, 1.0)  # rows in a random order are the control
    assert least < feed.padding() < most, "these two sides differ in length more than texts do"


def test_held_out_batches_are_all_pairs_in_little_padding() -> None:
    tokenizer = Tokenizer.train([text for pair in PAIRS for text in pair], 300)
    data = encode_pairs(PAIRS, tokenizer)
    feed = PairedText(data, data, context=128, batch_size=8, seed=3, start_id=0)
    batches = list(feed.evaluation())
    assert sum(int((b.labels != IGNORE).sum()) for b in batches) == data.n_tokens
    assert sum(b.n_bytes for b in batches) == int(data.n_bytes.sum())
    first = sum(int((b.labels != IGNORE).sum()) for b in batches[: len(batches) // 2])
    assert 0.3 < first / data.n_tokens < 0.7, "half of them are of all lengths"


def test_held_out_pairs_are_kept_beside_the_model(tmp_path: Path) -> None:
    (name,) = written(tmp_path, "tsv")
    asked = TrainOptions(objective="seq2seq", vocab_size=300, validation=0.2)
    prepared = prepare_for("seq2seq", (name,), asked, tmp_path / "run", Reporter())
    kept = read_pairs([str(tmp_path / "run" / "held-out.jsonl")])
    training, held = split_pairs(PAIRS, 0.2, 0)
    assert kept == held and not {pair.source for pair in kept} & {pair.source for pair in training}
    assert isinstance(prepared, PreparedPairs) and len(prepared.training) == len(training)


def test_a_run_that_ends_within_its_warm_up_says_so() -> None:
    assert "37 steps of 4,000" in too_short(37, 4000) and "1% of its peak" in too_short(37, 4000)
    assert "--warmup 1" in too_short(2, 40)
    assert too_short(4001, 4000) == too_short(10, 0) == ""


# --- the recipe


def test_the_cooked_recipe_has_every_number_of_the_paper() -> None:
    asked = cooked("attention_is_all_you_need", TrainOptions())
    spec = attention_is_all_you_need("base")
    assert asked.design is not None and asked.depth is not None and asked.d_model is not None
    assert design(asked.design)(asked.vocab_size, spec.context, asked.depth, asked.d_model, asked.head_dim) == spec
    said = {"objective": "seq2seq", "steps": 100_000, "warmup": 4000, "beta1": 0.9, "beta2": 0.98, "eps": 1e-9}
    said |= {"smoothing": 0.1, "dropout": 0.1, "optimizer": "adamw", "schedule": "inverse_sqrt", "clip": None}
    said |= {"batch_tokens": 25_000, "vocab_size": 37_000, "weight_decay": 0.0, "init": "xavier", "average": 5}
    assert {name: getattr(asked, name) for name in said} == said
    assert asked.learning_rate == pytest.approx(RECIPES["base"].learning_rate(4000))
    big = cooked("attention_is_all_you_need_big", TrainOptions())
    assert (big.d_model, big.dropout, big.steps, big.average) == (1024, 0.3, 300_000, 20)


def test_the_cooked_recipe_yields_to_what_is_asked() -> None:
    asked = cooked("attention_is_all_you_need", TrainOptions(minutes=2.0, depth=3, warmup=100, smoothing=0.2))
    assert (asked.steps, asked.minutes, asked.depth, asked.d_model, asked.smoothing) == (None, 2.0, 3, 128, 0.2)
    assert asked.learning_rate == pytest.approx((128 * 4000) ** -0.5) and asked.beta2 == 0.98
    longer = cooked("attention_is_all_you_need", TrainOptions(depth=3, warmup=9000))
    assert longer.learning_rate == pytest.approx((128 * 9000) ** -0.5), "a short warm-up alone is bounded"
    with pytest.raises(UsageError, match=r"(?s)no recipe 'atention.*attention_is_all_you_need"):
        cooked("atention_is_all_you_need", TrainOptions())


def test_pairs_on_the_command_line_mean_the_objective_of_pairs() -> None:
    assert of_pairs((), ("a.tsv",), TrainOptions()) == (("a.tsv",), TrainOptions(objective="seq2seq"))
    for texts, options, message in (
        (("book.txt",), TrainOptions(), "both texts"),
        ((), TrainOptions(objective="mlm"), "does not go with --objective mlm"),
    ):
        with pytest.raises(UsageError, match=message):
            of_pairs(texts, ("a.tsv",), options)


# --- translations


@pytest.fixture(scope="module")
def translator() -> Any:
    tokenizer = Tokenizer.train([text for pair in PAIRS for text in pair], 300)
    model = initialise(build_model(design("transformer_2017")(300, 64, 1, 16, 8)), "xavier", 0).eval()
    model.tokenizer = tokenizer
    return model


def test_translations_stand_beside_their_sources_whatever_the_batch(translator: Any, tmp_path: Path) -> None:
    (name,) = written(tmp_path, "tsv")
    with torch.no_grad():
        one, many = (translate(translator, name, beams=2, at_once=n, limit=6).written for n in (1, 4))
    assert list(one) == list(many) and len(one) == 6


def test_scores_come_with_their_signatures() -> None:
    pytest.importorskip("sacrebleu.metrics", exc_type=ImportError)
    right = [pair.target for pair in PAIRS]
    bleu, chrf = Translated(PAIRS, right).scores()
    assert (bleu.name, chrf.name) == ("BLEU", "chrF2")
    assert [bleu.value, chrf.value] == pytest.approx([100.0, 100.0])
    assert "tok:13a" in bleu.signature and "version:" in chrf.signature
    worse = Translated(PAIRS, right[::-1]).scores()
    assert worse[0].value < 60 and worse[1].value < 90, "control"


def test_translation_without_its_library_or_model_is_refused_first(
    translator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = written(tmp_path, "tsv")
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics.bleu", None)
    assert run(["evaluate", "translation", str(tmp_path / "nothing"), name]) != 0
    said = capsys.readouterr()
    assert "sacrebleu cannot be used" in said.err + said.out and "pellucid[translation]" in said.err + said.out
    decoder = build_model(design("modern")(300, 64, 1, 16, 8))
    with pytest.raises(UsageError, match="a Decoder does not translate"):
        translate(decoder, name)
    with pytest.raises(UsageError, match="beams = 0 cannot be used"):
        translation.translate(translator, name, beams=0)
