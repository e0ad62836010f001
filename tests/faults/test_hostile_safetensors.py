"""Published folders as a careless or hostile hand makes them: a typed error that names file and thing, soon, and before
memory is taken."""

from __future__ import annotations

import json
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import put_socket
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.checkpoints.export import to_hf
from pellucid.checkpoints.safetensors_files import INDEX, MOST_JSON, SafetensorsFiles, open_folder, read_object
from pellucid.designs import modern
from pellucid.errors import LONGEST, CheckpointError

SECONDS, MEMORY = 10.0, 1 << 30  # what a refusal may take at most; most take a hundredth of a second and no memory
EMBEDDING = "model.embed_tokens.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
NORM = "model.norm.weight"
Spoil = Callable[[Path], Any]


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the block takes too long; within it no more than ``MEMORY`` can be had, not even untouched."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    usual = resource.getrlimit(resource.RLIMIT_AS)
    start = time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, usual)
    assert time.monotonic() - start < SECONDS


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in one file."""
    folder = tmp_path_factory.mktemp("good") / "model"
    to_hf(pellucid.build(modern(50, 32, 2, 16, 8)), folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, header: dict[str, Any] | str | bytes, numbers: bytes, length: int | None = None) -> None:
    """Write a file whose header says this, however false it is."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + numbers)


def header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Change what the header says; the numbers stay."""

    def spoil(folder: Path) -> None:
        said, numbers = parts(weights(folder))
        change(said)
        put(weights(folder), said, numbers)

    return spoil


def tensors(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Change the tensors, in a file that is as it should be."""

    def spoil(folder: Path) -> None:
        held = load_file(weights(folder))
        change(held)
        save_file(held, weights(folder), {"format": "pt"})

    return spoil


def config(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        change(said)
        (folder / "config.json").write_text(json.dumps(said))

    return spoil


def shards(change: Callable[[dict[str, Any]], Any] | None = None, then: Spoil | None = None) -> Spoil:
    """Split the file in two, with an index; then change what the index says, or the files."""

    def spoil(folder: Path) -> None:
        held = load_file(weights(folder))
        names = sorted(held)
        files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, part in files.items():
            save_file({name: held[name] for name in part}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
        weights(folder).unlink()
        if change:
            change(index)
        (folder / INDEX).write_text(json.dumps(index))
        if then:
            then(folder)

    return spoil


def write(file: str, text: str | bytes) -> Spoil:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / file).write_bytes(data)


def in_header(text: str) -> Spoil:
    return lambda folder: put(weights(folder), text, parts(weights(folder))[1])


def entry(name: str, **said: Any) -> Spoil:
    return header(lambda all_: all_[name].update(said))


def twice_in_header(folder: Path) -> None:
    said, numbers = parts(weights(folder))
    text = json.dumps(said)
    put(weights(folder), text[:-1] + f', "{NORM}": {json.dumps(said[NORM])}}}', numbers)


def cut(folder: Path, keep: int) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:keep])


def grown(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes() + b"\0" * 100)


def overlapping(said: dict[str, Any]) -> None:
    said[GATE]["data_offsets"] = [offset - 8 for offset in said[GATE]["data_offsets"]]


def beyond(said: dict[str, Any]) -> None:
    begin, _ = said[NORM]["data_offsets"]
    said[NORM].update(shape=[1 << 40], data_offsets=[begin, begin + (1 << 42)])


def swapped(index: dict[str, Any]) -> None:
    places = index["weight_map"]
    places[NORM] = next(file for file in places.values() if file != places[NORM])


def repeated(folder: Path) -> None:
    """The second file holds a tensor of the first, too, and the index has it in one."""
    first, second = sorted(folder.glob("model-*"))
    stolen, own = load_file(first), load_file(second)
    name = min(stolen)
    save_file({**own, name: stolen[name]}, second, {"format": "pt"})


def nan(held: dict[str, Any]) -> None:
    held[GATE][1, 2] = torch.nan


def infinite(held: dict[str, Any]) -> None:
    held[NORM][3] = -torch.inf


def only_pickle(folder: Path) -> None:
    torch.save(load_file(weights(folder)), folder / "pytorch_model.bin")
    weights(folder).unlink()


