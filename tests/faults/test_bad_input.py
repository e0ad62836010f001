"""What a person, a disk or another program can do wrong: a message that names it and what to do, and nothing lost.

Exit codes are those of ``pellucid.cli.main``: 1 something given is unusable, 2 the command line is wrong, 75 stopped
and saved.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

import pellucid
from pellucid.batch import Batch, Tokens
from pellucid.checkpoints.tensors import load_tensors, save_tensors
from pellucid.cli.main import COMMANDS, run
from pellucid.errors import CheckpointError, DataError, UsageError
from pellucid.generate.decode import generate
from pellucid.look.look import look
from pellucid.nn.base import Model
from pellucid.train import derive, loop, precision, trainer
from pellucid.train.metrics import read_metrics
from pellucid.train.objectives import NegativeLogLikelihood

SOURCE = Path(pellucid.__file__).parents[1]
TEXT = inspect.getsource(textwrap)
STEPS = 6
SIZES = (
    *("--depth", "2", "--d-model", "16", "--head-dim", "8", "--context", "16", "--batch-size", "2"),
    *("--vocab-size", "280", "--validation", "0.01", "--precision", "fp32"),
)
OPTIONS = (*SIZES, "--steps", str(STEPS), "--checkpoint-every", "2")


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose speed is known without measuring it, and a wide terminal, so that no message is cut."""
    monkeypatch.setattr(trainer.Trainer, "measure", lambda *_: 0.1)
    for module in (derive, loop):
        monkeypatch.setattr(module, "measure_peak", lambda *_: precision.Peak(2e11, 1e11))
    monkeypatch.setattr(trainer, "VALIDATION_BATCHES", 2)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)


def train_command(text: Path | str, out: Path | str, *more: str) -> list[str]:
    return ["train", str(text), "--out", str(out), *OPTIONS, *more]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def whole(text: Path, kept: Path) -> Path:
    """A finished run, made once; not to be changed."""
    if not (kept / "whole").exists():
        assert run(train_command(text, kept / "whole")) == 0
    return kept / "whole"


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def other(text: Path, kept: Path) -> Path:
    """A finished run of another size and another tokenizer."""
    if not (kept / "other").exists():
        assert run(train_command(text, kept / "other", "--d-model", "24", "--vocab-size", "290")) == 0
    return kept / "other"


