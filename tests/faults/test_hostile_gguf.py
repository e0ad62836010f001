"""GGUF files by hostile hands, and damaged ones: an error that names file and thing, in bounded time and memory."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import examples
from gguf_files import MODELS, model_of, rewrite, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.checkpoints.gguf.read import open_gguf
from pellucid.checkpoints.load import load_checkpoint
from pellucid.errors import CheckpointError

MEMORY = 8 << 20  # bytes that a refusal may take
U32, U64, FLOAT, STRING, ARRAY = 4, 10, 6, 8, 9
F32, F16, Q4_0 = 0, 1, 2


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = F32, offset: int = 0, n_dims: int | None = None) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dims) if n_dims is None else n_dims)
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


def file(
    pairs: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    data: int = 256,
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *tensors))
    return header + bytes(-len(header) % alignment) + bytes(data)


ONE = pair("a", U32, struct.pack("<I", 1))
LIST = struct.pack("<I", U32)
CASES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "magic"),
    "another magic": (b"GGML" + file()[4:], "GGUF"),
    "a zip": (b"PK\x03\x04" + bytes(64), "GGUF"),
    "version 1": (file(version=1), "version 0x1"),
    "version 4": (file(version=4), "version 0x4"),
    "big-endian": (file(version=0x03000000), "little-endian"),
    "2^60 tensors": (file(n_tensors=1 << 60), "tensors"),
    "2^64 - 1 keys": (file(n_pairs=(1 << 64) - 1), "keys"),
    "more keys than there are": (file([ONE], n_pairs=2, data=0, alignment=1), "key 1"),
    "more tensors than there are": (file([], [tensor("t", [4])], n_tensors=9), "0 dimensions"),
    "a key of 2^63 bytes": (file([struct.pack("<Q", 1 << 63) + b"a"], n_pairs=1), "key 0"),
    "a string of 2^64 - 1 bytes": (file([pair("a", STRING, struct.pack("<Q", (1 << 64) - 1))]), "'a'"),
    "a key that is no UTF-8": (file([text(b"\xff\xfe") + ONE[9:]]), "UTF-8"),
    "a string that is no UTF-8": (file([pair("a", STRING, text(b"\xc3\x28"))]), "UTF-8"),
    "an unknown type": (file([pair("a", 13, b"")]), "type 13"),
    "a truth value of 7": (file([pair("a", 7, b"\x07")]), "true nor false"),
    "a list of 2^60": (file([pair("a", ARRAY, LIST + struct.pack("<Q", 1 << 60))]), "items of 'a'"),
    "a list of 2^64 - 1 strings": (
        file([pair("a", ARRAY, struct.pack("<IQ", STRING, (1 << 64) - 1))]),
        "items of 'a'",
    ),
    "a list longer than the file": (file([pair("a", ARRAY, LIST + struct.pack("<Q", 1 << 20))]), "'a'"),
    "a list of strings longer than the file": (
        file([pair("a", ARRAY, struct.pack("<IQ", STRING, 1 << 20))]),
        "'a'",
    ),
    "lists in lists": (file([pair("a", ARRAY, (struct.pack("<IQ", ARRAY, 1)) * 100_000)]), "list of lists"),
    "a list of an unknown type": (file([pair("a", ARRAY, struct.pack("<IQ", 99, 1))]), "type 99"),
    "a key twice": (file([ONE, ONE]), "'a' occurs twice"),
    "a tensor twice": (file([], [tensor("t", [4]), tensor("t", [4], offset=32)]), "'t' occurs twice"),
    "no dimensions": (file([], [tensor("t", [])]), "0 dimensions"),
    "2^31 dimensions": (file([], [tensor("t", [4], n_dims=1 << 31)]), "dimensions"),
    "a dimension of 0": (file([], [tensor("t", [4, 0])]), r"\[4, 0\]"),
    "a dimension of 2^40": (file([], [tensor("t", [1 << 40])]), "cannot hold"),
    "a product that wraps to 0": (file([], [tensor("t", [1 << 32, 1 << 32])]), "cannot hold"),
    "a product that wraps to 4": (file([], [tensor("t", [4, (1 << 62) + 1, 1])]), "cannot hold"),
    "an unknown tensor type": (file([], [tensor("t", [4], 77)]), "type 77"),
    "a type that is not read": (file([], [tensor("t", [256], 16)]), "IQ2_XXS"),
    "a type of whole numbers": (file([], [tensor("t", [4], 26)]), "I32"),
    "rows that are no whole blocks": (file([], [tensor("t", [40], Q4_0)]), "Q4_0"),
    "an offset off the alignment": (file([], [tensor("t", [4], offset=4)]), "alignment 32"),
    "an offset beyond the end": (file([], [tensor("t", [4], offset=1 << 40)]), "ends at byte"),
    "an offset that wraps": (file([], [tensor("t", [4], offset=(1 << 64) - 32)]), "ends at byte"),
    "a tensor beyond the end": (file([], [tensor("t", [16])], data=60), "ends at byte"),
    "tensors that overlap": (file([], [tensor("t", [16]), tensor("u", [16], offset=32)]), "overlap"),
    "tensors in one place": (file([], [tensor("t", [4]), tensor("u", [4])]), "overlap"),
    "an alignment of 0": (file([pair("general.alignment", U32, struct.pack("<I", 0))]), "alignment"),
    "an alignment of 24": (file([pair("general.alignment", U32, struct.pack("<I", 24))]), "alignment"),
    "an alignment of 2^63": (file([pair("general.alignment", U64, struct.pack("<Q", 1 << 63))]), "alignment"),
    "an alignment in words": (file([pair("general.alignment", STRING, text("32"))]), "alignment"),
    "no architecture": (file([ONE]), "general.architecture"),
    "an architecture that is a number": (
        file([pair("general.architecture", U32, struct.pack("<I", 1))]),
        "general.architecture",
    ),
    "an architecture that is a list": (
        file([pair("general.architecture", ARRAY, LIST + struct.pack("<QI", 1, 7))]),
        r"general.architecture = \[7\]",
    ),
    "an architecture of a megabyte": (
        file([pair("general.architecture", STRING, text("ab" * (1 << 19)))]),
        'general.architecture = "abab',
    ),
    "a kind of a megabyte": (file([pair("general.type", STRING, text("\x1b[2J" * (1 << 18)))]), "general.type"),
    "parts that are a list": (
        file([pair("split.count", ARRAY, LIST + struct.pack("<Q", 1 << 16) + bytes(4 << 16))]),
        r"of \[0, 0",
    ),
    "an architecture alone": (file([pair("general.architecture", STRING, text("llama"))]), "llama"),
    "a layer of 10^9": (
        file([pair("general.architecture", STRING, text("llama"))], [tensor("blk.999999999.a", [4])]),
        "llama",
    ),
}


@pytest.fixture
def bounded() -> Iterator[None]:
    """Little memory for what Python and numpy allocate."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY, f"{peak:,} bytes"


