"""JSON from strangers: configs of all families, indices, modules, specs, our own folders. Read, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from drawn import examples
from hostile import put_socket, read_or_refused, spoiled
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.checkpoints.export import to_hf
from pellucid.checkpoints.native import value_hash
from pellucid.checkpoints.safetensors_files import INDEX
from pellucid.checkpoints.sentence import sentence_head
from pellucid.checkpoints.tensors import load_tensors, save_tensors
from pellucid.designs import DESIGNS, modern
from pellucid.errors import CheckpointError, SpecError
from pellucid.families.registry import FAMILIES, spec_of
from pellucid.families.weights import shapes_of
from pellucid.files import DEEPEST, MOST_VALUES, parse_json
from pellucid.spec import load_spec

Json = Any


# --- config.json -----------------------------------------------------------------------------------------------------

SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("head_dim", "d_kv", "num_key_value_heads"), 4),
    **{"vocab_size": 61, "max_position_embeddings": 64, "n_positions": 64, "pad_token_id": 0, "embedding_size": 32},
    **{"decoder_start_token_id": 0, "forced_eos_token_id": 0, "image_size": 16, "patch_size": 8},
}


@cache
def published(model_type: str) -> dict[str, Any]:
    """A small config of a family, with all the attributes that transformers writes."""
    from transformers import AutoConfig

    usual = AutoConfig.for_model(model_type)
    small = {} if model_type == "gemma3" else {name: value for name, value in SMALL.items() if hasattr(usual, name)}
    said = json.loads(AutoConfig.for_model(model_type, **small).to_json_string(use_diff=False))
    return {**said, "model_type": model_type}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_configs_below_are_spoiled_in_one_thing_only(model_type: str) -> None:
    spec_of(published(model_type))


@pytest.mark.filterwarnings("ignore:.* ignored ")  # the names of some spoiled attributes mean nothing to anyone
@settings(max_examples=examples(400))
@given(st.sampled_from(list(FAMILIES)).flatmap(lambda name: spoiled(published(name))))
def test_a_spoiled_config_is_read_or_refused(config: Json) -> None:
    def read() -> None:
        spec, _ = spec_of(config)
        if spec.n_layers < 9:
            shapes_of(spec)

    read_or_refused(read)


# --- the index, and what says what stands on an encoder --------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json]:
    """A model in two files, and its index; beside them what no shard is."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    to_hf(pellucid.build(modern(50, 32, 2, 16, 8)), folder)
    held = load_file(folder / "model.safetensors")
    names = sorted(held)
    (folder / "model.safetensors").unlink()
    index: Json = {"metadata": {"total_size": 1}, "weight_map": {}}
    for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: held[name] for name in part}, folder / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    (folder / "folder.safetensors").mkdir()
    put_socket(folder / "socket.safetensors")
    (folder / "out.safetensors").symlink_to("/dev/null")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    return folder, index


FILES = [
    *"a.safetensors b.safetensors none.safetensors folder.safetensors socket.safetensors out.safetensors".split(),
    *"loop.safetensors ../model/a.safetensors ./a.safetensors /etc/passwd .safetensors a.bin A.SAFETENSORS".split(),
    *("b\\a.safetensors", "\ud800.safetensors", "\0.safetensors", "\x1b[2J.safetensors", "a" * 300 + ".safetensors"),
]


@settings(max_examples=examples(200))
@given(data=st.data())
def test_a_spoiled_index_is_read_or_refused(sharded: tuple[Path, Json], data: st.DataObject) -> None:
    folder, good = sharded
    index = data.draw(spoiled(good))
    if isinstance(index.get("weight_map"), dict) and data.draw(st.booleans()):
        index["weight_map"][data.draw(st.sampled_from(sorted(good["weight_map"])))] = data.draw(st.sampled_from(FILES))
    (folder / INDEX).write_text(json.dumps(index))
    read_or_refused(lambda: pellucid.load(folder))


@pytest.mark.parametrize("file", FILES[2:])
def test_no_other_file_is_taken_for_a_shard(sharded: tuple[Path, Json], file: str) -> None:
    folder, good = sharded
    (folder / INDEX).write_text(json.dumps({**good, "weight_map": {**good["weight_map"], "x": file}}))
    with pytest.raises(CheckpointError, match="safetensors"):
        pellucid.load(folder)


