"""What a person reads and types at the command line: true help, prompts that can be edited, ends that are said."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pellucid
from pellucid import build
from pellucid.checkpoints.native import save_model
from pellucid.cli import chat as chat_command
from pellucid.cli.main import COMMANDS, run
from pellucid.generate.sample import Sampling
from pellucid.spec import AttentionSpec, BlockSpec, Causal, DecoderSpec, EmbedSpec, FFNSpec, RMSNormSpec, StackSpec
from pellucid.text.tokenizer import Tokenizer
from pellucid.verify.open import open_subject
from pellucid.verify.report import Finding, Report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers that has learnt nothing."""
    block = BlockSpec(AttentionSpec(2, 2, 8, Causal()), FFNSpec(32), RMSNormSpec())
    model = build(DecoderSpec(257, 64, EmbedSpec(), StackSpec(16, (block,) * 2, RMSNormSpec())))
    model.tokenizer = Tokenizer.train(["no merges"], 257)
    save_model(model, path := tmp_path_factory.mktemp("models") / "small")
    return path


# --- help ------------------------------------------------------------------------------------------------------------


def helped(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert run([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_of_values_by_name(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No default that says nothing, no {None}|INT; positionals by their names; every flag is explained."""
    text = helped(command, capsys, monkeypatch)
    assert not re.search(r"\(default: (None|'')?\)|options options", text), text
    assert not re.search(r"(?<!--clip )\{None", text), text  # of which None is a value to give
    for name, parameter in inspect.signature(
        getattr(import_module(f"pellucid.cli.{command}"), command)
    ).parameters.items():
        if "Positional" in str(parameter.annotation):
            shown = name.upper() if parameter.default is parameter.empty else f"[{name.upper()}]"
            assert re.search(rf"usage: .* {re.escape(shown)}", text), shown
    assert run([command, "--nosuchflag"]) == 2


def test_help_of_training_explains_every_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = helped("train", capsys, monkeypatch)
    assert "--depth INT" in text and "Layers; the width follows" in text
    assert "--precision {fp32,bf16}" in text and "--minutes FLOAT" in text and "(default: muon)" in text


def test_missing_argument_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate"]) == 2
    assert "MODEL" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_defaults_that_help_shows_are_those_of_sampling(command: str) -> None:
    function = getattr(import_module(f"pellucid.cli.{command}"), command)
    shown = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    ours = Sampling(temperature=shown["temperature"])
    assert {name: shown[name] for name in vars(ours)} == vars(ours)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_terminal_is_told_how_a_text_ended(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")  # no colours and no bars between the words
    assert run(["generate", str(folder), "the", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("the") and told.out.endswith("\n")
    assert re.search(r"3 tokens, [\d.]+ a second; as many as --max-new-tokens says", told.err), told.err


def test_a_pipe_gets_the_text_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(folder), "the", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    text = pellucid.generate(pellucid.load(folder), "the", max_new_tokens=3, sampling=Sampling(temperature=0.0))[0].text
    assert capsys.readouterr() == (f"the{text}\n", "")


def test_an_interrupted_text_ends_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[str]:
        yield " cat"
        raise KeyboardInterrupt

    monkeypatch.setattr("pellucid.generate.decode.stream", interrupted)
    assert run(["generate", str(folder), "the"]) == 130
    assert capsys.readouterr() == ("the cat\n", "interrupted\n")


def test_the_best_texts_of_a_search_come_with_their_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", str(folder), "the", "--max-new-tokens", "3"]
    assert run([*asked, "--beams", "3", "--length-penalty", "0.5", "--early-stopping", "never", "--n-best", "2"]) == 0
    model, policy = pellucid.load(folder), pellucid.Beams(3, 0.5, "never")
    ranked = pellucid.generate(model, "the", max_new_tokens=3, policy=policy, n=2)
    shown = [f"[{i}]  score {c.score}\nthe{c.text}\n" for i, c in enumerate(ranked, 1)]
    assert capsys.readouterr() == ("".join(shown), "")


def test_looked_up_guesses_write_the_same_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    for more in ([], ["--lookup"], ["--draft", str(folder), "--guesses", "2"]):
        assert run(["generate", str(folder), "the", "--max-new-tokens", "4", "--temperature", "0", *more]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--beams 2 --lookup", "--beams searches, and takes no guesses"),
        ("--beams 2 --temperature 0.5", "--beams searches, and draws nothing"),
        ("--beams 2 --top-k 5", "--beams searches, and draws nothing"),
        ("--beams 2 --n 3", "3 texts of each prompt, but 2 beams"),
        ("--beams 0", "width is 0"),
        ("--length-penalty 2", "--length-penalty is for beam search"),
        ("--early-stopping never", "--early-stopping is for beam search"),
        ("--lookup --draft x", "--draft and --lookup are both given"),
        ("--guesses 3", "--guesses is given, but nobody guesses"),
        ("--draft no/such/folder/at/all", "no/such/folder/at/all does not exist"),
    ],
)
def test_flags_that_clash_are_refused_by_name(
    flags: str, problem: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", str(folder), "the", *flags.split()]) != 0
    told = capsys.readouterr()
    assert told.out == "" and problem in told.err


# --- looking ---------------------------------------------------------------------------------------------------------


def test_the_page_is_there_though_nobody_reads_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("pellucid.look.terminal.show", closed)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # what is done with the pipe then
    assert run(["look", str(folder), "the", "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").is_file()


def test_a_model_is_called_what_it_was_called(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link has the name that its maker chose, not that of what it leads to."""
    (tmp_path / "mine").symlink_to(folder)
    assert run(["look", str(tmp_path / "mine"), "the"]) == 0
    assert capsys.readouterr().out.startswith("mine ")
    assert open_subject(str(tmp_path / "mine")).name == "mine"


# --- talking ---------------------------------------------------------------------------------------------------------


def test_line_editing_knows_how_wide_the_prompt_is() -> None:
    """Else it overwrites the prompt as soon as a line is redrawn; without it the marks would be printed."""
    prompt = chat_command._prompt(True, True)
    assert re.sub("\x01[^\x02]*\x02", "", prompt) == "you › "
    assert chat_command._prompt(True, False) == chat_command._prompt(False, False) == "you › "
    assert re.sub("\x1b[^m]*m", "", chat_command._prompt(False, True)) == "you › "


# --- verifying -------------------------------------------------------------------------------------------------------


def test_a_narrow_table_leaves_room_for_the_promises() -> None:
    promise = "a row gives the same alone as among others"
    findings = Finding("batch", promise, "pass"), Finding("future-gradient", promise, "not applicable")
    for width, word in ((80, "n/a"), (140, "not applicable")):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(Report("model", "decoder", 0, findings))
        (row,) = (line for line in captured.get().splitlines() if line.startswith("future-gradient "))
        assert f" {word} " in row


# --- the same in Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["generate", "train", "verify"])
def test_a_room_that_is_a_verb_says_how_it_is_called(verb: str) -> None:
    room = getattr(pellucid, verb)
    module, name = re.findall(r"is ``(pellucid\.[\w.]+)\.(\w+)``", room.__doc__)[0]
    assert inspect.signature(room) == inspect.signature(getattr(import_module(module), name))


def test_a_file_of_ours_stands_for_its_folder(folder: Path) -> None:
    assert pellucid.load(folder / "model.safetensors").spec == pellucid.load(folder).spec
