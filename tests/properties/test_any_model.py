"""The trainer takes any model, feed, objective and world: whole runs of each kind, stopped and resumed, bit for bit."""

from __future__ import annotations

import hashlib
import inspect
import json
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from some import some_of
from torch import Tensor

import pellucid
from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.checkpoints.native import load_model, which_weights
from pellucid.checkpoints.tensors import load_tensors
from pellucid.data.feed import PackedText, Share
from pellucid.data.masked import MaskedText
from pellucid.data.pair_files import Pair, read_pairs, split_pairs
from pellucid.data.pairs import PairedText, encode_pairs
from pellucid.data.sources import documents
from pellucid.data.store import TokenStore, build_store
from pellucid.designs import design
from pellucid.errors import DataError, RunError, UsageError
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder, Encoder, EncoderDecoder, build_model
from pellucid.spec import ModelSpec
from pellucid.surgery.holding import names, switch
from pellucid.text.tokenizer import Tokenizer
from pellucid.train import derive, loop
from pellucid.train.config import Run
from pellucid.train.feeds import open_feed, prepare_for
from pellucid.train.objectives import nll, objective_for
from pellucid.train.parts import ObjectiveSpec
from pellucid.train.precision import Peak
from pellucid.train.report import Progress, Reporter
from pellucid.train.run import train
from pellucid.train.schedule import factor
from pellucid.train.step import accumulate, step
from pellucid.train.trainer import Trainer
from pellucid.train.validate import held_out_sums
from pellucid.train.world import ALONE, World

TEXT = inspect.getsource(textwrap)
SIZES: dict[str, Any] = {"depth": 1, "d_model": 16, "head_dim": 8, "vocab_size": 280}
ROWS: dict[str, Any] = {"context": 32, "batch_size": 4, "micro_batches": 2, "precision": "fp32", "steps": 6}
KEPT: dict[str, Any] = {"dropout": 0.1, "validate_every": 2, "checkpoint_every": 2, "validation": 0.1}
TINY = SIZES | ROWS | KEPT


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known without measuring it, and whose power does not fail."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    for module in (derive, loop):
        monkeypatch.setattr(module, "measure_peak", lambda *_: Peak(2e11, 1e11))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and pairs of its lines."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    lines = [line.strip() for line in TEXT.splitlines() if 8 < len(line.strip()) < 50]
    (folder / "pairs.tsv").write_text("".join(f"from\t{line}\t{line[::-1]}\n" for line in lines), encoding="utf-8")
    return folder


class PowerCut(Exception):
    pass


class CutAt(Reporter):
    """The power goes after this step, before anything of it is saved."""

    def __init__(self, step: int):
        self.step = step

    def progress(self, state: Progress) -> None:
        if state.step == self.step:
            raise PowerCut


def digests(out: Path) -> dict[str, str]:
    names = ("model.safetensors", "metrics.jsonl", "spec.json", "tokenizer.json")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


KINDS: dict[str, tuple[str, type, dict[str, Any]]] = {
    "decoder": ("text.txt", Decoder, {}),
    "encoder": ("text.txt", Encoder, {"objective": "mlm"}),
    "pairs": ("pairs.tsv", EncoderDecoder, {"objective": "seq2seq", "smoothing": 0.1, "schedule": "inverse_sqrt"}),
    "frozen_embeddings": ("text.txt", Decoder, {"freeze": ("embed.*",)}),
    "whole_words": ("text.txt", Encoder, {"objective": "mlm", "whole_words": True}),
    "spans": ("text.txt", EncoderDecoder, {"objective": "spans", "vocab_size": 380}),
    "denoise": ("text.txt", EncoderDecoder, {"objective": "denoise"}),
    "ul2": ("text.txt", EncoderDecoder, {"objective": "ul2", "vocab_size": 380}),
    "prefix": ("text.txt", Decoder, {"objective": "prefix"}),
    "fim": ("text.txt", Decoder, {"objective": "fim"}),
    "rtd": ("text.txt", Encoder, {"objective": "rtd"}),
    "tokens_ahead": ("text.txt", Decoder, {"tokens_ahead": 3}),
}


QUICK = ("decoder", "encoder", "pairs", "frozen_embeddings", "spans", "fim")  # each feed once


