"""Whole runs: where each number comes from, and that stopping, resuming and repeating change nothing, bit for bit."""

from __future__ import annotations

import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.batch import Batch
from pellucid.checkpoints.native import save_model
from pellucid.data.store import TokenStore
from pellucid.errors import CheckpointError, DataError, PellucidError, RunError, SpecError, UsageError
from pellucid.text.tokenizer import Tokenizer
from pellucid.train import checkpoint, derive, loop, resolve, trainer
from pellucid.train.config import Run, TrainOptions, changed
from pellucid.train.feeds import open_feed
from pellucid.train.folder import finished
from pellucid.train.loop import Interrupted, Result
from pellucid.train.metrics import read_metrics
from pellucid.train.parts import TextSpec
from pellucid.train.precision import Peak
from pellucid.train.prepare import Prepared, prepare
from pellucid.train.report import Progress, Reporter
from pellucid.train.run import train
from pellucid.train.trainer import Trainer

TEXT = inspect.getsource(textwrap)
TINY: dict[str, Any] = {
    **{"depth": 2, "d_model": 16, "head_dim": 8, "context": 16, "batch_size": 4, "vocab_size": 280, "steps": 10},
    **{"precision": "fp32", "dropout": 0.1, "micro_batches": 2, "validate_every": 3, "checkpoint_every": 5},
    "validation": 0.01,
}


def tiny(**more: Any) -> dict[str, Any]:
    """Options of a run of no time."""
    return TINY | more


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known without measuring it, and whose power does not fail."""
    monkeypatch.setattr(derive, "compiler_here", lambda: True)
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(trainer, "VALIDATION_BATCHES", 2)
    monkeypatch.setattr(Trainer, "measure", lambda *_: 0.1)
    for module in (derive, loop):
        monkeypatch.setattr(module, "measure_peak", lambda *_: Peak(2e11, 1e11))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run with these options that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")

    @lru_cache
    def trained(**more: Any) -> Path:
        out = folder / str(sorted(more.items()))
        train(folder / "text.txt", out, **tiny(**more))
        return out

    return trained


def digests(folder: Path) -> dict[str, str]:
    """What is in a finished folder, the clock's record left out."""
    names = ("model.safetensors", "metrics.jsonl", "spec.json", "tokenizer.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


class PowerCut(Exception):
    pass


class CutAt(Reporter):
    """The power goes after this step, before anything of it is saved."""

    def __init__(self, step: int):
        self.step = step

    def progress(self, state: Progress) -> None:
        if state.step == self.step:
            raise PowerCut


class Listener(Reporter):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, state: Progress) -> None:
        self.steps.append(state.step)


# --- where the numbers come from --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return prepare([str(folder / "text.txt")], TrainOptions(vocab_size=280), folder, Reporter())


def of_size(prepared: Prepared, n_tokens: int) -> Prepared:
    """As if the text were longer or shorter."""
    store = prepared.training
    assert isinstance(store, TokenStore)
    return replace(prepared, training=replace(store, manifest=replace(store.manifest, n_tokens=n_tokens)))


DERIVED = (  # everything that may be asked for and is not settled by its default; "minutes" only decides the others
    *("steps", "depth", "d_model", "head_dim", "vocab_size", "context", "batch_size", "learning_rate"),
    *("matrix_learning_rate", "weight_decay", "eps", "warmup", "precision", "init", "design", "objective"),
    *("smoothing",),
    *("validate_every", "sample_every"),
)
UNSETTLED = {  # None says something of its own
    *("minutes", "init_from", "checkpoint_every", "follow_load", "ema", "mix_epochs"),
    *("masked", "span", "batch_tokens"),  # the objective has a share and a length, and rows are no tokens
}


def number(run: Run, name: str) -> Any:
    """The value in a run of the option that is asked for by this name."""
    spec: Any = run.model
    of_spec = {"d_model": spec.d_model, "depth": spec.n_layers, "vocab_size": spec.vocab_size, "design": "modern"}
    if name == "head_dim":
        return getattr(spec.stack.blocks[0].mixer, "head_dim", None)
    parts = (run, run.feed, run.objective, run.start, run.optimiser, run.schedule, run.runtime, run.keeping)
    field = TrainOptions.options[name].field
    holders = [part for part in parts if isinstance(part, TrainOptions.options[name].part) or name == "seed"]
    return of_spec[name] if name in of_spec else getattr(holders[0], field)


