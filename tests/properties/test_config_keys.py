"""Attributes of a published config that a family does not know: refused where they may mean something, else ignored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pellucid
from pellucid.cli.main import run
from pellucid.errors import CheckpointError, UsageError
from pellucid.families.config import _published
from pellucid.families.registry import spec_of
from pellucid.families.weights import export_weights
from pellucid.nn.init import initialise
from pellucid.nn.models import build_model

ROOT = Path(__file__).parent.parent.parent
LLAMA: dict[str, Any] = {
    **{"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "max_position_embeddings": 16},
}
BERT: dict[str, Any] = {
    **{"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose config has two keys that mean nothing to it; other architectures have the first."""
    path = tmp_path_factory.mktemp("published")
    spec, table = spec_of(LLAMA)
    weights = export_weights(initialise(build_model(spec)), table)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**LLAMA, "alibi": True, "condition_on_chain": 1}))
    return path


@pytest.mark.parametrize("config", [LLAMA, BERT], ids=["llama", "bert"])
@pytest.mark.parametrize("name", ["condition_on_chain", "eos_token_ids", "$schema", "our_own_note"])
def test_key_that_no_architecture_has_is_ignored_with_a_warning(config: dict[str, Any], name: str) -> None:
    with pytest.warns(UserWarning, match=rf"ignored {name.replace('$', '.')} = \[1\]"):
        assert spec_of({**config, name: [1]}) == spec_of(config)


@pytest.mark.parametrize("config", [LLAMA, BERT], ids=["llama", "bert"])
@pytest.mark.parametrize("name", ["alibi", "logit_scale", "residual_multiplier", "attn_config"])
def test_key_that_some_architecture_has_is_refused_with_the_remedy(config: dict[str, Any], name: str) -> None:
    remedy = rf"--ignore-key {name} .*\[\"{name}\"\]"
    with pytest.raises(CheckpointError, match=rf"not understood: {name} = null\n.*{remedy}"):
        spec_of({**config, name: None, "condition_on_chain": 1})


def test_key_of_a_config_that_a_newer_library_wrote_is_refused() -> None:
    major, minor, *_ = map(int, _published()[0].split("."))
    for version in (f"{major}.{minor + 1}.0", f"{major + 1}.0.0.dev0"):
        with pytest.raises(CheckpointError, match=rf"on_chain = 1 \(written by transformers {version}; known"):
            spec_of({**LLAMA, "condition_on_chain": 1, "transformers_version": version})
    with pytest.warns(UserWarning, match="ignored condition_on_chain"):
        spec_of({**LLAMA, "condition_on_chain": 1, "transformers_version": "4.57.1"})


def test_key_in_a_rotary_object_is_refused_whatever_its_name() -> None:
    rotary = {"rope_type": "linear", "factor": 2.0, "our_own_note": 1}
    with pytest.raises(CheckpointError, match="rope_scaling: not understood: our_own_note = 1") as refused:
        spec_of({**LLAMA, "rope_scaling": rotary})
    assert "--ignore-key" not in str(refused.value)


def test_named_keys_are_left_out(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not understood: alibi = true") as refused:
        pellucid.load(folder)
    assert str(folder) in refused.value.problem
    with pytest.warns(UserWarning, match="ignored condition_on_chain = 1"):
        pellucid.load(folder, ignore=["alibi"])
    model = pellucid.load(folder, ignore=["alibi", "condition_on_chain"])
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 20)
    with pytest.raises(UsageError, match=r"config has no 'alibo'\n.*'alibi'"):
        pellucid.load(folder, ignore=["alibo"])
    pellucid.save(model, folder / "native")
    with pytest.raises(UsageError, match=r"has no config\.json"):
        pellucid.load(folder / "native", ignore=["alibi"])


def test_command_of_the_message_opens_the_model(folder: Path, tmp_path: Path, capsys: Any) -> None:
    keys = ["--ignore-key", "alibi", "condition_on_chain"]
    assert run(["info", str(folder)]) == 1 and "--ignore-key alibi" in " ".join(capsys.readouterr().err.split())
    assert run(["info", str(folder), *keys]) == 0
    assert run(["convert", str(folder), "--to", "native", "--out", str(tmp_path / "x"), *keys]) == 0
    assert run(["verify", str(folder), "--through", "pellucid", "--only", "future", *keys]) == 0
    capsys.readouterr()


def test_attribute_of_the_part_for_text_is_left_out_too() -> None:
    from pellucid.checkpoints.load import without

    config = {"a": 1, "text_config": {"a": 2, "b": 3}, "c": 4}
    assert without(config, ["a"], "x") == {"text_config": {"b": 3}, "c": 4}
    assert without(config, ["b", "c"], "x") == {"a": 1, "text_config": {"a": 2}}


@pytest.mark.slow
def test_names_are_those_of_the_library() -> None:
    import transformers

    release, _ = _published()
    if transformers.__version__ != release:
        pytest.skip(f"the list is of transformers {release}")
    said = subprocess.run(  # pyright: ignore[reportCallIssue]
        [sys.executable, "-c", "import config_names; print(config_names.text(), end='')"],
        **{"cwd": ROOT / "docs", "capture_output": True, "text": True, "check": True},  # pyright: ignore[reportArgumentType]
    ).stdout
    assert said == (ROOT / "src/pellucid/families/names.txt").read_text()