@pytest.mark.parametrize("kind", some_of(KINDS, QUICK))
def test_a_run_of_any_kind_resumes_bit_for_bit(folder: Path, tmp_path: Path, kind: str) -> None:
    """The power goes one step after a checkpoint. On the old code a run with frozen weights could not be resumed, and
    only decoders could be trained."""
    name, model_class, more = KINDS[kind]
    whole = train(folder / name, tmp_path / "whole", **TINY | more)
    assert isinstance(whole.model, model_class) and whole.metrics and whole.model.tokenizer is not None
    with pytest.raises(PowerCut):
        train(folder / name, tmp_path / "broken", reporter=CutAt(5), **TINY | more)
    assert sorted(p.name for p in (tmp_path / "broken" / "checkpoints").iterdir())[-1] == "step-00000004"
    resumed = train(folder / name, tmp_path / "broken", **TINY | more)
    assert resumed.metrics == whole.metrics
    assert digests(tmp_path / "whole") == digests(tmp_path / "broken")
    measured = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in measured if set(line) & set(whole.metrics)] == [2, 4]
    assert {name.removeprefix("final_") for name in measured[-1] if name != "step"} == set(whole.metrics)
    assert train(folder / name, tmp_path / "whole", **TINY | more).metrics == whole.metrics, "nothing is left to do"


def test_an_aid_is_measured_without_dropout(folder: Path, tmp_path: Path) -> None:
    """Else a run that is resumed for its last measure alone would give another number."""
    train(folder / "text.txt", tmp_path / "out", objective="rtd", **TINY)
    run = Run.load(tmp_path / "out" / "run.json")
    prepared = prepare_for("rtd", run.texts, run.options, tmp_path / "out", Reporter(), resumed=True)
    trainer = Trainer(run, open_feed(run, prepared))
    assert trainer.validate() == trainer.validate()
    assert trainer.aid is not None and trainer.aid.training, "it learns on with dropout"


def test_the_mean_of_the_last_checkpoints_is_measured_beside_the_last(folder: Path, tmp_path: Path) -> None:
    result = train(folder / "text.txt", tmp_path / "out", **TINY, average=3)
    assert set(result.metrics) == {"bits_per_byte", "averaged_bits_per_byte"}
    assert result.metrics["bits_per_byte"] != result.metrics["averaged_bits_per_byte"]
    steps = [load_model(path).state_dict() for path in sorted((tmp_path / "out" / "checkpoints").iterdir())]
    assert len(steps) == 3, "as many are kept as the mean asks for, whatever keep_checkpoints says"
    mean = load_model(tmp_path / "out" / "averaged").state_dict()
    for name, last in result.model.state_dict().items():
        assert torch.allclose(mean[name], sum(step[name] for step in steps) / 3, atol=1e-7)  # pyright: ignore
        assert torch.equal(last, steps[-1][name]), "the run's own model is the last one"
    plain = train(folder / "text.txt", tmp_path / "plain", **TINY)
    assert plain.metrics["bits_per_byte"] == result.metrics["bits_per_byte"]


def test_the_fading_mean_is_that_of_all_steps_and_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """By hand from a checkpoint of every step; a run that was cut ends with the same mean."""
    asked: dict[str, Any] = TINY | {"checkpoint_every": 1, "keep_checkpoints": 9, "ema": 0.6}
    result = train(folder / "text.txt", tmp_path / "out", **asked)
    assert set(result.metrics) == {"bits_per_byte", "ema_bits_per_byte"}
    assert result.metrics["bits_per_byte"] != result.metrics["ema_bits_per_byte"]
    run = Run.load(tmp_path / "out" / "run.json")
    feed = open_feed(run, prepare_for("causal", run.texts, run.options, tmp_path / "out", Reporter(), resumed=True))
    mean = {name: p.detach().clone() for name, p in Trainer(run, feed).model.named_parameters()}
    weights: dict[str, Tensor] = {}
    for done in range(1, 7):
        weights = load_model(tmp_path / "out" / "checkpoints" / f"step-{done:08d}").state_dict()
        share = 1 - min(0.6, (1 + done) / (10 + done))
        mean = {name: old + share * (weights[name] - old) for name, old in mean.items()}
    saved = load_model(tmp_path / "out" / "ema").state_dict()
    for name, last in result.model.state_dict().items():
        torch.testing.assert_close(saved[name], mean[name])
        assert torch.equal(last, weights[name]), "the run's own model is the last one"
    assert which_weights(tmp_path / "out" / "ema") == "the mean that fades by 0.6 a step, after step 6"
    assert which_weights(tmp_path / "out") == ""
    with pytest.raises(PowerCut):
        train(folder / "text.txt", tmp_path / "cut", reporter=CutAt(4), **asked)
    assert train(folder / "text.txt", tmp_path / "cut", **asked).metrics == result.metrics
    assert (tmp_path / "cut" / "ema" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "ema" / "model.safetensors"
    ).read_bytes()
    plain = train(folder / "text.txt", tmp_path / "plain", **TINY)
    assert plain.metrics["bits_per_byte"] == result.metrics["bits_per_byte"], "the mean changes nothing that is trained"


