"""What somebody meets in the first hours: what does not fit, numbers for a text, runs compared, going on, hints."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid.checkpoints.native import RUN
from pellucid.cli.main import run
from pellucid.cli.training import number_of
from pellucid.data.store import TokenStore
from pellucid.designs import classic, modern
from pellucid.engine import memory
from pellucid.errors import RunError, TooLargeError, UsageError
from pellucid.generate.sample import Sampling
from pellucid.nn.flops import count_parameters
from pellucid.nn.models import Decoder
from pellucid.text.tokenizer import Tokenizer
from pellucid.train import derive, loop, precision, trainer
from pellucid.train.compare import Group, Trained, differences, groups
from pellucid.train.config import Run, TrainOptions
from pellucid.train.derive import Numbers
from pellucid.train.needs import training_needs
from pellucid.train.precision import Peak
from pellucid.train.prepare import prepare
from pellucid.train.report import Reporter
from pellucid.train.trainer import Trainer

TEXT = inspect.getsource(textwrap)
TINY: dict[str, Any] = {
    **{"depth": 2, "d_model": 16, "head_dim": 8, "context": 16, "batch_size": 4, "vocab_size": 280, "steps": 3},
    **{"precision": "fp32", "validate_every": 1, "validation": 0.02},
}


def flags(**more: Any) -> list[str]:
    """The options of a run of no time, as flags."""
    return [word for name, value in (TINY | more).items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(trainer, "VALIDATION_BATCHES", 2)
    monkeypatch.setattr(Trainer, "measure", lambda *_: 0.1)
    for module in (derive, loop, precision):
        monkeypatch.setattr(module, "measure_peak", lambda *_: Peak(2e11, 1e11))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory, kept: dict[str, Path]) -> Path:
    if "trained" not in kept:
        kept["trained"] = tmp_path_factory.mktemp("runs") / "trained"
        pellucid.train(text, kept["trained"], **TINY)
    return kept["trained"]


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    return {}


@pytest.fixture(scope="module")
def model() -> Decoder:
    model = pellucid.build(modern(280, 64, 2, 16, 8))
    model.tokenizer = Tokenizer.train([TEXT], 280)
    return model


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def only(n_bytes: int) -> None:
        for module in (memory, derive):
            monkeypatch.setattr(module, "free_bytes", lambda *_: n_bytes)

    return only


# --- what cannot fit -------------------------------------------------------------------------------------------------


def test_training_that_cannot_fit_is_refused_with_what_would(
    text: Path, tmp_path: Path, free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "__init__", lambda *_, **__: pytest.fail("something was allocated"))
    whole, one = (training_needs(modern(280, 16, 2, 16, 8), rows, 16).total for rows in (4, 1))
    free(one + (whole - one) // 2)
    with pytest.raises(TooLargeError, match=r"MB are free\n  --micro-batches [24] would fit"):
        pellucid.train(text, tmp_path / "out", **TINY)
    free(one // 2)
    with pytest.raises(TooLargeError, match="weights, gradients and optimiser alone take"):
        pellucid.train(text, tmp_path / "out", **TINY)
    assert not (tmp_path / "out").exists()


def test_a_derived_depth_fits_into_memory(text: Path, tmp_path: Path, free: Callable[[int], None]) -> None:
    options = TrainOptions(minutes=1e6, context=16, vocab_size=280, precision="fp32")
    prepared = prepare([str(text)], options, tmp_path / "out", Reporter())
    store = prepared.training
    assert isinstance(store, TokenStore)
    endless = replace(prepared, training=replace(store, manifest=replace(store.manifest, n_tokens=10**12)))
    assert Numbers(options, endless).depth > 3
    free(training_needs(modern(280, 16, 3, 128, 64), 1, 16).total)
    numbers = Numbers(options, endless)
    assert numbers.depth == 3 and "memory" in numbers.reasons[-1].why


def test_loading_building_writing_and_looking_are_refused_before_they_allocate(
    model: Decoder, tmp_path: Path, free: Callable[[int], None]
) -> None:
    pellucid.save(model, tmp_path / "saved")
    size = 4 * count_parameters(model.spec).total
    free(size - 1)
    with pytest.raises(TooLargeError, match=r"in float32 needs about .* are free\n  in bfloat16 it takes"):
        pellucid.load(tmp_path / "saved")
    assert pellucid.load(tmp_path / "saved", torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(TooLargeError, match="parameters"):
        pellucid.build(model.spec)
    free(1000)
    with pytest.raises(TooLargeError, match=r"a text of \d+ tokens .*\n.*max_new_tokens"):
        pellucid.generate(model, "def", max_new_tokens=40)
    with pytest.raises(TooLargeError, match=r"recording \d+ points of 1 × \d+ tokens"):
        pellucid.look(model, "def wrap(text):")


def test_free_memory_is_what_system_and_container_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 5 kB\nSwapFree: 1 kB\nHugePages_Total: 0\n")
    assert memory.free_bytes() == 6 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 10\ninactive_file 500\n")
    assert memory.free_bytes() == 2500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() == 6 * 1024


# --- a number for a text ---------------------------------------------------------------------------------------------


def by_hand(model: Decoder, ids: list[int]) -> float:
    """-ln p of all but the first of these ids, in one forward."""
    with torch.no_grad():
        log_p = model(torch.tensor([ids[:-1]])).double().log_softmax(-1)[0]
    return -float(sum(log_p[place, token] for place, token in enumerate(ids[1:])))


def test_a_text_is_measured_in_bits_of_its_bytes(model: Decoder, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("def wrap(é)")
    (tmp_path / "b.jsonl").write_text(json.dumps({"body": "return"}) + "\n")
    found = pellucid.evaluate(model, [tmp_path / "a.txt", tmp_path / "b.jsonl"], field="body")
    tokens = [model.tokenizer.encode(each, bos=True) for each in ("def wrap(é)", "return")]
    nats = sum(by_hand(model, ids) for ids in tokens)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (found.n_bytes, found.n_documents, found.n_tokens) == (18, 2, sum(map(len, tokens)) - 2)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 18)
    assert found.perplexity == pytest.approx(math.exp(nats / found.n_tokens))


def test_long_texts_are_read_in_windows_of_half_a_context(model: Decoder, text: Path) -> None:
    halves, whole = pellucid.evaluate(model, text), pellucid.evaluate(model, text, stride=64)
    assert halves.n_tokens == whole.n_tokens and halves.nats != whole.nats
    assert halves == pellucid.evaluate(model, text, stride=32)


def test_evaluating_prints_the_number(
    model: Decoder, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pellucid.save(model, tmp_path / "saved")
    assert run(["evaluate", "saved", str(text)]) == 0
    found = pellucid.evaluate(model, text)
    told = capsys.readouterr().out
    assert f"{found.bits_per_byte:.4f} bits per byte" in told and f"{found.perplexity:,.3f} perplexity" in told
    assert run(["evaluate", "saved"]) == 2


def test_a_continuation_is_scored_behind_its_context(model: Decoder) -> None:
    encode = model.tokenizer.encode
    whole = by_hand(model, encode("def wrap(text)", bos=True))
    before = by_hand(model, encode("def", bos=True))
    assert pellucid.logprob(model, "def", " wrap(text)") == pytest.approx(before - whole, rel=1e-4)
    assert pellucid.logprob(model, "def ", "wrap(text)") == pytest.approx(before - whole, rel=1e-4)
    assert pellucid.logprob(model, "", "def") == pytest.approx(-before, rel=1e-4)
    ids = encode("def wrap", bos=True)
    of_ids = by_hand(model, ids[:2]) - by_hand(model, ids)
    assert pellucid.logprob(model, ids[:2], ids[2:]) == pytest.approx(of_ids, rel=1e-4)
    with pytest.raises(UsageError, match="the other is ids"):
        pellucid.logprob(model, "def", [1])


# --- longer, from, and one's own -------------------------------------------------------------------------------------


def test_going_on_from_a_finished_model_is_said_and_works(
    trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(text), "--out", str(trained), *flags(steps=9)]) == 1
    assert f"pellucid train {text} --from {trained} --out {trained}-more" in capsys.readouterr().err
    more = ["--steps", "2", "--precision", "fp32", "--batch-size", "4", "--context", "16"]
    assert run(["train", str(text), "--from", str(trained), "--out", "more", *more]) == 0
    assert pellucid.load("more").spec == pellucid.load(trained).spec


def test_a_spec_of_ones_own_is_trained_on_texts_and_gone_on_with(text: Path, tmp_path: Path) -> None:
    spec = classic(300, 16, 1, 16, 8)
    spec.save(tmp_path / "spec.json")
    asked = ["--steps", "2", "--precision", "fp32", "--batch-size", "4", "--context", "16"]
    line = ["train", str(text), "--spec", "spec.json", "--out", "own", *asked]
    assert run(line) == 0 and pellucid.load("own").spec == spec
    assert run(line) == 0
    with pytest.raises(RunError, match="another spec of the model"):
        pellucid.train(text, "own", model=classic(300, 16, 2, 16, 8), steps=2)
    with pytest.raises(UsageError, match="depth = 3 decides nothing"):
        pellucid.train(text, "other", model=spec, depth=3)


def test_a_design_of_ones_own_is_named_by_its_function(text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pellucid.designs import classic\n"
        "def small(vocab_size, context, n_layers, d_model, head_dim):\n"
        "    return classic(vocab_size, context, 1, d_model, head_dim)\n"
        "def wrong(*sizes):\n    return 3\n"
    )
    result = pellucid.train(text, "own", **TINY | {"design": "mine.py:small"})  # pyright: ignore[reportArgumentType]
    assert result.model.spec == classic(280, 16, 1, 16, 8)
    for name, problem in {
        "mine.py:smal": "has no function 'smal'",
        "mine.py:wrong": "gave a int, no spec",
        "absent.py:small": "there is no file",
        "absent_module:small": "cannot be run",
    }.items():
        with pytest.raises(UsageError, match=problem):
            pellucid.train(text, "another", **TINY | {"design": name})  # pyright: ignore[reportArgumentType]
    assert not Path("another").exists()


def test_rows_of_json_are_read_by_the_field_that_is_named(tmp_path: Path) -> None:
    rows = [json.dumps({"body": part, "text": "wrong"}) for part in TEXT.split("\n\n") if part]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    pellucid.train("rows.jsonl", "out", **TINY | {"field": "body", "steps": 1})  # pyright: ignore[reportArgumentType]
    n_bytes = int(Run.load(Path("out") / RUN).reasons[0].value.split()[0].replace(",", ""))
    assert n_bytes > 0.8 * len(TEXT)  # one word a row would be far fewer


def test_info_of_so_many_parameters_says_what_training_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--params", "30M", "--context", "64"]) == 0
    told = capsys.readouterr().out
    for word in ("tokens", "FLOPs", "on this machine", "gradients", "optimiser", "activations"):
        assert word in told, word
    assert [number_of(each) for each in ("1B", "1.5m", "30_000_000")] == [10**9, 1_500_000, 30_000_000]
    for line in (["--params", "many"], ["modern", "--params", "1B", "--depth", "3"], ["gpt2", "--params", "1B"]):
        assert run(["info", *line]) == 2


# --- runs beside each other ------------------------------------------------------------------------------------------


def seeds(base: Trained, finals: list[float], **options: Any) -> list[Trained]:
    """Runs that differ in their seeds, with these results."""
    made = [replace(base.run.options, seed=seed, **options) for seed in range(len(finals))]
    runs = [replace(base.run, seed=asked.seed, options=asked) for asked in made]
    return [
        replace(base, name=f"{options}{n}", run=run, final=final)
        for n, (run, final) in enumerate(zip(runs, finals, strict=True))
    ]


def test_intervals_of_seeds_are_those_of_students_t(trained: Path) -> None:
    base = Trained.load(trained)
    one, other = groups([*seeds(base, [1.0, 2.0, 3.0]), *seeds(base, [4.0, 6.0, 8.0], dropout=0.5)])
    assert one.interval.mean == 2.0 and one.interval.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    difference = other.minus(one)  # variances 4/3 and 1/3: 2.94 degrees of freedom, taken as 2
    assert difference.mean == 4.0 and difference.half == pytest.approx(4.3027 * math.sqrt(5 / 3), rel=1e-4)
    assert Group((base,)).interval.half is None
    many = Group(tuple(seeds(base, [float(n % 2) for n in range(31)])))
    deviation = math.sqrt(sum((n % 2 - 15 / 31) ** 2 for n in range(31)) / 30 / 31)
    assert many.interval.half == pytest.approx(2.0423 * deviation, rel=1e-3)  # t of 30 degrees of freedom


def test_differences_between_runs_are_named_and_seeds_are_not(trained: Path) -> None:
    base = Trained.load(trained)
    assert differences(seeds(base, [1.0, 2.0])) == {}
    assert differences([base, *seeds(base, [1.0], dropout=0.5)]) == {"dropout": [0.0, 0.5]}
    with pytest.raises(RunError, match="measured differently"):
        groups([base, replace(base, measure="perplexity")])


def test_comparing_shows_curves_and_a_verdict(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    assert run(["compare", str(trained), str(other)]) == 0
    told = capsys.readouterr().out
    assert "bits per byte" in told and "at 50%" in told and "they differ in their seeds alone" in told
    for line in ([str(trained)], [str(trained), "absent"]):
        assert run(["compare", *line]) in (1, 2)
    capsys.readouterr()
    assert run(["compare", str(trained), str(other), f"{trained}/../{trained.name}"]) == 2
    assert "is given twice" in capsys.readouterr().err


# --- small -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train a.txt --minutes 5m", "--minutes 5"),
        ("train a.txt --minutes=90s", "--minutes 1.5"),
        ("train a.txt --steps 10k", "whole number"),
        ("generate m --quantize", "--quantised"),
        ("convert m --quantize q8_0", "did you mean --quantisation?"),
    ],
)
def test_a_misspelt_flag_or_a_unit_gets_a_hint(line: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert hint in capsys.readouterr().err


def test_a_full_context_is_said_also_to_a_pipe(
    model: Decoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pellucid.save(model, tmp_path / "saved")
    prompt = model.tokenizer.decode(model.tokenizer.encode(TEXT)[:63])  # with the token before it, a whole context
    assert pellucid.generate(model, prompt, sampling=Sampling(0.0))[0].finish_reason == "context"
    assert run(["generate", "saved", prompt, "--temperature", "0"]) == 0
    assert "context of 64 tokens is full" in capsys.readouterr().err


def test_a_run_that_fails_leaves_no_folder(text: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "empty").mkdir()
    for out in ("runs/deep/er", "empty"):
        assert run(["train", "short.txt", "--out", out]) == 1
    assert not Path("runs").exists() and not any(Path("empty").iterdir())
    pellucid.train(text, "kept", **TINY)
    assert run(["train", "short.txt", "--out", "kept"]) == 1 and (Path("kept") / RUN).exists()


def test_a_peak_is_measured_however_slow_the_first_product_is() -> None:
    assert precision._measure(torch.float32, "cpu", n=8, seconds=0.0) > 0