@pytest.mark.timeout(10)
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(("content", "named"), CASES.values(), ids=CASES.keys())
def test_a_hostile_file_is_refused_by_name(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=named) as caught:
        open_gguf(path)
    assert str(path) in caught.value.problem
    assert len(str(caught.value)) < 2000


def test_the_files_above_are_wrong_in_one_thing_only(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(file([ONE], [tensor("t", [16]), tensor("u", [32, 2], Q4_0, offset=64)]))
    good = GGUFFile(path)
    assert good.metadata == {"a": 1} and good.read("t").shape == (16,) and good.read("u").shape == (2, 32)


def test_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf", Path("/dev/null")):
        with pytest.raises(CheckpointError, match=str(path)):
            open_gguf(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(model_of(MODELS["llama"]), tmp_path_factory.mktemp("gguf"), "q8_0")


def test_a_file_cut_anywhere_is_refused(tiny: Path, tmp_path: Path) -> None:
    whole, path = tiny.read_bytes(), tmp_path / "cut.gguf"
    for size in [*range(0, 4000, 37), len(whole) // 2, len(whole) - 33, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            open_gguf(path)


def test_a_file_that_becomes_shorter_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "shrinking.gguf"
    path.write_bytes(tiny.read_bytes())
    checkpoint = open_gguf(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"shrinking\.gguf"):
        load_checkpoint(checkpoint)


def test_a_file_that_vanishes_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.gguf"
    path.write_bytes(tiny.read_bytes())
    checkpoint = open_gguf(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"gone\.gguf cannot be read"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale: float, tiny: Path, tmp_path: Path) -> None:
    raw, path = bytearray(tiny.read_bytes()), tmp_path / "scale.gguf"
    info = GGUFFile(tiny).tensors["blk.1.ffn_up.weight"]
    assert info.kind == "Q8_0"
    raw[info.offset : info.offset + 2] = np.float16(scale).tobytes()
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj"):
        load_checkpoint(open_gguf(path))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    def spoil(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["output_norm.weight"] = np.full(64, value, np.float32)

    path = rewrite(written(model_of(MODELS["llama"]), tmp_path), spoil)
    with pytest.raises(CheckpointError, match="norm"):
        load_checkpoint(open_gguf(path))


def test_rotary_factors_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for value in (0.0, -1.0, float("nan"), float("inf")):

        def spoil(_: dict[str, Any], tensors: dict[str, Any], value: float = value) -> None:
            tensors["rope_freqs.weight"] = np.full(8, value, np.float32)

        path = rewrite(written(model_of(MODELS["llama"]), tmp_path), spoil)
        with pytest.raises(CheckpointError, match="rope_freqs"):
            open_gguf(path)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_largest_header_that_is_read_at_all_takes_bounded_memory(tmp_path: Path) -> None:
    """2^21 strings of one letter; a process of its own, whose address space is limited."""
    path = tmp_path / "long.gguf"
    strings = np.zeros((1 << 21, 9), np.uint8)
    strings[:, 0], strings[:, 8] = 1, ord("x")
    path.write_bytes(file([pair("a", ARRAY, struct.pack("<IQ", STRING, 1 << 21) + strings.tobytes())]))
    read = f"len(GGUFFile({str(path)!r}).metadata['a'])"
    code = f"from pellucid.checkpoints.gguf.file import GGUFFile; assert {read} == 1 << 21"
    limit = 4 << 30  # torch alone takes most of it
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )


# --- damage by chance ------------------------------------------------------------------------------------------------


def loads_or_is_refused(raw: bytes, path: Path) -> None:
    path.write_bytes(raw)
    model = None
    with suppress(CheckpointError):
        model = load_checkpoint(open_gguf(path))
    assert model is None or all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_are_refused_or_harmless(data: st.DataObject, tiny: Path, tmp_path: Path) -> None:
    raw = bytearray(tiny.read_bytes())
    header = min(info.offset for info in GGUFFile(tiny).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header if data.draw(st.integers(0, 7)) else len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    loads_or_is_refused(bytes(raw), tmp_path / "fuzz.gguf")


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pieces_put_together_wrongly_are_refused_or_harmless(data: st.DataObject, tiny: Path, tmp_path: Path) -> None:
    raw = tiny.read_bytes()
    header = min(info.offset for info in GGUFFile(tiny).tensors.values())
    start, end = sorted(data.draw(st.tuples(st.integers(0, header), st.integers(0, header))))
    inserted = data.draw(st.sampled_from([b"", raw[start:end] * 2, b"\xff" * 8, data.draw(st.binary(max_size=32))]))
    loads_or_is_refused(raw[:start] + inserted + raw[end:], tmp_path / "fuzz.gguf")


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=400))
def test_anything_after_the_magic_is_refused(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + tail)
    with pytest.raises(CheckpointError, match=r"fuzz\.gguf"):
        open_gguf(path)