def test_frozen_parameters_stay_and_have_no_state(folder: Path, tmp_path: Path) -> None:
    result = train(folder / "text.txt", tmp_path / "out", **TINY, freeze=("embed.*",))
    run = Run.load(tmp_path / "out" / "run.json")
    drawn = initialise(build_model(run.model), run.start.init, run.seed).state_dict()
    moved = {name for name, p in result.model.state_dict().items() if not torch.equal(p, drawn[name])}
    assert moved == {name for name in drawn if not name.startswith("embed.")}
    state, _ = load_tensors(tmp_path / "out" / "checkpoints" / "step-00000006" / "optimizer.safetensors")
    assert {name.split("/")[0] for name in state} == moved
    for pattern, message in (("embde.*", "no parameter 'embde"), ("*", "leaves nothing to train")):
        with pytest.raises(UsageError, match=message):
            train(folder / "text.txt", tmp_path / pattern[:1], **TINY, freeze=(pattern,))
        assert not (tmp_path / pattern[:1] / "run.json").exists()


# --- a model to go on from --------------------------------------------------------------------------------------------


def test_init_from_goes_on_with_the_weights_and_tokenizer_of_a_model(folder: Path, tmp_path: Path) -> None:
    first = train(folder / "text.txt", tmp_path / "first", **TINY)
    more: dict[str, Any] = {**ROWS, "init_from": str(tmp_path / "first"), "checkpoint_every": 2}
    second = train(folder / "text.txt", tmp_path / "second", **more)
    assert second.model.spec == first.model.spec and second.model.tokenizer.hash == first.model.tokenizer.hash
    assert second.metrics["bits_per_byte"] < first.metrics["bits_per_byte"]
    with pytest.raises(PowerCut):
        train(folder / "text.txt", tmp_path / "third", reporter=CutAt(3), **more)
    train(folder / "text.txt", tmp_path / "third", **more)
    assert digests(tmp_path / "second") == digests(tmp_path / "third")
    standing: dict[str, Any] = {**more, "steps": 1, "learning_rate": 1e-30, "matrix_learning_rate": 1e-30}
    still = train(folder / "text.txt", tmp_path / "still", **standing)
    for before, after in zip(first.model.parameters(), still.model.parameters(), strict=True):
        assert torch.equal(before, after), "the weights are where the first run left them"