def test_the_list_above_is_whole() -> None:
    open_ones = {name for name, field in TrainOptions.__dataclass_fields__.items() if field.default is None}
    assert open_ones - UNSETTLED == set(DERIVED)


@pytest.mark.parametrize("n_tokens", [200, 3_000, 100_000, 5_000_000, 1_000_000_000])
@pytest.mark.parametrize("asked", [{}, {"minutes": 0.01}, {"minutes": 60.0}, {"steps": 1}, {"steps": 100_000}], ids=str)
def test_every_derived_number_has_a_reason(prepared: Prepared, n_tokens: int, asked: dict[str, Any]) -> None:
    run, _ = resolve.resolve(("text.txt",), TrainOptions(**asked), of_size(prepared, n_tokens))
    reasons = {reason.field: reason for reason in run.reasons}
    assert len(reasons) == len(run.reasons), "one reason a number"
    for name in DERIVED:
        shown, value = reasons[name].value, number(run, name)
        plain = isinstance(value, str | bool)
        assert shown == (str(value) if plain else f"{value:,}" if isinstance(value, int) else f"{value:g}")
        assert reasons[name].why and (reasons[name].why == "asked for") == (name in asked or name == "vocab_size")
    assert isinstance(run.feed, TextSpec)
    assert run.feed.context == run.model.context < n_tokens
    assert 1 <= run.schedule.warmup <= run.steps and run.feed.batch_size >= 1
    if not asked:
        assert run.steps == 5 * 60 / 0.1, "five minutes by default"


@pytest.mark.parametrize("n_tokens", [3_000, 5_000_000])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_options_asked_for_are_kept(prepared: Prepared, n_tokens: int, optimizer: Any) -> None:
    asked: dict[str, Any] = {
        **{"steps": 7, "depth": 3, "d_model": 48, "head_dim": 12, "context": 24, "batch_size": 5, "warmup": 9},
        **{"learning_rate": 0.5, "matrix_learning_rate": 0.25, "weight_decay": 0.0, "precision": "bf16"},
        **{"init": "xavier", "validate_every": 50, "sample_every": 0, "checkpoint_every": 3},
        **{"micro_batches": 3, "dropout": 0.2, "clip": None, "schedule": "cosine", "compile": True, "seed": 4},
    }
    run, _ = resolve.resolve(("t",), TrainOptions(**asked, optimizer=optimizer), of_size(prepared, n_tokens))
    assert {name: number(run, name) for name in asked} == asked
    why = {reason.field: reason.why for reason in run.reasons}
    assert {name for name in asked if why.get(name, "asked for") != "asked for"} == set()


def test_more_time_or_text_makes_no_smaller_model(prepared: Prepared) -> None:
    def depths(minutes: list[float], n_tokens: list[int]) -> list[int]:
        found = zip(minutes, n_tokens, strict=True)
        return [resolve.resolve((), TrainOptions(minutes=m), of_size(prepared, n))[0].model.n_layers for m, n in found]

    by_time, by_text = (
        depths([1.0, 10.0, 100.0, 1000.0], [10**9] * 4),
        depths([100.0] * 4, [10**4, 10**6, 10**8, 10**9]),
    )
    assert by_time == sorted(by_time) and by_time[-1] > by_time[0]
    assert by_text == sorted(by_text) and by_text[-1] > by_text[0]


def test_micro_batches_that_the_batch_does_not_hold(prepared: Prepared) -> None:
    with pytest.raises(UsageError, match=r"batch_size = 2 cannot be split into 3 micro-batches\n.*from 1 to 2"):
        resolve.resolve((), TrainOptions(steps=1, batch_size=2, micro_batches=3), prepared)


def test_compiling_without_a_compiler(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "compiler_here", lambda: False)
    with pytest.raises(UsageError, match=r"no C\+\+ compiler\n.*install"):
        resolve.resolve((), TrainOptions(steps=1, compile=True), prepared)


