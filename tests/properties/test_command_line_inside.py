"""`pellucid look --patch, --trace, --heads, --explain, --facts` and `generate --steer`: what is asked for is shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid import build
from pellucid.checkpoints.native import save_model
from pellucid.cli.main import run
from pellucid.interpret.steering import Steering
from pellucid.nn.models import Decoder
from pellucid.spec import AttentionSpec, BlockSpec, Causal, DecoderSpec, EmbedSpec, FFNSpec, RMSNormSpec, StackSpec
from pellucid.text.tokenizer import Tokenizer

CLEAN, CORRUPT = "a cat", "a dog"
ASKED = {  # flags -> titles of their panels
    ("--patch", CLEAN, CORRUPT): ["Patching: states", "Patching: heads"],
    ("--trace", "cat"): [f"Causal trace: {of}" for of in ("the stream", "feed-forward layers", "attention")],
    ("--explain",): ["Why ", "Is that what it reads?", "Does it depend on where attention looks?"],
    ("--facts",): ["Memories that say "],
    ("--heads",): ["Habits of heads"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers that continues both prompts differently."""
    model = small(16)
    model.tokenizer = Tokenizer.train(["no merges"], 257)
    save_model(model, path := tmp_path_factory.mktemp("models") / "small")
    return path


def small(width: int) -> Decoder:
    block = BlockSpec(AttentionSpec(2, 2, 8, Causal()), FFNSpec(32), RMSNormSpec())
    torch.manual_seed(0)
    return build(DecoderSpec(257, 64, EmbedSpec(), StackSpec(width, (block,) * 2, RMSNormSpec())))


def told(folder: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["look", str(folder), *flags, "--only", "inside"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("flags", ASKED)
def test_a_flag_shows_its_panels_and_no_others(
    folder: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = told(folder, CLEAN, *flags, capsys=capsys)
    for asked, titles in ASKED.items():
        for title in titles:
            assert (re.search(rf"^{re.escape(title)}", out, re.MULTILINE) is not None) == (asked == flags), title


def test_all_flags_together_are_panels_of_the_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "look.html"
    told(folder, CLEAN, *(flag for flags in ASKED for flag in flags), "--html", str(page), capsys=capsys)
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text())
    data: Any = json.loads(found[0])
    titles = [title for titles in ASKED.values() for title in titles]
    assert len(data["panels"]) == len(titles)
    assert all(panel["title"].startswith(title) for panel, title in zip(data["panels"], titles, strict=True))
    memories = data["panels"][titles.index("Memories that say ")]
    assert len(memories["words"]) == len(memories["rows"]) == len(memories["values"]) > 0


def test_patching_alone_reads_the_clean_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["look", str(folder), "--patch", CLEAN, CORRUPT]) == 0
    assert "Patching: states" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--patch", CLEAN, "a horse"], "the clean prompt has"),
        (["--patch", CLEAN, CLEAN], "no difference to trace"),
        (["--trace", "France"], "does not hold the subject 'France'"),
    ],
)
def test_measures_that_cannot_be_taken_are_refused(
    folder: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["look", str(folder), CLEAN, *flags]) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


# --- steering --------------------------------------------------------------------------------------------------------


def written(folder: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["generate", str(folder), CLEAN, "--max-new-tokens", "4", "--temperature", "0", *flags]) == 0
    return capsys.readouterr().out


def test_a_control_vector_steers_what_is_generated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pellucid.load(folder)
    assert isinstance(model, Decoder)
    plain, direction = written(folder, capsys=capsys), torch.linspace(-1, 1, 16)
    Steering({1: direction}).save(path := tmp_path / "to.gguf", model)
    assert written(folder, "--steer", str(path), "--steer-strength", "0", capsys=capsys) == plain
    steered = written(folder, "--steer", str(path), "--steer-strength", "1000", capsys=capsys)
    assert steered != plain
    with Steering({1: direction}).applied(model, 1000.0):
        text = pellucid.generate(model, CLEAN, max_new_tokens=4, sampling=pellucid.Sampling(temperature=0.0))[0].text
    assert steered == f"{CLEAN}{text}\n"


def test_a_control_vector_of_another_model_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Steering({1: torch.ones(8)}).save(path := tmp_path / "narrow.gguf", small(8))
    assert run(["generate", str(folder), CLEAN, "--steer", str(path)]) == 2
    assert "a vector of 8 numbers for layer 1; this model has 2 layers of width 16" in capsys.readouterr().err