@pytest.fixture
def halfway(text: Path, kept: Path, tmp_path: Path) -> Path:
    """A copy of a run that was stopped after step 5 of 6: it holds the checkpoints of steps 4 and 5."""
    if not (kept / "half").exists():

        @contextmanager
        def stop_after_step_5() -> Iterator[Callable[[], bool]]:
            answers = iter([False] * 4 + [True] * 9)
            yield lambda: next(answers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_stop_requests", stop_after_step_5)
            assert run(train_command(text, kept / "half")) == 75
    return Path(shutil.copytree(kept / "half", tmp_path / "half"))


def contents(folder: Path) -> dict[str, str]:
    """Every file but the lock, by the hash of its bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def result(folder: Path) -> dict[str, str]:
    """What a run has come to: equal for two runs of the same numbers, however often they were stopped."""
    found = contents(folder)
    return {name: found[name] for name in ("model.safetensors", "metrics.jsonl", "spec.json", "tokenizer.json")}


class Said:
    """Runs a command line in this process; what it said, in one line, without frames."""

    def __init__(self, capsys: pytest.CaptureFixture[str]):
        self.capsys = capsys

    def __call__(self, code: int, *arguments: str | Path) -> str:
        self.capsys.readouterr()
        got = run([str(a) for a in arguments])
        captured = self.capsys.readouterr()
        said = " ".join(re.sub("[─│╭╮╰╯]", " ", captured.err).split())
        assert got == code, f"exit code {got}: {said}"
        assert "Traceback" not in captured.err + captured.out
        self.out = captured.out
        return said


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


# --- the command line -------------------------------------------------------------------------------------------------

WRONG_LINES = [
    ("tarin", r"there is no command 'tarin' did you mean 'train'\?"),
    ("zzz", rf"there is no command 'zzz' known: {', '.join(sorted(COMMANDS))}"),
    ("train", r"no text was named pellucid train book\.txt"),
    ("train t.txt --stpes 5", r"Unrecognized options: --stpes.*Perhaps you meant: --steps"),
    ("train t.txt --learning_rat 5", r"Unrecognized options: --learning.rat.*Perhaps you meant: --learning-rate"),
    ("generate m hello --tmperature 1", r"Unrecognized options: --tmperature.*Perhaps you meant: --temperature"),
    ("look m hello --htlm x", r"Unrecognized options: --htlm.*Perhaps you meant: --html"),
    ("info modern --dpeth 3", r"Unrecognized options: --dpeth.*Perhaps you meant: --depth"),
    ("demo --minuets 3", r"Unrecognized options: --minuets.*Perhaps you meant: --minutes"),
    ("train t.txt --minutes 0", r"minutes = 0\.0 cannot be used --minutes must be greater than 0"),
    ("train t.txt --minutes -2", r"minutes = -2\.0 cannot be used"),
    ("train t.txt --minutes nan", r"minutes = nan cannot be used"),
    ("train t.txt --minutes inf", r"minutes = inf cannot be used --minutes must be .* finite"),
    ("train t.txt --steps -1", r"steps = -1 cannot be used --steps must be at least 1"),
    ("train t.txt --steps 0", r"steps = 0 cannot be used"),
    ("train t.txt --steps 5 --minutes 5", r"both minutes and steps are given give the one that should decide"),
    ("train t.txt --steps many", r"steps.*'many'"),
    ("train t.txt --steps 1.5", r"steps.*'1\.5'"),
    ("train t.txt --steps 5 --minutes soon", r"minutes.*'soon'"),
    ("train t.txt --optimizer moun", r"invalid choice 'moun' for argument '--optimizer'.*'muon'"),
    ("train t.txt --design modren", r"there is no design 'modren' did you mean 'modern'\?"),
    ("train t.txt --seed -1", r"seed = -1 cannot be used --seed must be from 0"),
    ("train t.txt --seed 99999999999999999999", r"seed = 9+ cannot be used"),
    ("train t.txt --weight-decay -0.1", r"weight_decay = -0\.1 cannot be used --weight-decay must be 0 or more"),
    ("train t.txt --learning-rate inf", r"learning_rate = inf cannot be used"),
    ("train t.txt --dropout 1", r"dropout = 1\.0 cannot be used --dropout must be from 0 up to, not including, 1"),
    ("train t.txt --validation nan", r"validation = nan cannot be used"),
    ("train t.txt --warmup -1", r"warmup = -1 cannot be used"),
    ("train t.txt --context 7", r"context = 7 cannot be used --context must be at least 8 tokens"),
    ("train t.txt --keep-checkpoints 0", r"keep_checkpoints = 0 cannot be used"),
    ("info modern --depth 0", r"depth = 0 cannot be used --depth must be at least 1"),
    ("info modern --d-model -4", r"d_model = -4 cannot be used"),
]


@pytest.mark.parametrize(("line", "message"), WRONG_LINES, ids=[line for line, _ in WRONG_LINES])
def test_wrong_command_lines(said: Said, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    assert re.search(message, (heard := said(2, *line.split()))), heard
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"], "nothing was begun"


UNUSABLE = [
    ("info nosuch", r"there is no design 'nosuch'"),
    ("info modren", r"there is no design 'modren' did you mean 'modern'\?"),
    ("info runs/nosuch", r"there is no folder runs/nosuch here, the hub's cache has no such model"),
    ("info ./runs/nosuch", r"runs/nosuch does not exist give a model folder"),
    ("convert nosuch --out x", r"nosuch does not exist"),
    ("info t.txt", r"t\.txt is not a model folder give one, a \.gguf file"),
    ("info .", r"holds no spec\.json"),
    ("generate nosuch hello", r"nosuch does not exist give the folder that `pellucid train --out` wrote"),
    ("look t.tx hello", r"t\.tx does not exist did you mean 't\.txt'\? Else give the folder"),
    ("look t.txt hello", r"t\.txt is not a model folder"),
    ("generate . hello", r"holds neither spec\.json"),
    ("train t.txt --run nosuch.json", r"nosuch\.json does not exist check the path"),
    ("train t.txt --run t.txt", r"t\.txt is not readable JSON"),
]


@pytest.mark.parametrize(("line", "message"), UNUSABLE, ids=[line for line, _ in UNUSABLE])
def test_unusable_names(said: Said, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    assert re.search(message, (heard := said(1, *line.split()))), heard


SAMPLING = [
    ("--temperature nan", r"temperature is nan it must be 0"),
    ("--temperature -1", r"temperature is -1\.0"),
    ("--top-k 0", r"top_k is 0 it must be a whole number of at least 1"),
    ("--top-p 1.5", r"top_p is 1\.5 it must be more than 0 and at most 1"),
    ("--min-p 2", r"min_p is 2\.0"),
    ("--repetition-penalty 0", r"repetition_penalty is 0\.0"),
    ("--max-new-tokens 0", r"max_new_tokens is 0 it must be at least 1"),
]


@pytest.mark.parametrize(("flags", "message"), SAMPLING, ids=[flags for flags, _ in SAMPLING])
def test_impossible_sampling(said: Said, whole: Path, flags: str, message: str) -> None:
    assert re.search(message, said(2, "generate", whole, "hello", *flags.split()))


def test_sizes_that_do_not_fit_together(said: Said, text: Path, tmp_path: Path) -> None:
    for flags, message in {
        "--head-dim 5": r"d_model = 16 is no multiple of head_dim = 5 change one of the two",
        "--head-dim 1": r"rotary turns pairs of dimensions, not 1 of 1 choose an even head_dim",
        "--d-model 3": r"d_model = 3 is no multiple of head_dim = 8",
    }.items():
        assert re.search(message, said(1, *train_command(text, tmp_path / "out", *flags.split())))
    assert "cannot be split into 3" in said(2, *train_command(text, tmp_path / "out", "--micro-batches", "3"))
    assert "vocab_size=256 is too small" in said(2, *train_command(text, tmp_path / "out", "--vocab-size", "256"))
    assert said(0, *train_command(text, tmp_path / "out")) == "", "and a right one then works in the same folder"


# --- texts ------------------------------------------------------------------------------------------------------------

TEXTS = [
    (None, r"bad\.txt does not exist check the name"),
    (b"", r"bad\.txt is empty name a file that holds text"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9, r"bad\.txt is binary, not text: byte 8 is NUL .* converted to text first"),
    (b"good line\n" * 99 + b"caf\xe9\n", r"bad\.txt is not UTF-8: byte 993 \(line 100\) is 0xe9 .*iconv"),
    (b"A few words.\n", r"the text has only \d+ tokens give more text"),
    (b"x", r"the text (has only|is too short).*give more text"),
]


@pytest.mark.parametrize(("data", "message"), TEXTS, ids=["missing", "empty", "binary", "latin", "words", "letter"])
def test_bad_texts(said: Said, tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "bad.txt").write_bytes(data)
    heard = said(1, *train_command("bad.txt", "out"))
    assert re.search(message, heard), heard
    assert not (tmp_path / "out" / "run.json").exists() and not list(tmp_path.rglob("*.tmp"))


def test_text_shorter_than_a_context(said: Said, text: Path, tmp_path: Path) -> None:
    heard = said(1, *train_command(text, tmp_path / "out", "--context", "100000"))
    assert re.search(r"the text has \d+ tokens, too few for a context of 100000 give more text, or a shorter", heard)


def one_line(path: Path, megabytes: int) -> Path:
    with path.open("w", encoding="utf-8") as stream:
        for n in range(megabytes):
            stream.write((f"word{n} " * 200_000)[:1_000_000])
    return path


def test_one_line_of_a_megabyte(said: Said, tmp_path: Path) -> None:
    """No error at all: where lines end means nothing to a model."""
    said(0, *train_command(one_line(tmp_path / "line.txt", 1), tmp_path / "out", "--validation", "0.0001"))
    assert "finished model" not in said(0, "generate", tmp_path / "out", "word", "--max-new-tokens", "2")


@pytest.mark.slow
def test_one_line_of_100_megabytes(said: Said, tmp_path: Path) -> None:
    said(0, *train_command(one_line(tmp_path / "line.txt", 100), tmp_path / "out", "--validation", "0.00001"))


def test_standard_input_that_is_not_text(said: Said, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (["generate", whole, "-"], ["look", whole, "-"], ["chat", whole, "--template", os.devnull]):
        reader, writer = os.pipe()
        os.write(writer, b"caf\xe9")
        os.close(writer)
        with open(reader, encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            assert re.search(r"standard input is not UTF-8: byte 3 is 0xe9 .*iconv", said(1, *line))


# --- folders and disks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a_file", r"cannot write .*a_file: File exists a file stands where a folder should be: .*--out"),
        ("a_file/below", r"cannot write .*a_file/below: Not a directory a part of this path is a file: .*--out"),
        ("n" * 300, r"cannot write n+: File name too long .*--out"),
        ("/proc/nosuch", r"cannot write /proc/nosuch: .*--out"),
    ],
)
def test_folders_that_cannot_be_written(said: Said, text: Path, tmp_path: Path, out: str, message: str) -> None:
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    (tmp_path / "a_file").write_text("precious")
    heard = said(1, *train_command(text, out))
    assert re.search(message, heard), heard
    assert (tmp_path / "a_file").read_text() == "precious"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_error_of_the_disk_names_file_and_remedy(
    said: Said, text: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission bits do not stop root, who may run this: so the answer is played."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.replace", refuse)
    heard = said(1, *train_command(text, tmp_path / "out"))
    assert re.search(rf"cannot write .*: {os.strerror(number)} .*--out", heard), heard
    assert not list(tmp_path.rglob("*.tmp"))


def disk_full(monkeypatch: pytest.MonkeyPatch, where: str, halfway: Path) -> None:
    """From now on the disk has no room for a file's content, its rename, or one more line."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_in_the_middle(tensors: object, path: Path, *_: object) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError(f"Error while serializing: I/O error: No space left (os error {errno.ENOSPC})")

    if where in ("os.fsync", "os.replace"):
        real: Any = getattr(os, where.removeprefix("os."))
        steps = len(read_metrics(halfway / "metrics.jsonl"))

        def full_after_a_step(*args: Any) -> Any:
            trained = len(read_metrics(halfway / "metrics.jsonl")) > steps
            return full() if trained else real(*args)

        monkeypatch.setattr(where, full_after_a_step)
    elif where == "weights":
        monkeypatch.setattr("pellucid.checkpoints.tensors.save_file", full_in_the_middle)
    else:
        monkeypatch.setattr("pellucid.train.metrics.Recorder.write", _into_dev_full)


def _into_dev_full(self: Any, name: str, step: int, **values: float) -> None:
    """The record's file is the device that is always full."""
    from pellucid.train.metrics import Recorder

    for stream in self._streams.values():
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    Recorder.__dict__["real_write"](self, name, step, **values)


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "weights", "record"])
def test_disk_full(said: Said, text: Path, whole: Path, halfway: Path, where: str) -> None:
    """Half-way, at the next checkpoint or line: the earlier checkpoints stay, and with room again the run goes on."""
    from pellucid.train.metrics import Recorder

    if where == "record" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    before = contents(halfway / "checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "real_write", Recorder.write, raising=False)
        disk_full(patch, where, halfway)
        heard = said(1, *train_command(text, halfway))
    assert re.search(r"cannot write .*: No space left on device free some space or choose another folder", heard), heard
    assert contents(halfway / "checkpoints") == before
    assert not list(halfway.rglob("*.tmp")) and not (halfway / "spec.json").exists()
    assert said(0, *train_command(text, halfway)) == ""
    assert result(halfway) == result(whole)


def test_a_disk_that_takes_no_larger_file(said: Said, text: Path, whole: Path, tmp_path: Path) -> None:
    """The kernel itself refuses, in the middle of the tensors: what no Python function can pretend."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # the token store fits, the weights do not
    try:
        heard = said(1, *train_command(text, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(r"cannot write .*safetensors: File too large .*--out", heard), heard
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "out" / "spec.json").exists()
    said(0, *train_command(text, tmp_path / "out"))
    assert result(tmp_path / "out") == result(whole)


def test_folder_in_use(said: Said, text: Path, halfway: Path) -> None:
    """By another process, until it ends, however it ends."""
    code = "import sys, filelock as f\nwith f.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(halfway / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        before = contents(halfway)
        heard = said(1, *train_command(text, halfway))
        assert re.search(r"half is in use by another run wait for it to end, or choose another folder", heard)
        assert contents(halfway) == before
        holder.kill()
    said(0, *train_command(text, halfway))


# --- other options, other texts ---------------------------------------------------------------------------------------


def test_conflicting_options_on_resume(said: Said, text: Path, other: Path, halfway: Path, tmp_path: Path) -> None:
    before = contents(halfway)
    (tmp_path / "another.txt").write_text(TEXT, encoding="utf-8")
    for arguments, message in (
        (train_command(text, halfway, "--d-model", "32"), r"half holds another run; this one has d_model = 32, not 16"),
        (train_command(text, halfway, "--steps", "9", "--seed", "1"), r"has steps = 9, not 6; seed = 1, not 0"),
        (train_command("another.txt", halfway), r"has the texts another\.txt, not .*text\.txt"),
        (train_command(text, halfway, "--run", str(other / "run.json")), r"d_model = 16, not 24"),
    ):
        code = 2 if "--run" in arguments else 1
        assert re.search(message, (heard := said(code, *arguments))), heard
    run_other = ["train", str(text), "--out", str(halfway), "--run", str(other / "run.json")]
    assert "holds another run than the one to be repeated" in said(1, *run_other)
    assert contents(halfway) == before


def test_a_text_that_has_changed(said: Said, whole: Path, halfway: Path) -> None:
    saved = json.loads((halfway / "run.json").read_text())
    text = Path(saved["feed"]["texts"][0])
    try:
        text.write_text(TEXT + "one more line\n", encoding="utf-8")
        heard = said(1, *train_command(text, halfway))
        assert re.search(r"text\.txt is not what it was when this run began restore the text, or start anew", heard)
    finally:
        text.write_text(TEXT, encoding="utf-8")
    said(0, *train_command(text, halfway))
    assert result(halfway) == result(whole)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("run.json", '"warmup"', '"wramup"', r"run\.json: .*no field 'wramup'.*restore .*run\.json from a checkpoint"),
        ("run.json", "{", "", r"run\.json is not readable JSON.*restore"),
        (
            "run.json",
            '"micro_batches": 1,\n    "precision"',
            '"micro_batches": 0,\n    "precision"',
            r"micro_batches = 0 cannot be",
        ),
        ("tokenizer.json", "{", "", r"tokenizer\.json is not readable JSON: .*restore it from a copy"),
    ],
)
def test_a_damaged_run_folder(
    said: Said, text: Path, halfway: Path, file: str, old: str, new: str, message: str
) -> None:
    path = halfway / file
    good = path.read_text(encoding="utf-8")
    assert old in good
    path.write_text(good.replace(old, new, 1), encoding="utf-8")
    assert re.search(message, (heard := said(1, *train_command(text, halfway)))), heard
    path.write_text(good, encoding="utf-8")
    said(0, *train_command(text, halfway))


def test_the_tokenizer_of_another_run(said: Said, text: Path, other: Path, whole: Path, halfway: Path) -> None:
    shutil.copy(other / "tokenizer.json", halfway / "tokenizer.json")
    heard = said(1, *train_command(text, halfway))
    assert re.search(r"the tokenizer in .*half is not the one of this run restore tokenizer\.json from a check", heard)
    shutil.copy(halfway / "checkpoints" / "step-00000005" / "tokenizer.json", halfway / "tokenizer.json")
    said(0, *train_command(text, halfway))
    assert result(halfway) == result(whole)


# --- checkpoints and models that are damaged or belong to something else ----------------------------------------------


def flip(path: Path, place: float = 0.7) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint(said: Said, text: Path, whole: Path, halfway: Path) -> None:
    """The one before is used, and said; the result is the same. (All damages: tests/properties/test_runs.py.)"""
    flip(halfway / "checkpoints" / "step-00000005" / "model.safetensors")
    assert said(0, *train_command(text, halfway)) == ""
    shown = " ".join(said.out.split())
    assert "checkpoint passed over:" in shown and "model.safetensors is damaged" in shown, shown
    assert "going on from step-00000004" in shown
    assert result(halfway) == result(whole)


def test_only_damaged_checkpoints(said: Said, text: Path, halfway: Path) -> None:
    flip(halfway / "checkpoints" / "step-00000005" / "optimizer.safetensors")
    truncate(halfway / "checkpoints" / "step-00000004" / "model.safetensors")
    before = contents(halfway / "checkpoints")
    heard = said(1, *train_command(text, halfway))
    assert re.search(r"no checkpoint in .* is valid: .*is damaged.* restore one from a copy, or remove", heard), heard
    assert contents(halfway / "checkpoints") == before


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", flip, r"model\.safetensors is damaged: its contents do not match the hash inside"),
        ("model.safetensors", truncate, r"model\.safetensors is damaged: .*use another copy, or an earlier checkpoint"),
        ("model.safetensors", lambda p: p.write_bytes(b""), r"model\.safetensors is damaged"),
        ("model.safetensors", lambda p: p.write_bytes(b"\xff" * 999), r"model\.safetensors is damaged"),
        ("model.safetensors", Path.unlink, r"model\.safetensors does not exist"),
        ("spec.json", Path.unlink, r"holds no finished model its training has not finished"),
        ("spec.json", truncate, r"spec\.json is not readable JSON: .*restore it"),
        ("tokenizer.json", Path.unlink, r"tokenizer\.json is missing or not the one this model was trained with"),
        ("tokenizer.json", flip, r"tokenizer\.json is missing or not the one this model was trained with restore it"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "look"])
def test_a_damaged_model(said: Said, model: Path, command: str, file: str, damage: Any, message: str) -> None:
    damage(model / file)
    before = contents(model)
    assert re.search(message, (heard := said(1, command, model, "hello"))), heard
    assert contents(model) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], r"model\.safetensors was saved with another spec\.json restore the pair"),
        (["spec.json"], r"model\.safetensors was saved with another spec\.json"),
        (["model.safetensors", "spec.json"], r"tokenizer\.json is missing or not the one this model was trained with"),
        (["tokenizer.json"], r"tokenizer\.json is missing or not the one this model was trained with"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "look"])
def test_files_of_two_models(
    said: Said, model: Path, other: Path, command: str, names: list[str], message: str
) -> None:
    for name in names:
        shutil.copy(other / name, model / name)
    assert re.search(message, (heard := said(1, command, model, "hello"))), heard


def test_a_finished_model_that_is_damaged_can_be_written_anew(said: Said, text: Path, whole: Path, model: Path) -> None:
    flip(model / "model.safetensors")
    heard = said(1, *train_command(text, model))
    assert re.search(r"model\.safetensors is damaged.* remove .*spec\.json and run the same command again", heard), (
        heard
    )
    (model / "spec.json").unlink()
    said(0, *train_command(text, model))
    assert result(model) == result(whole)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"n_kv_heads"', '"n_vk_heads"', r"AttentionSpec has no field 'n_vk_heads' did you mean 'n_kv_heads'\?"),
        ('"RMSNormSpec"', '"RMSNromSpec"', r"unknown type 'RMSNromSpec' did you mean 'RMSNormSpec'\?"),
        ('"context": 16', '"context": "16"', r"context: expected int, found '16'"),
        ('"context": 16', '"context": 1', r"context = 1"),
        ('"times": 2', '"times": 0', r"times: 0 is not a number of repeats"),
        ('"vocab_size": 280', '"vocab_size": 1000000000000', r"was saved with another spec\.json"),
    ],
)
def test_a_wrong_spec_file(said: Said, model: Path, old: str, new: str, message: str) -> None:
    written = (model / "spec.json").read_text()
    assert old in written
    (model / "spec.json").write_text(written.replace(old, new, 1))
    assert re.search(rf"spec\.json.*{message}|{message}", (heard := said(1, "generate", model, "hello"))), heard
    if "another" not in message:
        assert re.search(rf"spec\.json: .*{message}", (heard := said(1, "info", model / "spec.json"))), heard


def test_every_flipped_bit_of_a_small_file_is_seen(tmp_path: Path) -> None:
    """Header, names, offsets, hash and data: refused, or (in what is only written beside them) without consequence."""
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
    save_tensors(tmp_path / "good", tensors, spec="abc")
    good = (tmp_path / "good").read_bytes()
    refused = 0
    for at in range(len(good)):
        for bit in (0, 4, 7):
            (tmp_path / "bad").write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
            try:
                found, _ = load_tensors(tmp_path / "bad")
            except CheckpointError:
                refused += 1
            else:
                assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert refused > 0.9 * 3 * len(good)
    for length in range(len(good)):
        (tmp_path / "bad").write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            load_tensors(tmp_path / "bad")


# --- tokens and prompts -----------------------------------------------------------------------------------------------


def test_token_ids_out_of_range(whole: Path) -> None:
    loaded = pellucid.load(whole)
    for number in (loaded.spec.vocab_size, -1):
        ids = torch.tensor([[1, number]])
        with pytest.raises(DataError, match=rf"token id {number} is outside the vocabulary 0\.\.279\n.*tokenizer"):
            loaded(ids)
        with pytest.raises(DataError, match=f"token id {number} is outside"):
            loaded.nll_sum(Batch(ids, Tokens.plain(1, 2), torch.tensor([[0, 0]])))
        with pytest.raises(UsageError, match=rf"token id {number} at place 1.*\n.*own tokenizer"):
            generate(loaded, [[1, number]])
        with pytest.raises(UsageError, match=rf"token id {number} at place 1"):
            look(loaded, [1, number])


def test_prompts_that_cannot_be_read(said: Said, whole: Path) -> None:
    for command in ("generate", "look"):
        heard = said(2, command, whole, TEXT)
        assert re.search(r"is [\d,]+ tokens long, but the model's context is 16", heard), heard
        heard = said(1, command, whole, os.fsdecode(b"caf\xe9"))
        assert re.search(r"unpaired surrogate.*UTF-8", heard), heard
    assert "the text is empty" in said(2, "look", whole, "")
    assert "top = 0" in said(2, "look", whole, "hello", "--top", "0")
    heard = said(1, "look", whole, "hello", "--html", whole / "spec.json" / "x.html")
    assert re.search(r"cannot write .*x\.html: File exists a file stands where a folder should be", heard)


# --- losses that are not finite ---------------------------------------------------------------------------------------


class NaNAt(NegativeLogLikelihood):
    """The loss is NaN in these calls, counted from 0."""

    def __init__(self, calls: set[int]):
        self.calls, self.call = calls, -1

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, ""]:
        self.call += 1
        return model.nll_sum(batch) * (math.nan if self.call in self.calls else 1.0)


def test_nonfinite_loss_stops(said: Said, text: Path, whole: Path, tmp_path: Path) -> None:
    """The batch and the weights are saved, and are those of the step; without the cause the run goes on as if never."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "objective_for", lambda *_: NaNAt({4}))
        heard = said(1, *train_command(text, tmp_path / "out"))
    assert re.search(r"step 4: loss NaN, .* is not finite; batch and weights are in .*nonfinite-00000004", heard), heard
    assert re.search(r"lower --learning-rate.*--on-nonfinite skip", heard)
    saved, _ = load_tensors(tmp_path / "out" / "nonfinite-00000004.safetensors")
    assert torch.equal(saved["0.labels"][:, :-1], saved["0.ids"][:, 1:])
    model = pellucid.load(tmp_path / "out" / "checkpoints" / "step-00000004")
    assert all(torch.equal(saved[f"weights.{name}"], weight) for name, weight in model.state_dict().items())
    batch = Batch(saved["0.ids"], Tokens(saved["0.pos"], saved["0.seg"]), saved["0.labels"])
    said(0, *train_command(text, tmp_path / "out"))
    assert result(tmp_path / "out") == result(whole)
    replayed = float(model.nll_sum(batch).detach()) / batch.labels.numel()
    (recorded,) = [line["loss"] for line in read_metrics(whole / "metrics.jsonl") if line["step"] == 5]
    assert replayed == pytest.approx(recorded, rel=1e-6)


def test_nonfinite_loss_skipped(said: Said, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step on, when there is no optimiser state yet, and with a checkpoint of that."""
    monkeypatch.setattr(trainer, "objective_for", lambda *_: NaNAt({0, 3}))
    said(0, *train_command(text, tmp_path / "out", "--on-nonfinite", "skip", "--checkpoint-every", "1"))
    shown = " ".join(said.out.split())
    assert all(re.search(rf"step {n}: loss NaN, .*: skipped; batch and weights are in", shown) for n in (0, 3))
    losses = [line["loss"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in line]
    assert [math.isnan(loss) for loss in losses] == [True, False, False, True, False, False]


def test_nonfinite_losses_without_end(said: Said, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "objective_for", lambda *_: NaNAt(set(range(99))))
    monkeypatch.setattr(loop, "MAX_SKIPS", 3)
    heard = said(1, *train_command(text, tmp_path / "out", "--on-nonfinite", "skip"))
    assert re.search(r"step 2: .* is not finite", heard) and "--on-nonfinite" not in heard, heard


# --- as processes -----------------------------------------------------------------------------------------------------


def process(*arguments: str | Path, **more: Any) -> subprocess.Popen[str]:
    paths = f"{SOURCE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": paths, "PELLUCID_CACHE": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pellucid", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", **more
    )


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    """Outside of this process, where no test's hook and no caught exception helps."""
    for arguments, code, message in (
        (["trian"], 2, "did you mean 'train'?"),
        (["train", "missing.txt", "--steps", "1"], 1, "missing.txt does not exist"),
    ):
        with process(*arguments) as child:
            out, err = child.communicate()
        assert child.returncode == code and message in err and "Traceback" not in out + err


def test_signals_save_and_the_same_command_goes_on(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    endless = ["train", text, "--out", out, *SIZES, "--steps", "1000000", "--checkpoint-every", "1000000"]
    seen = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        with process(*endless) as child:
            while child.poll() is None and len(read_metrics(out / "metrics.jsonl")) <= seen:
                time.sleep(0.05)
            child.send_signal(number)
            shown, err = child.communicate()
        assert child.returncode == 75, err
        assert "Traceback" not in shown + err
        told = re.search(r"stopped after step (\d+) of 1000000; saved\s+run the same command again to go on", err)
        assert told is not None, err
        lines = read_metrics(out / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, int(told[1]) + 1)), "every step once"
        assert (out / "checkpoints" / f"step-{int(told[1]):08d}" / "model.safetensors").is_file()
        assert (f"going on from step-{seen:08d}" in shown) == (seen > 0)
        seen = int(told[1])
