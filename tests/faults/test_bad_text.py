"""Every text that cannot be trained on is a clear error that names the file and the remedy."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import re
import sys
import time
from pathlib import Path

import pytest

from pellucid.data.corpus import Document
from pellucid.data.packing import Packed
from pellucid.data.sources import Skipped, documents
from pellucid.data.store import build_store
from pellucid.errors import DataError, RunError
from pellucid.text.tokenizer import END_OF_TEXT, Tokenizer

GOOD = b"What is named must be good text.\n"
BROKEN_GZ = gzip.compress(GOOD * 100, mtime=0)

# name of the file, its bytes (None: there is none), what the message says, what it advises
BAD = [
    ("missing.txt", None, r"missing\.txt does not exist", r"did you mean '.*missnig\.txt'"),
    ("nothing_alike", None, r"nothing_alike does not exist", r"check the name; looked in "),
    ("no/folder/book.txt", None, r"book\.txt does not exist", r"neither does the folder .*folder"),
    ("*.nothing", None, r"\*\.nothing matches no file", r"check the pattern"),
    ("empty.txt", b"", r"empty\.txt is empty", r"holds text"),
    ("blank.txt", b" \n\n\t", r"blank\.txt is empty", r"holds text"),
    ("separators.txt", b"<|endoftext|>\n<|endoftext|>\n", r"nothing but separators", r"holds text"),
    (
        "binary.txt",
        b"\x7fELF\x02\x01\x01\0\0",
        r"binary\.txt is binary, not text: byte 7 is NUL",
        r"converted to text first",
    ),
    ("late.txt", GOOD * 5000 + b"\0", r"byte 165000 is NUL", r"converted to text first"),
    ("wide.txt", "Größe".encode("utf-16"), r"wide\.txt is UTF-16", r"iconv -f UTF-16 -t UTF-8 '.*wide\.txt'"),
    ("latin.txt", GOOD + "Größe".encode("latin-1"), r"byte 35 \(line 2\) is 0xf6", r"iconv -f ISO-8859-1 -t UTF-8"),
    ("cut.txt", GOOD + "ö".encode()[:1], r"byte 33 \(line 2\) is 0xc3", r"iconv"),
    ("plain.gz", GOOD, r"plain\.gz is damaged, or is no gz file", r"again"),
    ("cut.txt.gz", BROKEN_GZ[:-20], r"cut\.txt\.gz is damaged", r"again"),
    ("flipped.gz", BROKEN_GZ[:-6] + b"\0" + BROKEN_GZ[-5:], r"flipped\.gz is damaged", r"again"),
    ("garbage.gz", BROKEN_GZ[:12] + b"\xff" * 40, r"garbage\.gz is damaged", r"again"),
    ("cut.xz", lzma.compress(GOOD)[:-20], r"cut\.xz is damaged", r"again"),
    ("plain.xz", GOOD, r"plain\.xz is damaged", r"again"),
    ("cut.bz2", bz2.compress(GOOD)[:-20], r"cut\.bz2 is damaged", r"again"),
    ("plain.bz2", GOOD, r"plain\.bz2 is damaged", r"again"),
    ("empty.txt.gz", gzip.compress(b"", mtime=0), r"empty\.txt\.gz is empty", r"holds text"),
    ("latin.jsonl", b'{"text": "a"}\n{"text": "\xf6"}\n', r"latin\.jsonl line 2 is not JSON", r"one object"),
    ("cut.jsonl", b'{"text": "a"}\n{"text": "b', r"cut\.jsonl line 2 is not JSON", r"one object"),
    ("deep.jsonl", b"[" * 100_000, r"deep\.jsonl line 1 is not JSON", r"one object"),
    ("list.jsonl", b"[1, 2]", r"list\.jsonl line 1 is a list", r"one object"),
    ("other.jsonl", b'{"texts": "a"}', r"other\.jsonl#1 has no field 'text'", r"did you mean 'texts'"),
    ("number.jsonl", b'{"text": 3}', r"number\.jsonl#1 field 'text' holds int", r"another field"),
    ("half.jsonl", json.dumps({"text": "\ud83d"}).encode(), r"half\.jsonl#1 .* unpaired surrogate", r"repair"),
    (
        "blank.jsonl",
        b'{"text": ""}\n\n{"text": null}',
        r"blank\.jsonl holds no text .*2 rows without text",
        r"plain text",
    ),
]


@pytest.mark.parametrize(("name", "data", "problem", "remedy"), BAD, ids=[case[0] for case in BAD])
def test_named_bad_text_is_refused(tmp_path: Path, name: str, data: bytes | None, problem: str, remedy: str) -> None:
    (tmp_path / "missnig.txt").write_bytes(GOOD)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(documents(tmp_path / name, on_skip=lambda _: None))
    message = str(caught.value)
    assert re.search(rf"(?s){problem}.*{remedy}", message), message
    assert str(tmp_path) in message


@pytest.mark.parametrize(("name", "data"), [case[:2] for case in BAD if case[1] is not None])
def test_met_bad_text_is_skipped_and_told(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    skipped: list[Skipped] = []
    with pytest.raises(DataError, match="holds no text"):
        list(documents(tmp_path, on_skip=skipped.append))
    (tmp_path / "good.txt").write_bytes(GOOD)
    skipped.clear()
    assert [document.text.encode() for document in documents(tmp_path, on_skip=skipped.append)] == [GOOD]
    assert [Path(one.name).name for one in skipped] == [name]
    assert all(one.reason for one in skipped)


def test_names_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"second\.txt does not exist"):
        documents([tmp_path / "good.txt", tmp_path / "second.txt"])
    with pytest.raises(DataError, match="aaaa cannot be read: File name too long"):
        documents("a" * 5000)
    with pytest.raises(DataError, match="no text was named"):
        documents([])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow holds no files"):
        list(documents(tmp_path / "hollow"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (tmp_path / "secret.txt").write_bytes(GOOD)

    def refuse(*_: object, **__: object) -> object:
        raise OSError(number, "as a full or forbidden disk answers (permissions do not stop root, who may run this)")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"secret\.txt cannot be read: .*\n.*permissions"):
        list(documents(tmp_path / "secret.txt"))


def test_empty_and_binary_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, problem in ((b"", "empty"), (b"a\0", "binary")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(DataError, match=f"standard input is {problem}"):
            list(documents("-"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://org", "does not name a dataset"),
        ("hf://org/name/config/more", "does not name a dataset"),
        ("hf://org/name?splt=test", "unknown option 'splt'\n.*'split'"),
        ("hf://org/name?limit=-1", "limit='-1' is not a number"),
        ("hf://org/name", r"pip install 'pellucid\[hf\]'"),
    ],
)
def test_bad_dataset_names_and_the_missing_library(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(DataError, match=message):
        list(documents(url))


def test_special_text_in_a_text_is_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"a {END_OF_TEXT} b\n{END_OF_TEXT}\n c{END_OF_TEXT}\n")
    found = list(documents(tmp_path / "t.txt"))
    assert [document.text for document in found] == [f"a {END_OF_TEXT} b\n", f" c{END_OF_TEXT}\n"]
    tokenizer = Tokenizer.train([document.text for document in found], 300)
    store = build_store(found, tokenizer, tmp_path / "store")
    assert (store.tokens == store.eot).sum() == 3
    assert tokenizer.decode(store.tokens) == "".join(document.text for document in found)


def test_unpaired_surrogates_are_refused() -> None:
    with pytest.raises(DataError, match=r"character 2 .*U\+D83D\n.*UTF-8"):
        Tokenizer.train(["ok"], 300).encode("ab\ud83d")
    with pytest.raises(DataError, match="unpaired surrogate"):
        Tokenizer.train(["ab\ud83d"], 300)


def test_text_shorter_than_a_context(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["abc"], 300)
    store = build_store([Document("short", "x y z")], tokenizer, tmp_path / "store")
    with pytest.raises(DataError, match=r"7 tokens, too few for a context of 7\n.*--context \(at most 6\)"):
        Packed(store, 7, seed=0)
    assert Packed(store, 6, seed=0).samples(0, 2).labels.shape == (2, 6)
    with pytest.raises(DataError, match="no document"):
        build_store([], tokenizer, tmp_path / "none")


def test_store_in_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train(["abc"], 300)
    (tmp_path / "file").write_bytes(GOOD)
    with pytest.raises(RunError, match=r"cannot write .*store"):
        build_store([Document("d", "text")], tokenizer, tmp_path / "file" / "store")
    assert (tmp_path / "file").read_bytes() == GOOD

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        build_store([Document("d", "text")], tokenizer, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("letter", ["a", " ", "é"])
def test_one_line_of_megabytes(tmp_path: Path, letter: str) -> None:
    """One line of millions of characters; the time that takes grows as its length, not its square."""

    def seconds(length: int) -> float:
        begin = time.perf_counter()
        (tmp_path / "line.txt").write_text("x" + letter * length)
        (document,) = documents(tmp_path / "line.txt")
        tokenizer = Tokenizer.train([document.text], 300)
        store = build_store([document], tokenizer, tmp_path / f"store{length}")
        assert store.n_bytes == document.n_bytes
        assert tokenizer.decode(store.tokens) == document.text
        return time.perf_counter() - begin

    short = seconds(100_000)
    assert seconds(1_000_000) < 60 * short  # 10 where linear, 100 where quadratic


@pytest.mark.slow
def test_one_line_of_100_megabytes(tmp_path: Path) -> None:
    begin = time.perf_counter()
    with (tmp_path / "line.txt").open("wb") as stream:
        for _ in range(100):
            stream.write(b"a" * 1_000_000)
    found = list(documents(tmp_path / "line.txt"))
    tokenizer = Tokenizer.train([document.text for document in found], 1024)
    store = build_store(found, tokenizer, tmp_path / "store")
    assert store.n_bytes == 100_000_000
    assert store.n_tokens < 2_000_000
    assert time.perf_counter() - begin < 60
