"""What a person may name by mistake or be given in malice, at the command line: one message, nothing left behind."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import put_socket

import pellucid
from pellucid.checkpoints.export import to_hf
from pellucid.cli.main import run
from pellucid.designs import modern
from pellucid.errors import LONGEST, CheckpointError, PellucidError, shown, suggest
from pellucid.files import write_folder, write_text
from pellucid.verify.report import Finding, Report

Make = Callable[[Path], object]
PICKLE = pickle.dumps({"weight": 1})
ODD: dict[str, Make] = {
    "empty.gguf": lambda path: path.write_bytes(b""),
    "folder.gguf": lambda path: path.mkdir(),
    "socket.gguf": put_socket,
    "loop.gguf": lambda path: path.symlink_to(path),
    "nowhere.gguf": lambda path: path.symlink_to("none"),
    "device.gguf": lambda path: path.symlink_to("/dev/null"),
    "pickle.gguf": lambda path: path.write_bytes(PICKLE),
    "colour[red].GGUF": lambda path: path.write_bytes(b"GGUF"),
    "\x1b[2Jscreen.gguf": lambda path: path.write_bytes(b"GGUF"),
    **{f"weights.{kind}": lambda path: path.write_bytes(PICKLE) for kind in ("bin", "pt", "pth", "ckpt", "pkl")},
    **{f"other.{kind}": lambda path: path.write_bytes(PICKLE) for kind in ("safetensors", "npz", "h5", "json", "txt")},
    "folder of a pickle": lambda path: (path.mkdir(), (path / "pytorch_model.bin").write_bytes(PICKLE)),
    "sockets": lambda path: (path.mkdir(), *(put_socket(path / file) for file in ("config.json", "spec.json"))),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ODD)
def test_one_message_and_nothing_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / name, tmp_path / "out"
    ODD[name](path)
    before = sorted(tmp_path.iterdir())
    for command in (["info"], ["generate"], ["convert", "--out", str(out)], ["verify"]):
        assert run([command[0], str(path), *command[1:]]) in (1, 2)
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and shown(name) in said.err and shown(said.err) == said.err
        assert not said.out and "Traceback" not in said.err
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_a_pickle_is_refused_with_the_remedy(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"weights.{kind}").write_bytes(PICKLE)
    for command in ("info", "generate", "verify"):
        assert run([command, str(tmp_path / f"weights.{kind}")]) == 1
        heard = capsys.readouterr().err
        assert "a pickle, which can run code" in heard and "convert it once" in heard


def test_a_name_that_no_file_can_have_is_refused() -> None:
    for name in ("a" * 5000, "a\0b", "\ud800"):
        with pytest.raises(CheckpointError):
            pellucid.load(name)


def test_a_file_that_names_its_own_folder_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_hf(pellucid.build(modern(50, 32, 2, 16, 8)), tmp_path / "model")
    assert run(["info", str(tmp_path / "model" / "model.safetensors")]) == 0
    assert "50 × 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("config.json", '{"model_type": []}', "transformers cannot load"),
        ("config.json", "[]", "is no JSON object"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"x": "../x.safetensors"}}',
            "only safetensors files",
        ),
        ("tokenizer.json", "{", "transformers cannot load the tokenizer"),
        ("tokenizer_config.json", "[]", "transformers cannot load the tokenizer"),
    ],
)
def test_failures_of_transformers_on_a_folder_become_errors_of_ours(
    file: str, text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    to_hf(pellucid.build(modern(50, 32, 2, 16, 8)), folder)
    (folder / file).write_text(text)
    if "index" in file:
        (folder / "model.safetensors").unlink()
    assert run(["verify", str(folder), "--only", "batch"]) == 1
    heard = capsys.readouterr().err
    assert problem in " ".join(heard.split()) and "Traceback" not in heard


def test_a_report_has_no_power_over_the_terminal() -> None:
    from rich.console import Console

    found = Finding("text", "a promise", "fail", detail="\x1b[2J\u202e[red]")
    console = Console(width=100)
    with console.capture() as heard:
        console.print(Report("a\x1b[2J[red]b", "decoder", 0, (found,)))
    assert "\x1b" not in heard.get() and "\\u001b[2J\\u202e[red]" in heard.get() and "[red]b" in heard.get()


def test_an_older_folder_stays_until_the_new_one_stands(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def begin(aside: Path) -> None:
        (aside / "a").write_text("old")

    write_folder(folder, begin)

    def fill(aside: Path) -> None:
        (aside / "b").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(PellucidError, match="No space left"):
        write_folder(folder, fill)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (folder / "a").read_text() == "old"
    write_folder(folder, begin)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "a"]


def test_an_older_folder_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace, failed = tmp_path / "model", os.replace, list[Path]()
    write_folder(folder, lambda aside: write_text(aside / "a", "old"))

    def failing(source: Path, target: Path) -> None:
        if target == folder and not failed:  # the new one; the old one has just been moved aside
            failed.append(source)
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(PellucidError, match="Input/output error"):
        write_folder(folder, lambda aside: write_text(aside / "b", "new"))
    assert failed and [path.name for path in tmp_path.rglob("*")] == ["model", "a"]


def test_errors_are_bounded_and_harmless() -> None:
    error = PellucidError("\x1b[2J\ud800" + "a" * 10**6, suggest("b" * 10**6, (f"{n}" for n in range(10**5))))
    assert error.problem.startswith("\\u001b[2J\\ud800aaa") and error.problem.endswith("characters more")
    assert len(str(error)) < 2 * LONGEST + 200