# --- the run as a value -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(prepared: Prepared) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "measure", lambda *_: 0.1)
        patch.setattr(derive, "measure_peak", lambda *_: Peak(2e11, 1e11))
        return resolve.resolve(("text.txt",), TrainOptions(**TINY), prepared)[0]


def test_json_round_trip(run: Run, tmp_path: Path) -> None:
    optimiser, feed = (
        replace(run.optimiser, clip=None, learning_rate=0.1 + 0.2),
        replace(run.feed, texts=("a b", "é/*.txt")),
    )
    odd = replace(run, optimiser=optimiser, feed=feed, reasons=())
    for one in (run, odd, run.identity()):
        assert Run.from_json(json.loads(json.dumps(one.to_json()))) == one
        one.save(tmp_path / "run.json")
        assert Run.load(tmp_path / "run.json") == one


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"warmup"', '"warmpu"', "Schedule has no field 'warmpu'\n.*'warmup'"),
        ('"batch_size": 4', '"batch_size": "4"', "batch_size: expected int, found '4'"),
        ('"type": "Reason"', '"type": "Raeson"', "unknown type 'Raeson'\n.*'Reason'"),
        ('"schedule": "wsd"', '"schedule": "wds"', "'wds' is not allowed\n.*'wsd'"),
        ('"batch_size": 4', '"batch_size": 0', "batch_size = 0 cannot be used\n.*at least 1"),
        ('rate": 0.02', 'rate": NaN', "matrix_learning_rate: nan is no finite number"),
        ('"design": null', '"design": "modren"', "no design 'modren'\n.*'modern'"),
        ("{", "", "is not readable JSON"),
    ],
)
def test_a_wrong_run_file_is_refused(run: Run, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "run.json"
    run.save(path)
    whole = path.read_text(encoding="utf-8")
    assert old in whole
    path.write_text(whole.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError, match=rf"(?s)run\.json.*{message}"):
        Run.load(path)


def test_identity_is_what_decides_the_weights(run: Run) -> None:
    operations: dict[str, Any] = {
        "checkpoint_every": 99,
        "keep_checkpoints": 9,
        "on_nonfinite": "skip",
        "sample_every": 99,
    }
    assert replace(run, keeping=replace(run.keeping, **operations), reasons=()).identity() == run.identity()
    others = (
        replace(run, seed=9),
        replace(run, schedule=replace(run.schedule, steps=run.steps + 1)),
        replace(run, feed=replace(run.feed, hash="x")),
        replace(run, objective=replace(run.objective, dropout=0.5)),
        replace(run, runtime=replace(run.runtime, torch="9")),
        replace(run, start=replace(run.start, freeze=("embed.*",))),
        replace(run, keeping=replace(run.keeping, validate_every=99)),
    )
    for other in others:
        assert other.identity() != run.identity()


def test_changed_options_are_found() -> None:
    before = TrainOptions(steps=10, depth=2, seed=3)
    assert changed(before, before) == changed(before, TrainOptions()) == []
    assert changed(before, TrainOptions(steps=10, keep_checkpoints=9, tensorboard=True, on_nonfinite="skip")) == []
    assert changed(before, TrainOptions(depth=4, dropout=0.5)) == ["depth = 4, not 2", "dropout = 0.5, not 0.0"]
    assert changed(before, TrainOptions(minutes=1.0)) == ["minutes = 1.0, not None"]


def test_operations_of_now(run: Run) -> None:
    now = run.with_operations(TrainOptions(depth=2, keep_checkpoints=7, tensorboard=True, on_nonfinite="skip"))
    assert (now.keeping.keep_checkpoints, now.keeping.on_nonfinite, now.keeping.tensorboard) == (7, "skip", True)
    assert now.identity() == run.identity()
    assert run.with_operations(TrainOptions()) == run


# --- stopping and going on --------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {},
    {"precision": "bf16"},
    {"optimizer": "adamw", "schedule": "cosine", "design": "classic"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stopped_and_resumed_is_never_stopped(
    straight: Callable[..., Path], text: Path, tmp_path: Path, variant: dict[str, Any]
) -> None:
    """With dropout, micro-batches and validation; the power goes two steps after the checkpoint."""
    options = tiny(**variant)
    with pytest.raises(PowerCut):
        train(text, tmp_path / "broken", reporter=CutAt(7), **options)
    assert len(read_metrics(tmp_path / "broken" / "metrics.jsonl")) == 5 + 2 + 2  # two validations, two steps too many
    listener = Listener()
    resumed = train(text, tmp_path / "broken", reporter=listener, **options)
    assert listener.steps == [6, 7, 8, 9, 10]
    whole = finished(straight(**variant), Run.load(straight(**variant) / "run.json"))
    assert resumed.metrics == whole.metrics and resumed.metrics["bits_per_byte"] > 0
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert digests(tmp_path / "broken") == digests(straight(**variant))


def test_control_another_seed_is_another_run(straight: Callable[..., Path]) -> None:
    a, b = digests(straight()), digests(straight(seed=1))
    assert a["model.safetensors"] != b["model.safetensors"] and a["metrics.jsonl"] != b["metrics.jsonl"]


def test_micro_batches_and_checkpoints_do_not_decide(straight: Callable[..., Path]) -> None:
    """Without dropout, how a batch is split changes only the rounding; how often is saved changes nothing."""
    gentle: dict[str, Any] = {"dropout": 0.0, "optimizer": "adamw", "learning_rate": 1e-3}
    whole, split = (straight(**gentle, micro_batches=n) for n in (1, 3))
    assert digests(straight(checkpoint_every=1)) == digests(straight()) != digests(whole) != digests(split)
    bits = [read_metrics(folder / "metrics.jsonl")[-1]["final_bits_per_byte"] for folder in (whole, split)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-4)


def cut(*_: object, **__: object) -> None:
    raise PowerCut


@pytest.mark.parametrize("place", ["model", "weights", "spec", "metrics"])
def test_stopped_while_finishing(straight: Callable[..., Path], text: Path, tmp_path: Path, place: str) -> None:
    """After the last step: before the model is written, between its files, while the last metrics are."""
    with pytest.MonkeyPatch.context() as patch:
        if place == "model":
            patch.setattr(loop, "save_model", cut)
        elif place == "metrics":
            patch.setattr(loop.Trainer, "validate_all", cut)
        else:

            def save_in_part(model: Any, folder: Path) -> None:
                patch.setattr(*(
                    ("pellucid.checkpoints.native.save_tensors", cut)
                    if place == "weights"
                    else ("pellucid.spec.DecoderSpec.save", cut)
                ))  # fmt: skip
                save_model(model, folder)

            patch.setattr(loop, "save_model", save_in_part)
        with pytest.raises(PowerCut):
            train(text, tmp_path / "broken", **TINY)
    listener = Listener()
    train(text, tmp_path / "broken", reporter=listener, **TINY)
    assert listener.steps == []
    assert digests(tmp_path / "broken") == digests(straight())


def test_asked_to_stop_while_finishing(straight: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    real = loop.Trainer.validate_all

    with pytest.MonkeyPatch.context() as patch:

        def asked_meanwhile(self: Trainer, before_each: Callable[[], None], *rest: Any) -> Any:
            patch.setattr(loop._Life, "asked_to_stop", lambda _: True)
            return real(self, before_each, *rest)

        patch.setattr(loop.Trainer, "validate_all", asked_meanwhile)
        with pytest.raises(Interrupted, match="saved"):
            train(text, tmp_path / "broken", **TINY)
    train(text, tmp_path / "broken", **TINY)
    assert digests(tmp_path / "broken") == digests(straight())


def test_a_finished_folder_is_left_alone(text: Path, tmp_path: Path) -> None:
    first = train(text, tmp_path / "out", **TINY)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    listener = Listener()
    again = train(text, tmp_path / "out", reporter=listener, **TINY)
    assert listener.messages == [f"{tmp_path / 'out'} is finished: nothing to do"] and listener.steps == []
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    assert isinstance(again, Result) and again.metrics == first.metrics and not again.model.training
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert again.model.tokenizer.hash == first.model.tokenizer.hash


def test_a_run_file_repeats_the_run(straight: Callable[..., Path], tmp_path: Path) -> None:
    """In another folder, of a text by another name, with nothing but run.json; and that repetition can be resumed."""
    (tmp_path / "copy.txt").write_text(TEXT, encoding="utf-8")
    repeated = Run.load(straight() / "run.json")
    with pytest.raises(PowerCut):
        train(tmp_path / "copy.txt", tmp_path / "second", run=repeated, reporter=CutAt(7))
    train(tmp_path / "copy.txt", tmp_path / "second", run=repeated)
    assert digests(tmp_path / "second") == digests(straight())
    assert Run.load(tmp_path / "second" / "run.json").texts == (str(tmp_path / "copy.txt"),)
    train(tmp_path / "copy.txt", tmp_path / "second", **TINY)  # it is finished, and the same options as the first


def test_a_run_file_and_something_else_are_refused(straight: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    run = Run.load(straight() / "run.json")
    with pytest.raises(UsageError, match=r"repeated exactly, but with learning_rate = 0\.5"):
        train(text, tmp_path / "second", run=run, learning_rate=0.5)
    with pytest.raises(RunError, match="holds another run than the one to be repeated"):
        train(run.texts, straight(), run=replace(run, schedule=replace(run.schedule, steps=11)))
    (tmp_path / "other.txt").write_text(TEXT[:8000], encoding="utf-8")
    with pytest.raises(RunError, match=r"other\.txt is not what it was"):
        train(tmp_path / "other.txt", tmp_path / "second", run=run)
    train(text, tmp_path / "second", run=run)  # what was refused has left nothing that counts
    assert digests(tmp_path / "second") == digests(straight())


def test_a_first_attempt_that_failed_decides_nothing(straight: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    """Its tokenizer, learned from the wrong text, is not used for the right one."""
    (tmp_path / "short.txt").write_text("too short\n", encoding="utf-8")
    with pytest.raises(DataError):
        train(tmp_path / "short.txt", tmp_path / "out", **TINY)
    train(text, tmp_path / "out", **TINY)
    assert digests(tmp_path / "out") == digests(straight())
    assert Tokenizer.load(tmp_path / "out" / "tokenizer.json").vocab_size == TINY["vocab_size"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def wrong_step(path: Path) -> None:
    """One flipped bit turns 4 into 5: still JSON, and no file is damaged."""
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'), encoding="utf-8")


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    *((name, flip) for name in ("model.safetensors", "optimizer.safetensors", "run.json", "spec.json")),
    *((name, flip) for name in ("tokenizer.json", "checkpoint.json")),
    *((name, truncate) for name in ("model.safetensors", "optimizer.safetensors", "checkpoint.json")),
    *((name, Path.unlink) for name in ("model.safetensors", "optimizer.safetensors", "checkpoint.json")),
    ("checkpoint.json", wrong_step),
]


def damages() -> Iterator[Any]:
    """The first of each kind is quick to try, and says what the others do of other files."""
    seen: set[Any] = set()
    for name, damage in DAMAGES:
        marks = [pytest.mark.slow] if damage in seen else []
        seen.add(damage)
        yield pytest.param(name, damage, id=f"{name}-{damage.__name__}", marks=marks)


@pytest.mark.parametrize(("name", "damage"), list(damages()))
def test_a_damaged_checkpoint_is_passed_over(
    straight: Callable[..., Path], text: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """The one before is used, nothing else changes, and the damaged one does not outlive its repetition."""
    options = tiny(checkpoint_every=2, keep_checkpoints=2)
    out, places = tmp_path / "broken", tmp_path / "broken" / "checkpoints"
    with pytest.raises(PowerCut):
        train(text, out, reporter=CutAt(5), **options)
    assert [p.name for p in sorted(places.iterdir())] == ["step-00000002", "step-00000004"]
    damage(places / "step-00000004" / name)
    listener = Listener()
    with pytest.raises(PowerCut):  # a single one is kept: it must not be the damaged one
        train(text, out, reporter=CutAt(4), **tiny(keep_checkpoints=1, checkpoint_every=1))
    assert [p.name for p in places.iterdir()] == ["step-00000003"]
    train(text, out, reporter=listener, **options)
    assert listener.steps == [4, 5, 6, 7, 8, 9, 10]
    assert digests(out) == digests(straight())


def test_a_damaged_checkpoint_is_told_and_replaced(text: Path, tmp_path: Path) -> None:
    options = tiny(checkpoint_every=2)
    with pytest.raises(PowerCut):
        train(text, tmp_path / "out", reporter=CutAt(5), **options)
    flip(checkpoint.path_of(tmp_path / "out", 4) / "model.safetensors")

    class CutLater(Listener):
        def progress(self, state: Progress) -> None:
            super().progress(state)
            if state.step == 5:
                raise PowerCut

    listener = CutLater()
    with pytest.raises(PowerCut):
        train(text, tmp_path / "out", reporter=listener, **options)
    passed, going_on = listener.messages
    assert "passed over" in passed and "step-00000004" in passed and "is damaged" in passed
    assert going_on == "going on from step-00000002"
    run = Run.load(tmp_path / "out" / "run.json")
    checkpoint.check(checkpoint.path_of(tmp_path / "out", 4), run)  # it was written again, whole: else this raises


def test_no_valid_checkpoint_is_an_error_and_nothing_is_removed(text: Path, tmp_path: Path) -> None:
    options = tiny(checkpoint_every=2)
    with pytest.raises(PowerCut):
        train(text, tmp_path / "out", reporter=CutAt(5), **options)
    for path in (tmp_path / "out" / "checkpoints").iterdir():
        flip(path / "optimizer.safetensors")
    before = {p: p.read_bytes() for p in (tmp_path / "out" / "checkpoints").rglob("*") if p.is_file()}
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* is valid: .*is damaged.*\n.*restore one.*start over"
    ):
        train(text, tmp_path / "out", **options)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out" / "checkpoints").rglob("*") if p.is_file()}


def test_a_checkpoint_of_another_run_is_not_used(text: Path, tmp_path: Path) -> None:
    others: dict[str, dict[str, Any]] = {"a": {}, "b": {"d_model": 24, "checkpoint_every": 6}}
    for name, more in others.items():
        with pytest.raises(PowerCut):
            train(text, tmp_path / name, reporter=CutAt(7), **tiny(**more))
    checkpoint.path_of(tmp_path / "b", 6).rename(checkpoint.path_of(tmp_path / "a", 6))
    listener = Listener()
    train(text, tmp_path / "a", reporter=listener, **TINY)
    assert "belongs to another run" in listener.messages[0] and listener.steps[0] == 6


@pytest.mark.parametrize("record", ["[]\n", '{"loss": 1}\n', "\xff\n", "null"])
def test_a_damaged_record_does_not_stop_a_run(text: Path, tmp_path: Path, record: str) -> None:
    with pytest.raises(PowerCut):
        train(text, tmp_path / "out", reporter=CutAt(7), **TINY)
    (tmp_path / "out" / "metrics.jsonl").write_bytes(record.encode("latin-1"))
    train(text, tmp_path / "out", **TINY)
    assert [line["step"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")][-1] == 10


def test_batches_measured_during_training_are_spread_over_all_that_is_held_out(
    run: Run, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "VALIDATION_BATCHES", 3)
    feed, seen = open_feed(run, prepared), list[Batch]()

    def sums(_: object, batches: Iterable[Batch], *__: object) -> dict[str, float]:
        seen.extend(batches)
        return {"nats": 1.0, "bytes": 1.0}

    monkeypatch.setattr(trainer, "held_out_sums", sums)
    assert Trainer(run, feed).validate()
    everything = list(feed.evaluation())
    assert len(everything) > 6
    places = [next(i for i, batch in enumerate(everything) if torch.equal(batch.ids, each.ids)) for each in seen]
    assert places[0] == 0 and len(places) == 3
    assert places[2] - places[1] == places[1] == -(-len(everything) // 3)


def test_every_refusal_is_ours() -> None:
    """What stops a run by design derives from one base, which the command line turns into a message."""
    assert all(issubclass(e, PellucidError) for e in (Interrupted, RunError, CheckpointError, DataError, UsageError))