MODULES: Json = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
]


@given(spoiled(MODULES), spoiled({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}))
def test_spoiled_modules_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, modules: Json, pooling: Json
) -> None:
    folder = tmp_path_factory.getbasetemp() / "sentences"
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    read_or_refused(lambda: sentence_head(folder))


# --- our own folders -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "model"
    pellucid.save(pellucid.build(modern(50, 32, 2, 16, 8)), folder)
    return folder


@settings(max_examples=examples(200))
@given(st.sampled_from([make(50, 32, 2, 16, 8).to_json() for make in DESIGNS.values()]).flatmap(spoiled))
def test_a_spoiled_spec_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, spec: Json) -> None:
    path = tmp_path_factory.getbasetemp() / "spec.json"
    path.write_text(json.dumps(spec))

    def read() -> None:
        found = load_spec(path)
        if found.n_layers < 9:
            shapes_of(found)

    read_or_refused(read)


def forged(folder: Path, change: Callable[[Json], Any]) -> Path:
    """Change the spec, and the hash of it that the weights carry."""
    said = json.loads((folder / "spec.json").read_text())
    change(said)
    (folder / "spec.json").write_text(json.dumps(said))
    tensors, metadata = load_tensors(folder / "model.safetensors")
    metadata.pop("sha256")
    save_tensors(
        folder / "model.safetensors", tensors, **metadata | {"spec": value_hash(load_spec(folder / "spec.json"))}
    )
    return folder


@pytest.mark.parametrize("size", [2**33, 2**40, 2**62])
def test_no_memory_is_taken_for_what_the_weights_are_not(native: Path, tmp_path: Path, size: int) -> None:
    folder = forged(Path(shutil.copytree(native, tmp_path / "model")), lambda spec: spec.update(vocab_size=size))
    with pytest.raises(CheckpointError, match=r"the spec wants|too large"):
        pellucid.load(folder)


@pytest.mark.parametrize("metadata", ["[" * 10**5, '"sha256"', '["sha256"]', "5", "null", "{", '{"sha256": 5}'])
def test_metadata_of_anything_are_refused(native: Path, tmp_path: Path, metadata: str) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "model"))
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"pellucid": metadata})
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        pellucid.load(folder)


def test_a_spec_with_more_layers_than_can_be_made_is_refused(tmp_path: Path) -> None:
    said = modern(50, 32, 2, 16, 8).to_json()
    layer = said["stack"]["blocks"][0]["of"]
    for blocks in ([{"times": 10**9, "of": layer}], [{"times": 3000, "of": layer}] * 2, [layer] * 5000):
        said["stack"]["blocks"] = blocks
        (tmp_path / "spec.json").write_text(json.dumps(said))
        with pytest.raises(SpecError, match=r"spec\.json: DecoderSpec\.stack\.blocks.*more than 4096 entries"):
            load_spec(tmp_path / "spec.json")


# --- JSON itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 10**5, "not readable JSON"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"more than {DEEPEST} values in each other"),
        ("[" + "{}," * MOST_VALUES + "1]", "more than 4,194,304 values"),
        ('{"a": "\\ud83d"}', "half of a surrogate pair"),
        ('{"\\udE00": 1}', "half of a surrogate pair"),
        ("9" * 5000, "not readable JSON"),
        ("\ufeff{}", "not readable JSON"),
    ],
    ids=["deep", "deeper than allowed", "too many", "surrogate", "surrogate in a key", "digits", "byte order mark"],
)
def test_json_that_could_not_be_worked_with_is_refused(text: str, problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"x.json .*{problem}"):
        parse_json(text, "x.json", CheckpointError)


def test_other_json_is_read() -> None:
    deep: Json = parse_json("[" * DEEPEST + "]" * DEEPEST, "x.json", CheckpointError)
    assert len(deep) == 1
    pair = '{"a": "\\ud83d\\ude00", "b": "\\\\ud83d"}'
    assert parse_json(pair, "x.json", CheckpointError) == {"a": "😀", "b": "\\ud83d"}