@pytest.mark.parametrize("quantised", [False, True])
def test_adapter_alone_is_trained_and_resumes_bit_for_bit(folder: Path, tmp_path: Path, quantised: bool) -> None:
    first = train(folder / "text.txt", tmp_path / "first", **TINY)
    base = tmp_path / "first"
    if quantised:
        base = tmp_path / "first.gguf"
        pellucid.convert(first.model, base, to="gguf", quantisation="q8_0")
    more: dict[str, Any] = {
        **ROWS, "init_from": str(base), "checkpoint_every": 2, "lora": ("*blocks.*",), "lora_rank": 2,
        "lora_also": ("final_norm.*",), "lora_quantised": quantised, "validation": TINY["validation"],
    }  # fmt: skip
    whole = train(folder / "text.txt", tmp_path / "whole", **more)
    assert whole.metrics["bits_per_byte"] < 0.995 * first.metrics["bits_per_byte"], "of the same held-out text"
    with pytest.raises(PowerCut):
        train(folder / "text.txt", tmp_path / "broken", reporter=CutAt(3), **more)
    train(folder / "text.txt", tmp_path / "broken", **more)
    assert digests(tmp_path / "whole") == digests(tmp_path / "broken")
    loaded = pellucid.load(tmp_path / "whole")
    assert names(loaded) == ["adapter"]
    switch(loaded, None)
    before = pellucid.load(base, quantised=quantised).state_dict()
    assert all(torch.equal(each, before[name]) for name, each in loaded.state_dict().items() if name in before)
    state, _ = load_tensors(tmp_path / "whole" / "checkpoints" / "step-00000006" / "optimizer.safetensors")
    trained = {name.split("/")[0] for name in state}
    assert {"final_norm.weight", "blocks.0.attn.q.adapters.adapter.b"} <= trained
    assert all(".adapters." in name or name == "final_norm.weight" for name in trained)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"lora": ("*blocks.*",)}, "no model that it is for"),
        ({"lora_rank": 4}, "lora_rank = 4 decides nothing"),
        ({"lora_quantised": True}, "lora_quantised = True decides nothing"),
    ],
)
def test_options_of_an_adapter_need_one_and_a_base(folder: Path, tmp_path: Path, asked: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        train(folder / "text.txt", tmp_path / "out", **TINY, **asked)
    assert not (tmp_path / "out").exists()


def test_init_from_refuses_sizes_and_another_model_later(folder: Path, tmp_path: Path) -> None:
    train(folder / "text.txt", tmp_path / "first", **TINY)
    base = str(tmp_path / "first")
    with pytest.raises(UsageError, match="depth = 3 decides nothing here"):
        train(folder / "text.txt", tmp_path / "second", init_from=base, depth=3)
    with pytest.raises(PowerCut):
        train(folder / "text.txt", tmp_path / "second", reporter=CutAt(1), init_from=base, **ROWS)
    pellucid.save(initialise(build_model(pellucid.load(base).spec), seed=7), base)
    with pytest.raises(RunError, match="is not the model that this run began with"):
        train(folder / "text.txt", tmp_path / "second", init_from=base, **ROWS)


# --- what does not fit is refused by name, before anything is written -------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"objective": "mlm", "design": "modern"}, "objective mlm does not fit the design 'modern'\n.*causal"),
        ({"objective": "causal", "design": "encoder"}, "objective causal does not fit the design 'encoder'\n.*mlm"),
        ({"objective": "seq2seq", "design": "modern"}, "objective seq2seq does not fit the design 'modern'"),
        ({"objective": "labels"}, "texts have no labels"),
        ({"objective": "seq2seq", "held_out": ("a",)}, "pairs have no names"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(folder / "text.txt", tmp_path / "out", **TINY, **asked)
    assert not (tmp_path / "out" / "run.json").exists() and not (tmp_path / "out" / "tokenizer.json").exists()


@dataclass
class OwnFeed:
    """A feed of the caller's own, of rows that count upwards."""

    rows: int = 4
    vocab: int = 20
    source: Any = None
    hash: str = "own"
    tokens_per_step: int = 32
    asked: list[int] = field(default_factory=list)

    def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
        self.asked.append(step)
        ids = (torch.arange(9) + torch.arange(self.rows)[:, None] + step) % self.vocab
        batch = Batch(ids[:, :-1], Tokens.plain(self.rows, 8), ids[:, 1:], source=self.source)
        return [batch] if self.rows else []

    def evaluation(self, stride: int | None = None) -> Iterator[Batch]:
        yield self.batches(0, 1, ALONE)[0]

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"nats_per_token": sums["nats"] / sums["count"]}


def test_a_feed_of_ones_own_trains_any_spec(tmp_path: Path) -> None:
    spec = design("modern")(20, 8, 1, 16, 8)
    more: dict[str, Any] = {"model": spec, "steps": 5, "precision": "fp32", "checkpoint_every": 2}
    whole = train(OwnFeed(), tmp_path / "whole", **more)
    assert set(whole.metrics) == {"nats_per_token"} and whole.model.spec == spec
    with pytest.raises(PowerCut):
        train(OwnFeed(), tmp_path / "broken", reporter=CutAt(3), **more)
    feed = OwnFeed()
    train(feed, tmp_path / "broken", **more)
    assert [s for s in feed.asked if s] == [2, 3, 4]
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "broken" / "model.safetensors"
    ).read_bytes()
    with pytest.raises(RunError, match="feed is not what it was"):
        train(OwnFeed(hash="other"), tmp_path / "third", run=Run.load(tmp_path / "whole" / "run.json"))