def replaced_by_a_socket(path: Path) -> None:
    path.unlink()
    put_socket(path)


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
W = r"model\.safetensors"
CASES: dict[str, tuple[Spoil, str]] = {
    # the header of the file
    "empty": (write("model.safetensors", b""), rf"{W} is damaged"),
    "8 bytes": (lambda folder: cut(folder, 8), rf"{W} is damaged"),
    "cut in the header": (lambda folder: cut(folder, 100), rf"{W} is damaged"),
    "cut in the numbers": (lambda folder: cut(folder, -4), rf"{W} is damaged"),
    "bytes after the numbers": (grown, rf"{W} is damaged"),
    "a header of 2^60 bytes": (
        lambda folder: put(weights(folder), b"{}", b"", 1 << 60),
        rf"{W}: its header claims 1,152,921,504,606,846,976 bytes",
    ),
    "a header longer than the file": (lambda folder: put(weights(folder), b"{}", b"", 5000), rf"{W} is damaged"),
    "no JSON": (in_header("{not json"), rf"{W} is damaged"),
    "deep JSON": (in_header('{"a":' * 50_000), rf"{W} is damaged"),
    "not UTF-8": (lambda folder: put(weights(folder), b"{\xff}", b""), rf"{W} is damaged"),
    "a list": (in_header("[1, 2]"), rf"{W} is damaged"),
    "one tensor described twice": (twice_in_header, rf"the header of .*{W} says '{NORM}' twice"),
    "an unknown type": (entry(NORM, dtype="F77"), rf"{W} is damaged: .*F77"),
    "a size that is not the shape's": (entry(NORM, shape=[17]), rf"{W} is damaged"),
    "a shape whose product overflows": (entry(NORM, shape=[1 << 40, 1 << 40]), rf"{W} is damaged"),
    "a negative size": (entry(NORM, shape=[-16]), rf"{W} is damaged"),
    "offsets that overlap": (header(overlapping), rf"{W} is damaged"),
    "offsets beyond the end": (header(beyond), rf"{W} is damaged"),
    "offsets in the wrong order": (entry(NORM, data_offsets=[64, 0]), rf"{W} is damaged"),
    "a gap that nobody names": (header(lambda said: said.pop(NORM)), rf"{W} is damaged"),
    # the tensors
    "a missing tensor": (tensors(lambda held: held.pop(NORM)), rf"model: the checkpoint lacks {NORM}"),
    "an extra tensor": (tensors(lambda held: held.update(x=torch.ones(2))), r"no place for x"),
    "a tensor whose name clears the screen": (
        tensors(lambda held: held.update({"\x1b[2J\x07": torch.ones(2)})),
        r"no place for \\u001b\[2J\\u0007$",
    ),
    "tens of thousands of extra tensors": (
        header(lambda said: said.update({f"model.layers.{n}.x": EMPTY for n in range(50_000)})),
        r"no place for",
    ),
    "a tensor of no dimension": (
        tensors(lambda held: held.update({NORM: torch.tensor(1.0)})),
        rf"{NORM} has the shape \(\)",
    ),
    "another shape": (tensors(lambda held: held.update({NORM: torch.ones(8)})), rf"{NORM} has the shape \(8,\)"),
    "whole numbers": (
        tensors(lambda held: held.update({GATE: held[GATE].to(torch.int8)})),
        rf"{W}: {GATE} is I8, not floating point",
    ),
    "8-bit floats": (
        tensors(lambda held: held.update({GATE: held[GATE].to(torch.float8_e4m3fn)})),
        rf"{W}: {GATE} is F8_E4M3, not floating point",
    ),
    "NaN": (tensors(nan), rf"model: {GATE} holds NaN or infinite numbers"),
    "infinity": (tensors(infinite), rf"model: {NORM} holds NaN or infinite numbers"),
    # the index and its files
    "no weight_map": (shards(lambda index: index.pop("weight_map")), rf"{INDEX} has no weight_map"),
    "a weight_map that is a list": (
        shards(lambda index: index.update(weight_map=["x"])),
        rf"{INDEX} has no weight_map",
    ),
    "a path out of the folder": (
        shards(lambda index: index["weight_map"].update({NORM: "../../x.safetensors"})),
        rf"{INDEX} places {NORM} in '\.\./\.\./x\.safetensors'",
    ),
    "an absolute path": (
        shards(lambda index: index["weight_map"].update({NORM: "/etc/x.safetensors"})),
        rf"{INDEX} places {NORM} in '/etc/x\.safetensors'",
    ),
    "a pickle in the index": (
        shards(lambda index: index["weight_map"].update({NORM: "pytorch_model.bin"})),
        rf"{INDEX} places {NORM} in 'pytorch_model\.bin'",
    ),
    "a number for a file": (
        shards(lambda index: index["weight_map"].update({NORM: 7})),
        rf"{INDEX} places {NORM} in '7'",
    ),
    "a socket for a shard": (
        shards(then=lambda folder: replaced_by_a_socket(folder / "model-00002-of-00002.safetensors")),
        r"model-00002-of-00002\.safetensors does not exist, or is no file",
    ),
    "half a character in the name of a shard": (
        shards(lambda index: index["weight_map"].update({NORM: "\ud800.safetensors"})),
        rf"{INDEX} holds half of a surrogate pair",
    ),
    "a shard with a megabyte for a name": (
        shards(lambda index: index["weight_map"].update({NORM: "a" * 10**6 + ".safetensors"})),
        r"aaaa.*… and \d[\d,]+ characters more",
    ),
    "a hundred thousand shards": (
        shards(lambda index: index["weight_map"].update({f"x{n}": f"{n}.safetensors" for n in range(10**5)})),
        r"0\.safetensors does not exist",
    ),
    "a missing shard": (
        shards(then=lambda folder: (folder / "model-00002-of-00002.safetensors").unlink()),
        r"model-00002-of-00002\.safetensors does not exist",
    ),
    "a damaged shard": (
        shards(then=write("model-00002-of-00002.safetensors", b"\0" * 20)),
        r"model-00002-of-00002\.safetensors is damaged",
    ),
    "a tensor in another shard than the index says": (
        shards(swapped),
        rf"model-0000.-of-00002\.safetensors (lacks|holds) {NORM}, but {INDEX} says otherwise",
    ),
    "a tensor that the index does not list": (
        shards(lambda index: index["weight_map"].pop(NORM)),
        rf"model-0000.-of-00002\.safetensors holds {NORM}, but {INDEX} says otherwise",
    ),
    "a tensor in two shards": (shards(then=repeated), r"model-00002\S* and model-00001\S* both hold \S+$"),
    "shards without an index": (
        shards(then=lambda folder: (folder / INDEX).unlink()),
        rf"holds model-00001-of-00002\.safetensors, but neither {W} nor {INDEX}",
    ),
    # the config
    "a config that is a list": (write("config.json", "[]"), r"config\.json is no JSON object, but a list"),
    "a config that is no JSON": (write("config.json", '{"a": '), r"config\.json is not readable JSON"),
    "a config that is not UTF-8": (write("config.json", b'{"a": "\xff"}'), r"config\.json cannot be read"),
    "a deep config": (write("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000), r"config\.json is not readable"),
    "a huge config": (write("config.json", b" " * (MOST_JSON + 1)), r"config\.json is 16,777,217 bytes long"),
    "a number of a million digits": (
        write("config.json", '{"a": ' + "9" * 10**6 + "}"),
        r"config\.json is not readable",
    ),
    "an attribute twice": (
        write("config.json", '{"model_type": "llama", "model_type": "gpt2"}'),
        r"config\.json says 'model_type' twice",
    ),
    "no model_type": (config(lambda said: said.pop("model_type")), r"model: the config names no model_type"),
    "an unknown model_type": (config(lambda said: said.update(model_type="xyz")), r'model: .*"xyz"'),
    "an attribute nobody knows": (config(lambda said: said.update(alibi=True)), r"model: .*alibi = true"),
    "more layers than there can be": (config(lambda said: said.update(num_hidden_layers=10**9)), r"num_hidden_layers"),
    "layers that the file does not have": (
        config(lambda said: said.update(num_hidden_layers=3, layer_types=None, max_window_layers=3)),
        r"model: the checkpoint lacks model\.layers\.2\.",
    ),
    "an absurd width": (config(lambda said: said.update(hidden_size=1 << 30)), r"has the shape"),
    "a width beyond any memory": (config(lambda said: said.update(hidden_size=1 << 62)), r"hidden_size|too large"),
    "an absurd vocabulary": (config(lambda said: said.update(vocab_size=2**31 - 1)), rf"{EMBEDDING} has the shape"),
    "text for a number": (config(lambda said: said.update(hidden_size="16")), r'hidden_size = "16"'),
    # what is not there, or not safe
    "no config": (lambda folder: (folder / "config.json").unlink(), r"model holds neither spec\.json"),
    "no weights": (lambda folder: weights(folder).unlink(), rf"model holds no {W}"),
    "a pickle": (only_pickle, r"pytorch_model\.bin, a pickle, which can run code"),
    "another library's weights": (
        lambda folder: weights(folder).rename(folder / "tf_model.h5"),
        r"holds tf_model\.h5, of another library",
    ),
    "an adapter": (
        lambda folder: weights(folder).rename(folder / "adapter_model.safetensors"),
        r"holds an adapter, adapter_model\.safetensors, but no model",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, folder: Path) -> None:
    spoil, message = CASES[case]
    spoil(folder)
    with bounded(), pytest.raises(CheckpointError) as caught:
        pellucid.load(folder)
    assert re.search(message, caught.value.problem), caught.value.problem
    assert len(str(caught.value)) < 2 * LONGEST


@pytest.mark.parametrize("spoil", [lambda folder: None, shards()], ids=["one file", "shards"])
def test_undamaged_files_load(folder: Path, spoil: Spoil) -> None:
    """The control: what the cases above spoil is a model, and ``bounded`` lets it through."""
    before = pellucid.load(folder).state_dict()
    spoil(folder)
    with bounded():
        after = pellucid.load(folder).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_weight_too_large_for_the_type_is_refused(folder: Path) -> None:
    tensors(lambda held: held[GATE].fill_(1e5))(folder)
    pellucid.load(folder, torch.bfloat16)
    with pytest.raises(CheckpointError, match=rf"{GATE} holds NaN or infinite numbers in float16"):
        pellucid.load(folder, torch.float16)


def several_pickles(folder: Path) -> None:
    """As large models were published; and what a training run leaves beside them, which is no model."""
    held = load_file(weights(folder))
    names = sorted(held)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: held[name] for name in part}, folder / f"pytorch_model-0000{i}-of-00002.bin")
    torch.save([1, 2, 3], folder / "optimizer.bin")
    weights(folder).unlink()


@pytest.mark.parametrize("pickled", [several_pickles, pytest.param(only_pickle, marks=pytest.mark.slow)])
def test_the_remedy_for_a_pickle_works(folder: Path, pickled: Spoil) -> None:
    """The command that the error gives, run by a shell as it stands, makes a folder that loads: the same model."""
    wanted = pellucid.load(folder).state_dict()
    pickled(folder)
    with pytest.raises(CheckpointError) as caught:
        pellucid.load(folder)
    command = caught.value.remedy.partition("convert it once: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    held = pellucid.load(folder).state_dict()
    assert all(torch.equal(held[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", ["$(touch owned).bin", "a'+exit()+'.bin", 'a"; true; ".bin'])
def test_a_file_cannot_name_itself_into_the_command(folder: Path, name: str) -> None:
    weights(folder).rename(folder / name)
    with pytest.raises(CheckpointError, match="a pickle") as caught:
        pellucid.load(folder)
    assert "python" not in caught.value.remedy


def test_a_pickle_named_by_itself_is_refused(folder: Path) -> None:
    only_pickle(folder)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle"):
        pellucid.load(folder / "pytorch_model.bin")


@given(st.data())
def test_a_damaged_header_never_does_anything_else(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """Bytes of the header changed, at random: the file opens or is refused, and nothing else happens."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    original = weights(good).read_bytes()
    length = 8 + struct.unpack("<Q", original[:8])[0]
    spoiled = bytearray(original)
    for place in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=4)):
        spoiled[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(spoiled)[: data.draw(st.sampled_from([len(spoiled), length, length // 2]))])
    with suppress(CheckpointError):
        source = SafetensorsFiles(path.parent, [path])
        for name in source.shapes:
            source.read(name)


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_KEYS = st.sampled_from(["weight_map", "metadata", "a"])
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=8
)


@given(_JSON)
def test_an_index_of_anything_is_refused(good: Path, tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "indexed"
    folder.mkdir(exist_ok=True)
    shutil.copy(good / "config.json", folder)
    (folder / INDEX).write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"safetensors"):
        open_folder(folder)


def test_an_object_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": {"b": [1, 2.5, null]}, "c": "ü"}', encoding="utf-8")
    assert read_object(tmp_path / "x.json") == {"a": {"b": [1, 2.5, None]}, "c": "ü"}
