"""What a person gets: findings, a table, JSON, exit codes; and errors that name what is wrong with what was asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from subjects import VOCAB, bert, decoder, encoder, gpt2
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput

import pellucid
from pellucid.checkpoints.native import save_model
from pellucid.cli.main import run
from pellucid.errors import CheckpointError, UsageError
from pellucid.verify.checks import all_checks
from pellucid.verify.measure import EXACT, Measured, Tolerance, Worst, distance
from pellucid.verify.open import open_subject
from pellucid.verify.report import Finding, Report
from pellucid.verify.run import chosen, verify

CODE = f"""
import torch
from torch.nn import functional as F

def fair(ids):
    return F.one_hot(ids, {VOCAB}).float()

def unfair(ids):
    return F.one_hot(ids.roll(-1, 1), {VOCAB}).float()

def broken(ids):
    if ids.shape[1] > 1:
        raise RuntimeError("no more than one\\nat a time")
    return fair(ids)

def no_number(ids):
    return fair(ids) / 0

def wrong(ids):
    return ids

def stubborn(ids):
    raise KeyError("no")
"""


def test_the_page_names_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    names = [check.name for check in chosen([])]
    assert [name for name in names if f"`{name}`" not in rows and f"`-{name.split('-')[-1]}`" not in rows] == []


@pytest.fixture
def functions(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    return str(path)


def shown(report: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report)
    return captured.get()


# --- findings --------------------------------------------------------------------------------------------------------


def test_a_broken_promise_a_crash_and_no_number_are_told_apart(functions: str) -> None:
    assert verify(f"{functions}:fair", ["future"])["future"].verdict == "pass"
    assert verify(f"{functions}:unfair", ["future"])["future"].verdict == "fail"
    crashed = verify(f"{functions}:broken", ["future"])
    assert crashed["future"].verdict == "error" and not crashed.ok
    assert crashed["future"].detail == "RuntimeError: no more than one"
    nothing = verify(f"{functions}:no_number", ["future"])["future"]
    assert nothing.verdict == "fail" and nothing.error is not None and math.isnan(nothing.error)


def test_findings_as_json_and_as_a_table(functions: str) -> None:
    report = verify(f"{functions}:no_number", ["future", "cache"], seed=3)
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["seed"] == 3 and written["kind"] == "decoder" and written["ok"] is False
    first, *others = written["findings"]
    assert [finding["check"] for finding in others] == ["future-gradient", "cache", "cache-ragged"]
    assert first["check"] == "future" and first["error"] == "nan"
    assert all(other["error"] is None and other["verdict"] == "not applicable" for other in others)
    text = " ".join(shown(report).split())
    assert "1 fail, 3 not applicable" in text
    assert "later tokens do not change earlier outputs" in text and "has no cache" in text


def test_nothing_is_cut_however_narrow_and_every_reason_is_there() -> None:
    report = verify(gpt2(), ["future", "tied", "quantised"])
    console = Console(width=80)
    with console.capture() as captured:
        console.print(report)
    title, _, *rows = captured.get().splitlines()
    assert title.rstrip() == "GPT2LMHeadModel (decoder), computed by transformers"
    named = [row.split()[0] for row in rows if row[:1].strip() and row.split()[0] in all_checks()]
    assert named == ["future", "future-gradient", "quantised", "tied"]
    text = " ".join(captured.get().split())
    assert "…" not in text and "writes no GGUF" in text and "tolerance: " not in text
    assert any("tolerance: 32 × " in line.plain for line in report.reasons())
    assert report.to_json()["made_by"] == "transformers" and verify(decoder(), ["tied"]).made_by == "pellucid"


def test_broken_promise_is_reported_in_full(functions: str) -> None:
    text = " ".join(shown(verify(f"{functions}:unfair", ["future"])).split())
    assert "future: not so: later tokens do not change earlier outputs. largest: random ids" in text


def test_a_report_is_ok_only_where_nothing_broke() -> None:
    def report(*verdicts: Any) -> Report:
        return Report("x", "decoder", 0, tuple(Finding(str(i), "", verdict) for i, verdict in enumerate(verdicts)))

    assert report("pass", "not applicable").exit_code == 0
    assert report("pass", "fail").exit_code == report("error").exit_code == 1
    assert report("fail", "pass", "pass").summary == "2 pass, 1 fail"


def test_the_same_seed_asks_the_same() -> None:
    model = decoder()
    a, b, c = (verify(model, ["cache"], seed=seed)["cache"].error for seed in (1, 1, 2))
    assert a == b != c


def test_pellucid_verify_is_the_room() -> None:
    assert pellucid.verify(decoder(), only=["batch"]).ok


# --- measures --------------------------------------------------------------------------------------------------------


def test_distance_is_a_share_of_the_size_of_outputs() -> None:
    a = torch.tensor([3.0, -3.0])
    assert distance(a + 0.3, a) == pytest.approx(0.1)
    assert distance(100 * a + 30, 100 * a) == pytest.approx(0.1)
    assert distance(a, a) == 0.0
    infinite = torch.tensor([1.0, -torch.inf])
    assert distance(infinite, infinite) == 0.0
    assert distance(torch.tensor([1.0, 2.0]), infinite) == math.inf
    assert math.isnan(distance(torch.tensor([1.0, torch.nan]), a))
    with pytest.raises(ValueError, match="shape"):
        distance(a, a[:1])


def test_no_number_is_the_worst_and_nothing_compared_is_no_promise_kept() -> None:
    worst = Worst()
    for error, where in ((0.1, "a"), (math.nan, "b"), (9.0, "c")):
        worst.see(error, where)
    measured = worst.measured(Tolerance(1.0, ""))
    assert math.isnan(measured.error) and measured.detail == "largest: b" and not measured.kept
    assert Measured(0.0, EXACT).kept and not Measured(1e-30, EXACT).kept
    with pytest.raises(RuntimeError, match="nothing was compared"):
        Worst().measured(EXACT)


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_a_name_stands_for_all_that_begin_with_it() -> None:
    assert [check.name for check in chosen(["padding"])] == ["padding-left", "padding-right", "padding-middle"]
    assert [check.name for check in chosen(["cache-ragged", "batch"])] == ["batch", "cache-ragged"]
    with pytest.raises(UsageError, match="no check 'padding-lef'"):
        chosen(["padding-lef"])


@pytest.mark.parametrize("what", [None, 3, [1, 2], torch.zeros(2)])
def test_object_that_is_no_model_is_refused(what: Any) -> None:
    with pytest.raises(UsageError, match="nothing that can be verified"):
        open_subject(what)


def test_functions_that_are_none_are_refused(functions: str, tmp_path: Path) -> None:
    unreadable = tmp_path / "unreadable.py"
    unreadable.write_text("def f(:", encoding="utf-8")
    for wrong, message in (
        (f"{functions}:nothing", "has no function 'nothing'"),
        (f"{tmp_path}/other.py:fair", "there is no file"),
        (f"{functions}:wrong", "gave a Tensor of shape"),
        (f"{functions}:stubborn", "raised KeyError"),
        (f"{unreadable}:f", "cannot be run: SyntaxError"),
    ):
        with pytest.raises(UsageError, match=message):
            open_subject(wrong)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="says itself what it is"):
        open_subject(decoder(), kind="encoder")
    save_model(decoder(), tmp_path)
    with pytest.raises(UsageError, match="not a folder that transformers reads"):
        open_subject(tmp_path, through="transformers")


def test_kinds_are_recognised() -> None:
    assert open_subject(decoder()).kind == open_subject(gpt2()).kind == "decoder"
    assert open_subject(encoder()).kind == "encoder"
    assert open_subject(lambda ids: F.one_hot(ids, 5).float(), kind="encoder").kind == "encoder"


def test_a_function_says_what_it_takes() -> None:
    def masked(ids: Tensor, attention_mask: Tensor) -> Tensor:
        return F.one_hot(ids, 7).float() * attention_mask[..., None]

    report = verify(masked, ["padding"])
    assert [finding.verdict for finding in report.findings] == ["pass", "pass", "not applicable"]
    assert "position_ids" in report["padding-middle"].detail


@pytest.mark.parametrize(
    "hand_over",
    [
        lambda x: x.double(),
        lambda x: x.numpy(),
        lambda x: (x, None),
        lambda x: {"logits": x},
        CausalLMOutput(logits=None),
    ],
    ids=["float64", "numpy", "a tuple", "a dictionary", "an output of transformers"],
)
def test_a_function_hands_logits_over_as_it_likes(hand_over: Any) -> None:
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    handed = hand_over if callable(hand_over) else lambda x: CausalLMOutput(logits=x)
    report = verify(lambda ids: handed(table[ids]), ["future", "batch", "deterministic", "unknown-ids"])
    assert report.broken == [] and report["batch"].verdict == "pass" and report.made_by == "function"
    assert "does not say which ids" in report["unknown-ids"].detail, "a table that is indexed reads id -1 as its last"
    assert verify(lambda ids: table[ids], ["unknown-ids"], vocab=VOCAB)["unknown-ids"].verdict == "fail"


def test_a_module_is_called_in_eval_mode() -> None:
    module = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Dropout(0.5), nn.Linear(8, VOCAB))
    assert verify(module, ["deterministic", "batch"]).ok and module.training


# --- the command -----------------------------------------------------------------------------------------------------


def test_exit_codes_and_files(functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    assert run(["verify", f"{functions}:fair", "--only", "future", "batch", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["ok"] is True
    assert "2 pass" in capsys.readouterr().out
    assert run(["verify", f"{functions}:unfair", "--only", "future", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["verdict"] == "fail"
    assert run(["verify", f"{functions}:fair", "--only", "futur"]) == 2
    assert "did you mean 'future'?" in capsys.readouterr().err
    assert run(["verify"]) == 2
    assert run(["verify", functions]) == 2
    assert "name one:" in capsys.readouterr().err
    assert run(["verify", f"{functions}:fair", "--json", str(tmp_path)]) == 2, "before all checks, not after them"
    assert "it is a folder" in capsys.readouterr().err
    assert run(["verify", str(tmp_path / "nowhere")]) == 1


def test_a_folder_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(decoder(), tmp_path / "mine")
    assert run(["verify", str(tmp_path / "mine"), "--only", "future", "padding"]) == 0
    assert "mine (decoder)" in capsys.readouterr().out


def test_a_folder_of_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2().save_pretrained(tmp_path / "theirs")
    assert run(["verify", str(tmp_path / "theirs"), "--only", "future", "padding"]) == 0
    assert "theirs (decoder)" in capsys.readouterr().out


def test_a_folder_with_a_weight_missing_is_refused(tmp_path: Path) -> None:
    """What would be drawn at random is no model that was saved."""
    bert().bert.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(CheckpointError, match=r"no weight 'cls\.predictions"):
        open_subject(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = bert()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        open_subject(tmp_path)


def test_the_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(check.name in listed for check in chosen([]))