@pytest.mark.parametrize(
    ("feed", "spec", "message"),
    [
        (OwnFeed(rows=0), design("modern")(20, 8, 1, 16, 8), "feed OwnFeed has no batches"),
        (
            OwnFeed(),
            design("encoder_decoder")(20, 8, 1, 16, 8),
            "no source to read, but the model is an enc",
        ),
        (OwnFeed(), design("modern")(10, 8, 1, 16, 8), "has the id 10, but the model knows 10 tokens"),
        (OwnFeed(), replace(design("encoder")(20, 8, 1, 16, 8), head=None), "predicts nothing"),
        (OwnFeed(), None, "no model for it"),
    ],
)
def test_a_feed_that_a_model_cannot_learn_from_is_refused(
    tmp_path: Path, feed: OwnFeed, spec: ModelSpec | None, message: str
) -> None:
    with pytest.raises((DataError, UsageError), match=message):
        train(feed, tmp_path / "out", model=spec, steps=5, precision="fp32")
    assert not (tmp_path / "out" / "run.json").exists()


# --- feeds ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(folder: Path) -> TokenStore:
    found = list(documents([str(folder / "text.txt")]))
    return build_store(found, Tokenizer.train([TEXT], 300, mask=True), folder / "store")


def encoded(folder: Path) -> Any:
    pairs = read_pairs([str(folder / "pairs.tsv")])
    return encode_pairs(pairs, Tokenizer.train([text for pair in pairs for text in pair], 300))


def feeds(store: TokenStore, folder: Path) -> list[Any]:
    rows: dict[str, Any] = {"context": 24, "batch_size": 6, "seed": 3}
    return [
        PackedText(store, store, **rows),
        MaskedText(store, store, mask_id=1, **rows),
        PairedText(encoded(folder), encoded(folder), start_id=0, fixed=True, **rows),
    ]


@pytest.mark.parametrize("which", range(3))
def test_a_feed_gives_the_same_rows_to_any_number_of_processes(store: TokenStore, folder: Path, which: int) -> None:
    feed = feeds(store, folder)[which]
    for at in (0, 5, 1000):
        (whole,) = feed.batches(at, 1, ALONE)
        for size, micro in ((1, 3), (2, 1), (3, 2)):
            parts = [b for rank in range(size) for b in feed.batches(at, micro, World(rank=rank, size=size))]
            for part in ("ids", "labels"):
                assert torch.equal(torch.cat([getattr(b, part) for b in parts]), getattr(whole, part))
            if whole.source is not None:
                assert torch.equal(torch.cat([b.source.ids for b in parts]), whole.source.ids)
    assert not torch.equal(feed.batches(0, 1, ALONE)[0].ids, feed.batches(1, 1, ALONE)[0].ids)


def test_masked_tokens_are_eighty_ten_ten(store: TokenStore) -> None:
    """Devlin et al. 2018, section 3.1; and a row that is read again is masked anew."""
    feed = MaskedText(store, None, context=64, batch_size=64, seed=0, mask_id=1)
    plain = PackedText(store, None, context=64, batch_size=64, seed=0)
    scored = hidden = kept = places = 0
    for at in range(40):
        (batch,), (before,) = feed.batches(at, 1, ALONE), plain.batches(at, 1, ALONE)
        drawn = batch.labels != IGNORE
        assert torch.equal(batch.labels[drawn], before.ids[drawn]) and torch.equal(
            batch.ids[~drawn], before.ids[~drawn]
        )
        assert not (drawn & (before.ids == store.eot)).any(), "what separates documents is never asked for"
        places += int((before.ids != store.eot).sum())
        scored += int(drawn.sum())
        hidden += int((batch.ids[drawn] == 1).sum())
        kept += int((batch.ids[drawn] == batch.labels[drawn]).sum())
    assert scored / places == pytest.approx(0.15, abs=0.005)
    assert hidden / scored == pytest.approx(0.8, abs=0.01) and kept / scored == pytest.approx(0.1, abs=0.01)


def test_held_out_rows_are_corrupted_once(store: TokenStore) -> None:
    feed = MaskedText(store, store, context=32, batch_size=8, seed=0, mask_id=1)
    fewer = MaskedText(store, store, context=32, batch_size=8, seed=0, mask_id=1, rows_at_once=3)
    first, again, parts = list(feed.evaluation()), list(feed.evaluation(16)), list(fewer.evaluation())
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)
    assert torch.equal(torch.cat([b.ids for b in first]), torch.cat([b.ids for b in parts]))


def test_pairs_are_read_whole_and_split_by_source(folder: Path, tmp_path: Path) -> None:
    pairs = read_pairs([str(folder / "pairs.tsv")])
    assert pairs[0].target == pairs[0].source[::-1]
    training, validation = split_pairs([*pairs, Pair(pairs[0].source, "another")], 0.2, seed=1)
    assert not {p.source for p in training} & {p.source for p in validation}
    assert len(training) + len(validation) == len(pairs) + 1 and 0.1 < len(validation) / len(pairs) < 0.35
    (tmp_path / "bad.tsv").write_text("one\ttwo\nthree\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.tsv line 2 has no tab"):
        read_pairs([str(tmp_path / "bad.tsv")])
    (tmp_path / "none.tsv").write_text("\t\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no pair"):
        read_pairs([str(tmp_path / "none.tsv")])


def test_a_pair_is_read_and_predicted_with_its_end(folder: Path) -> None:
    tokenizer = Tokenizer.train(["ab ba"], 300)
    data = encode_pairs([Pair("ab", "ba"), Pair("b", "a" * 40)], tokenizer)
    feed = PairedText(data, data, context=16, batch_size=1, seed=0, start_id=0)
    assert feed.n_left_out == 1
    (batch,) = feed.batches(0, 1, ALONE)
    scored = batch.labels != IGNORE
    assert batch.labels[scored].tolist() == [*tokenizer.encode("ba"), tokenizer.eos_id] and batch.n_bytes == 2
    assert batch.ids[scored].tolist() == [0, *tokenizer.encode("ba")]
    assert batch.source is not None
    assert batch.source.ids[batch.source.tokens.pos >= 0].tolist() == tokenizer.encode_prompt("ab")
    with pytest.raises(DataError, match="no pair is as short as 1 tokens"):
        PairedText(data, None, context=1, batch_size=1, seed=0, start_id=0)


# --- the measured step is the step that runs --------------------------------------------------------------------------


def test_the_measured_step_is_the_step_that_trains(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old code measured another step: segments were always written out, so that a dearer kernel was timed."""
    seen: list[list[bool]] = []
    real = Trainer.update

    def watched(self: Trainer) -> Any:
        seen.append([batch.tokens.seg is None for batch in self.batches(self.done)])
        return real(self)

    monkeypatch.setattr(Trainer, "update", watched)
    measured: list[int] = []
    monkeypatch.setattr(Reporter, "start", lambda *_: measured.append(len(seen)))
    train(folder / "text.txt", tmp_path / "out", **TINY)
    assert measured == [5] and len(seen) == 5 + TINY["steps"]
    assert seen[:5] == seen[5:10], "the same rows, in the same form"
    assert any(any(rows) for rows in seen[:5]), "a row of one document is known to be one"


# --- a world of two ---------------------------------------------------------------------------------------------------


class Pair2(World):
    """One of two processes that are threads here; they add up what both bring."""

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[Any]):
        super().__init__(rank=rank, size=2)
        object.__setattr__(self, "meeting", meeting)
        object.__setattr__(self, "table", table)

    def sum(self, value: Tensor) -> Tensor:
        self.table[self.rank] = value  # pyright: ignore[reportAttributeAccessIssue]
        self.meeting.wait()  # pyright: ignore[reportAttributeAccessIssue]
        total = self.table[0] + self.table[1]  # pyright: ignore[reportAttributeAccessIssue]
        self.meeting.wait()  # pyright: ignore[reportAttributeAccessIssue]
        return total

    def barrier(self) -> None:
        self.meeting.wait()  # pyright: ignore[reportAttributeAccessIssue]


def in_two(work: Callable[[World], Any]) -> list[Any]:
    """What ``work`` gives in each of two processes at once."""
    meeting, table = threading.Barrier(2, timeout=60), [None, None]
    results: list[Any] = [None, None]

    def one(rank: int) -> None:
        try:
            results[rank] = work(Pair2(rank, meeting, table))
        except BaseException as error:
            results[rank] = error
            meeting.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("which", range(3))
def test_two_processes_take_the_step_that_one_takes(store: TokenStore, folder: Path, which: int) -> None:
    """Counts are summed before the first forward, gradients after the last: rows of uneven lengths weigh as in one."""
    feed = feeds(store, folder)[which]
    spec = design(("modern", "encoder", "encoder_decoder")[which])(300, 24, 1, 16, 8)

    def stepped(world: World) -> tuple[Any, dict[str, Tensor], dict[str, float]]:
        model = initialise(build_model(spec), seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        result = step(model, [optimizer], nll, feed.batches(0, 1, world), clip=0.5, world=world)
        return result, model.state_dict(), held_out_sums(model, feed.evaluation(), world=world)

    alone, two = stepped(ALONE), in_two(stepped)
    for result, weights, sums in two:
        assert result.count == alone[0].count and result.loss == pytest.approx(alone[0].loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(alone[0].grad_norm, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, alone[1][name], atol=1e-6, rtol=1e-5)
        assert sums["count"] == alone[2]["count"] and sums["nats"] == pytest.approx(alone[2]["nats"], rel=1e-5)
    assert all(torch.equal(two[0][1][name], two[1][1][name]) for name in two[0][1])


def test_only_the_first_process_writes_and_tells(tmp_path: Path) -> None:
    spec = design("modern")(20, 8, 1, 16, 8)
    told: list[int] = []

    class Told(Reporter):
        def __init__(self, rank: int):
            self.rank = rank

        def progress(self, state: Progress) -> None:
            told.append(self.rank)

    class OfTwo(OwnFeed):
        def batches(self, step: int, micro_batches: int, world: Share) -> list[Batch]:
            (batch,) = super().batches(step, micro_batches, ALONE)
            rows = slice(world.rank, None, world.size)
            return [Batch(batch.ids[rows], Tokens.plain(len(batch.ids[rows]), 8), batch.labels[rows])]

    more: dict[str, Any] = {"model": spec, "steps": 4, "precision": "fp32", "checkpoint_every": 2}

    def trained(world: World) -> Any:
        return train(OfTwo(), tmp_path / "two", reporter=Told(world.rank), world=world, **more)

    results = in_two(trained)
    assert told == [0] * 4
    one = train(OfTwo(), tmp_path / "one", **more)
    for result in results:
        assert result.metrics == pytest.approx(one.metrics, rel=1e-4)
    names = [sorted(p.name for p in (tmp_path / out).rglob("*")) for out in ("one", "two")]
    assert names[0] == names[1]


# --- weights, and the schedule of 2017 --------------------------------------------------------------------------------


def test_a_count_is_the_sum_of_weights() -> None:
    """A row of weight 2 counts as two rows of weight 1, in the loss and in its gradient."""
    model = initialise(build_model(design("modern")(20, 8, 1, 16, 8)), "normal", 1)
    ids = torch.arange(16).view(2, 8)
    labels = ids + 1
    weighted = Batch(ids, Tokens.plain(2, 8), labels, weights=torch.tensor([[2.0], [1.0]]).expand(2, 8))
    twice = torch.tensor([0, 0, 1])
    losses: list[Tensor] = []
    for batch in (weighted, Batch(ids[twice], Tokens.plain(3, 8), labels[twice])):
        model.zero_grad()
        loss, count = accumulate(model, objective_for(model, ObjectiveSpec(name="causal", smoothing=0.0)), [batch])
        assert count == 24
        losses += [loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    half = len(losses) // 2
    for a, b in zip(losses[:half], losses[half:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_inverse_square_root_is_the_one_of_2017() -> None:
    """Equation 3, times the peak rate (d_model · warmup)^(-1/2)."""
    from pellucid.recipes.attention_is_all_you_need import RECIPES

    recipe = RECIPES["base"]
    asked = recipe.options(steps=8)
    assert (asked.beta2, asked.eps, asked.smoothing, asked.schedule) == (0.98, 1e-9, 0.1, "inverse_sqrt")
    peak = (recipe.spec.d_model * recipe.warmup) ** -0.5
    assert asked.learning_rate == pytest.approx(peak, rel=1e-12) and asked.steps == 8
    for at in (1, 2, 3999, 4000, 4001, 100_000):
        rate = peak * factor("inverse_sqrt", at - 1, recipe.steps, recipe.warmup)
        assert rate == pytest.approx(recipe.learning_rate(at), rel=1e-12)


def test_a_run_of_the_old_form_is_refused_by_version(folder: Path, tmp_path: Path) -> None:
    """Its finished model opens as before."""
    train(folder / "text.txt", tmp_path / "out", **TINY)
    path = tmp_path / "out" / "run.json"
    path.write_text(json.dumps({"type": "Run", "texts": [], "options": {}, "spec": {}}), encoding="utf-8")
    with pytest.raises(RunError, match=r"written by an earlier pellucid.*\n.*start anew"):
        train(folder / "text.txt", tmp_path / "out", **TINY)
    assert isinstance(pellucid.load(tmp_path / "out"), Decoder)
