"""Tokenizers from strangers: each is refused by name, or read, in bounded time; nothing else comes of them."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from drawn import examples
from hostile import put_socket, read_or_refused, spoiled
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import CheckpointError, DataError
from pellucid.text import tokenizer_limits
from pellucid.text.chat import Disguise
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_files import load_tokenizer
from pellucid.text.tokenizer_gguf import from_metadata
from pellucid.text.tokenizer_json import explained
from pellucid.text.tokenizer_limits import nested

Json = dict[str, Any]
LETTERS = {letter: number for number, letter in enumerate("abcde<>/sx12 ")}
TOKEN = {"id": len(LETTERS), "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}  # fmt: skip
BPE: Json = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [TOKEN],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "Fuse"},
    "model": {
        "type": "BPE",
        "vocab": {**LETTERS, "ab": 14, "abc": 15, "<|end|>": 13},
        "merges": [["a", "b"], ["ab", "c"]],
        "unk_token": None,
    },
}
UNIGRAM: Json = BPE | {
    "added_tokens": [],
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -1.5], ["</s>", -1.0]]},
}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The time of this process alone: others may want the processor, too."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


def written(tokenizer: Any, folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def changed(base: Json, change: Callable[[Json], object]) -> Json:
    config = copy.deepcopy(base)
    change(config)
    return config


def put(*path: str | int, value: Any) -> Callable[[Json], None]:
    def change(config: Any) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


def split(pattern: str) -> Callable[[Json], None]:
    return put("pre_tokenizer", value={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                                       "invert": False})  # fmt: skip


def encoded(table: bytes) -> str:
    return base64.b64encode(table).decode("ascii")


def template(*ids: int) -> Json:
    pieces = [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|end|>": {"id": "<|end|>", "ids": list(ids), "tokens": ["<|end|>"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}


def prepend(text: str) -> Json:
    return {"type": "Prepend", "prepend": text}


WORD = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "vocab": {"a": 0}}
JSON_CASES: dict[str, tuple[Any, str]] = {
    "truncated": (json.dumps(BPE)[:300], "not readable JSON"),
    "not json": ("hello", "not readable JSON"),
    "a list": ([], "not an object"),
    "nothing": ({}, "no object 'model'"),
    "deep": ("[" * 100_000, "not readable JSON"),
    "deep steps": (
        json.dumps(BPE).replace('"pre_tokenizer": null', '"pre_tokenizer": ' + '{"type":"Sequence","pretokenizers":['
                                * 5000 + "]}" * 5000),
        "not readable JSON",
    ),
    "unknown model": (changed(BPE, put("model", "type", value="Oracle")), "type 'Oracle'"),
    "vocabulary a list": (changed(BPE, put("model", "vocab", value=["a"])), "wrong type"),
    "vocabulary empty": (changed(BPE, put("model", "vocab", value={})), "missing"),
    "id a text": (changed(BPE, put("model", "vocab", "a", value="0")), "has the id '0'"),
    "id negative": (changed(BPE, put("model", "vocab", "a", value=-1)), "has the id -1"),
    "id of 2^40": (changed(BPE, put("model", "vocab", "a", value=2**40)), "has the id 1099511627776"),
    "id of 2^31": (changed(BPE, put("model", "vocab", "a", value=2**31)), "has the id 2147483648"),
    "two tokens, one id": (changed(BPE, put("model", "vocab", "a", value=1)), "'a' and 'b' have the same id 1"),
    "long token": (changed(BPE, put("model", "vocab", "a" * 5000, value=16)), "token 16 has 5,000 characters"),
    "merge of a missing token": (changed(BPE, put("model", "merges", 0, value=["a", "zz"])), "merge 0 needs .*'zz'"),
    "merge into a missing token": (changed(BPE, put("model", "merges", 0, value=["a", "d"])), "merge 0 needs .*'ad'"),
    "merge of three": (changed(BPE, put("model", "merges", 0, value=["a", "b", "c"])), "merge 0 is"),
    "merge of one": (changed(BPE, put("model", "merges", 0, value="ab")), "merge 0 is"),
    "merge of numbers": (changed(BPE, put("model", "merges", 0, value=[1, 2])), "merge 0"),
    "merges a text": (changed(BPE, put("model", "merges", value="ab")), "merges are not a list"),
    "merge without its prefix": (
        changed(BPE, put("model", "continuing_subword_prefix", value="#")), "merge 0 joins 'b', which does not begin"
    ),
    "a prefix that is a number": (
        changed(BPE, put("model", "continuing_subword_prefix", value=5)), "subword_prefix is 5"
    ),
    "random encoding": (changed(BPE, put("model", "dropout", value=0.5)), "dropout 0.5"),
    "unigram score": (changed(UNIGRAM, put("model", "vocab", 1, value=["a", "x"])), "entry 1"),
    "unigram score not finite": (json.dumps(UNIGRAM).replace("-1.5", "-1e999"), "entry 2"),
    "unigram unknown id": (changed(UNIGRAM, put("model", "unk_id", value=9)), "UnkIdNotInVocabulary"),
    "unigram long piece": (changed(UNIGRAM, put("model", "vocab", 1, value=["a" * 2000, -1.0])), "entry 1"),
    "words of any length": (changed(BPE, put("model", value=WORD | {"max_input_chars_per_word": 10**9})), "max_input"),
    "added token beyond": (changed(BPE, put("added_tokens", 0, "id", value=999)), "'<|end|>' has the id 999"),
    "added token empty": (changed(BPE, put("added_tokens", 0, "content", value="")), "added token ''"),
    "added token long": (
        changed(BPE, put("added_tokens", value=[TOKEN, TOKEN | {"id": 16, "content": "y" * 9999}])), "9,999 characters"
    ),
    "added tokens a text": (changed(BPE, put("added_tokens", value="x")), "added_tokens"),
    "unknown normalizer": (changed(BPE, put("normalizer", value={"type": "Run"})), "not a tokenizer"),
    "unknown pre-tokenizer": (changed(BPE, put("pre_tokenizer", value={"type": "Run"})), "not a tokenizer"),
    "unknown decoder": (changed(BPE, put("decoder", value={"type": "CTC", "pad_token": "a", "word_delimiter_token": "b",
                                                          "cleanup": True})), "decoder .*CTC"),
    "decoder that takes more than there is": (
        changed(BPE, put("decoder", value={"type": "Sequence", "decoders": [
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]})), "takes the end off"
    ),
    "half a character": (changed(BPE, put("model", "vocab", "\ud800", value=16)), "half of a surrogate pair"),
    "a pattern where none belongs": (
        changed(BPE, put("normalizer", value={"type": "NFC", "pattern": None})), "pattern is None"
    ),
    "a pattern that is a number": (
        changed(BPE, put("normalizer", value={"type": "Lowercase", "pattern": {"Regex": 5}})), "pattern is"
    ),
    "a pattern of a megabyte": (changed(BPE, split("a" * 10**6)), "pattern has 1,000,000 characters"),
    "bad pattern": (changed(BPE, split("(((")), "not a tokenizer|pattern"),
    "nested repetition": (changed(BPE, split("(a+)+")), "repeats"),
    "nested bounded repetition": (changed(BPE, split("(?:[ab]{1,64})+")), "repeats"),
    "empty pattern": (
        changed(BPE, put("normalizer", value={"type": "Replace", "pattern": {"String": ""}, "content": "x"})), "empty"
    ),
    "growing text": (
        changed(BPE, put("normalizer", value={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000})),
        "content has 1,000 characters",
    ),
    "long beginning": (changed(BPE, put("normalizer", value=prepend("a" * 10**6))), "prepend has 1,000,000"),
    "many steps": (
        changed(BPE, put("normalizer", value={"type": "Sequence", "normalizers": [prepend("a")] * 100})), "64 steps"
    ),
    "ends of a strange id": (changed(BPE, put("post_processor", value=template(99))), "the id 99"),
    "a thousand ends": (changed(BPE, put("post_processor", value=template(*[13] * 1000))), "1000 tokens around"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", JSON_CASES)
def test_a_tokenizer_json_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, message = JSON_CASES[case]
    folder = written(config, tmp_path)
    with within(8), pytest.raises(CheckpointError, match=rf"(?s)tokenizer\.json.*({message})"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (None, "is no text"),
        ("%", "is damaged"),
        (encoded(b"\x01"), "is damaged"),
        (encoded(b"\xff\xff\xff\x7f" + bytes(20)), "announces 2,147,483,647"),
    ],
    ids=["none", "no base64", "short", "announces too much"],
)
def test_a_damaged_table_of_normal_forms_never_reaches_the_library(table: str | None, problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"its precompiled_charsmap.* {problem}"):
        tokenizer_limits._check_charsmap(table)


def test_a_table_of_normal_forms_that_multiplies_a_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is sound and has no entries, whose only form is longer than the limit that is set for it."""
    table = encoded(struct.pack("<I", 1024) + bytes(1024) + b"four\0")
    folder = written(
        changed(BPE, put("normalizer", value={"type": "Precompiled", "precompiled_charsmap": table})), tmp_path
    )
    assert load_tokenizer(folder).encode("abcd") == [15, 3]
    monkeypatch.setattr(tokenizer_limits, "_MAX_CONTENT", 0)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .* turns a character into 4 bytes"):
        load_tokenizer(folder)


def test_the_same_files_unchanged_are_read(tmp_path: Path) -> None:
    assert load_tokenizer(written(BPE, tmp_path / "bpe")).encode("abcd") == [15, 3]
    assert load_tokenizer(written(UNIGRAM, tmp_path / "unigram")).encode("aba") == [2, 1]


NOT_AN_OBJECT: list[Any] = [[], "text", 1, None]
CONFIG_CASES: dict[str, tuple[Json, str]] = {
    "half a character": ({"bos_token": "\ud800"}, r"tokenizer_config\.json holds half of a surrogate pair"),
    "deep": ({"x": json.loads("[" * 200 + "]" * 200)}, r"tokenizer_config\.json nests more than"),
    "added id infinite": ({"added_tokens_decoder": {"Infinity": {"content": "<n>"}}}, "added tokens"),
    "token a number": ({"eos_token": 5}, "eos_token is 5"),
    "token not there": ({"bos_token": "<nowhere>"}, "'<nowhere>' is not in the vocabulary"),
    "template a number": ({"chat_template": 1}, "chat_template is 1"),
    "template an object": ({"chat_template": {"default": "x"}}, "chat_template"),
    "extra tokens a text": ({"additional_special_tokens": "abc"}, "additional_special_tokens is abc"),
    "added tokens a list": ({"added_tokens_decoder": [1]}, "added tokens"),
    "added token without content": ({"added_tokens_decoder": {"5": {}}}, "added token 5"),
    "added id of 2^40": ({"added_tokens_decoder": {str(2**40): {"content": "<n>"}}}, "has the id 1099511627776"),
    "added id a text": ({"added_tokens_decoder": {"five": {"content": "<n>"}}}, "added tokens"),
    "bos a text": ({"add_bos_token": "yes"}, "add_bos_token is 'yes'"),
}


@pytest.mark.parametrize("case", CONFIG_CASES)
def test_a_tokenizer_config_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, message = CONFIG_CASES[case]
    with within(5), pytest.raises(CheckpointError, match=message):
        load_tokenizer(written(BPE, tmp_path, tokenizer_config=config))


@pytest.mark.parametrize(
    "name", ["tokenizer_config", "special_tokens_map", "generation_config", "added_tokens", "config"]
)
def test_configs_that_are_no_objects_are_refused(name: str, tmp_path: Path) -> None:
    for value in NOT_AN_OBJECT:
        with pytest.raises(CheckpointError, match=name):
            load_tokenizer(written(BPE, tmp_path, **{name: value}))


def test_an_eos_id_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    for value in ("2", [1, "x"], 1.5, True, {}):
        with pytest.raises(CheckpointError, match="token id"):
            load_tokenizer(written(BPE, tmp_path, generation_config={"eos_token_id": value}))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model", "vocab.txt", "source.spm"])
def test_a_file_that_is_not_plain_is_not_opened(file: str, tmp_path: Path) -> None:
    put_socket(tmp_path / file)
    for other in ("vocab.json", "target.spm"):
        (tmp_path / other).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{file} cannot be read: it is no plain file|does not number"):
        load_tokenizer(tmp_path)


def test_an_infinite_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="added tokens"):
        load_tokenizer(written(BPE, tmp_path, added_tokens={"<n>": float("inf")}))


def test_special_tokens_that_could_fill_memory_are_refused() -> None:
    with pytest.raises(DataError, match="200 special tokens of up to 4,096 characters"):
        Disguise([f"{n:04}" * 1024 for n in range(200)], "")


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    files = {
        "empty": ({}, "holds no tokenizer"),
        "words": ({"vocab.txt": b"a\na\n[UNK]"}, r"vocab\.txt has 3 lines"),
        "no unknown": ({"vocab.txt": b"a\nb\n"}, r"\[UNK\]"),
        "bytes": ({"vocab.txt": b"\xff\xfe"}, r"vocab\.txt cannot be read"),
        "sentences": ({"tokenizer.model": b"\x00garbage"}, "not a SentencePiece model"),
        "odd sentences": ({"tokenizer.model": bytes.fromhex("0a05 0a03 ff ff ff")}, "piece 0 is not UTF-8"),
        "no sentences": ({"spiece.model": b""}, "0 pieces"),
        "merges": ({"vocab.json": b"[]", "merges.txt": b"a b"}, "wrong type"),
        "merges of one": ({"vocab.json": b'{"a": 0}', "merges.txt": b"a"}, "merge 0"),
        "marian": ({"vocab.json": b'{"a": 7}', "source.spm": b"", "target.spm": b""}, "does not number its tokens"),
    }
    for name, (contents, message) in files.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        with within(5), pytest.raises(CheckpointError, match=message):
            load_tokenizer(folder)


# --- texts ------------------------------------------------------------------------------------------------------------

MERGED = {"a" * 2**n: n for n in range(8)}
LONG: dict[str, Json] = {
    "byte-level BPE": changed(BPE, put("model", value={
        "type": "BPE", "vocab": MERGED, "merges": [["a" * 2**n] * 2 for n in range(7)]})) | {"added_tokens": []},
    "unigram": changed(UNIGRAM, put("model", "vocab", value=[["<unk>", 0.0], *(["a" * n, -1.0 - 1 / n]
                                                                              for n in range(1, 65))])),
    "words": BPE | {"added_tokens": [], "model": WORD | {"vocab": {"[UNK]": 0, "a": 1, "##a": 2}, "unk_token": "[UNK]",
                                                         "max_input_chars_per_word": 512},
                    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}},
}  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_of_one_character_takes_bounded_time(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(LONG[kind], tmp_path))
    with within(4):
        assert tokenizer.encode("a" * 10**5)
        tokenizer.encode(" " * 10**5 if kind == "words" else "a " * 1000)


@pytest.mark.parametrize("limit", ["PATIENCE", "PATIENCE_IN_ALL"])
def test_patterns_are_tried_for_no_longer_than_patience_allows(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(changed(BPE, split("a|b")), tmp_path)
    assert load_tokenizer(folder).encode("ab")
    monkeypatch.setattr(tokenizer_limits, limit, -1.0)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .* longer than -1\.0 s"):
        load_tokenizer(folder)


class PanicException(BaseException):
    """What the library's compiled code raises where it gives up is known by this name alone."""


PANIC, BARE = PanicException("a slice went wrong"), Exception("retry-limit-in-match over")


@pytest.mark.parametrize("raised", [PANIC, BARE], ids=["panic", "bare"])
def test_whatever_the_library_raises_of_a_text_is_an_error_with_a_remedy(raised: BaseException) -> None:
    with pytest.raises(DataError, match=f"(gave up on|cannot read) this text: {raised}") as caught, explained():
        raise raised
    assert caught.value.remedy == "change the text, or the tokenizer"


@pytest.mark.parametrize("raised", [PANIC, BARE], ids=["panic", "bare"])
def test_whatever_the_library_raises_of_a_file_is_an_error(raised: BaseException) -> None:
    def load() -> None:
        raise raised

    with pytest.raises(CheckpointError, match=f"not a tokenizer: {raised}"):
        tokenizer_limits.guarded(load)


def test_an_interruption_is_no_fault_of_the_library() -> None:
    def load() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer_limits.guarded(load)
    with pytest.raises(KeyboardInterrupt), explained():
        load()


def test_text_never_becomes_a_special_token(tmp_path: Path) -> None:
    reachable = changed(
        UNIGRAM, put("model", "vocab", value=[*UNIGRAM["model"]["vocab"], *([c, -9.0] for c in "</s>")])
    )
    tokenizer = load_tokenizer(written(reachable, tmp_path, tokenizer_config={"eos_token": "</s>"}))
    assert tokenizer.special == {"</s>": 3}
    for text in ("</s>", "a</s></s>ab", "</s>" * 20_000):
        with within(20):
            ids = tokenizer.encode(text)
        assert 3 not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_marked("a</s>") == [1, 3]


def test_which_patterns_repeat_what_they_repeat() -> None:
    known = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for fine in (known, "a+b+", "(?:ab)?c*", r"[()+*]+", r"\(a+\)+", r"(?:\d{3})*", "x{3}", "[]*]+"):
        assert not nested(fine)
    for bad in ("(a+)+", "(?:a*)*", "((a+))*", "(a+b?){2,}", "(?:x|y+)+", "(a{1,9})*", r"(?:[)]+)*"):
        assert nested(bad)


# --- GGUF ------------------------------------------------------------------------------------------------------------

SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -5.0, -6.0, -7.0, -1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
GPT2 = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
}
GGUF_CASES: dict[str, tuple[Json, str]] = {
    "no model": ({"tokenizer.ggml.model": None}, "model is missing"),
    "unknown model": ({"tokenizer.ggml.model": "rwkv"}, "model is 'rwkv'"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "tokens is missing"),
    "tokens a number": ({"tokenizer.ggml.tokens": 5}, "tokens is '5'"),
    "token a number": ({"tokenizer.ggml.tokens": [1] * 8}, "token 0 is"),
    "token empty": ({"tokenizer.ggml.tokens": ["", *"abcdefg"]}, "token 0 is empty"),
    "token twice": ({"tokenizer.ggml.tokens": ["a", "a", *"bcdefg"]}, "token 1 is 'a'"),
    "scores few": ({"tokenizer.ggml.scores": [0.0]}, "scores has 1 entries, for 8"),
    "scores texts": ({"tokenizer.ggml.scores": ["x"] * 8}, "scores"),
    "score not finite": ({"tokenizer.ggml.scores": [0.0] * 7 + [float("nan")]}, "scores holds 'nan'"),
    "types few": ({"tokenizer.ggml.token_type": []}, "token_type has 0 entries"),
    "eos beyond": ({"tokenizer.ggml.eos_token_id": 8}, "eos_token_id is 8"),
    "eos a text": ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id is '2'"),
    "bos switch a number": ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is '1'"),
    "template a list": ({"tokenizer.chat_template": ["x"]}, "chat_template is"),
    "charsmap a number": ({"tokenizer.ggml.precompiled_charsmap": 1}, "precompiled_charsmap is 1"),
    "charsmap no base64": ({"tokenizer.ggml.precompiled_charsmap": "abc"}, "precompiled_charsmap is abc"),
    "charsmap no ASCII": ({"tokenizer.ggml.precompiled_charsmap": "é"}, "precompiled_charsmap is é"),
    "charsmap random": ({"tokenizer.ggml.precompiled_charsmap": list(range(50))}, "charsmap"),
    "long pieces": ({"tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(c * 20_000 for c in "abcde")]}, "too long"),
}
GPT2_CASES: dict[str, tuple[Json, str]] = {
    "unknown pre": ({"tokenizer.ggml.pre": "klingon"}, "pre is 'klingon'"),
    "no merges": ({"tokenizer.ggml.merges": None}, "merges is missing"),
    "merge of one": ({"tokenizer.ggml.merges": ["ab"]}, "merge 0 is 'ab'"),
    "merge a number": ({"tokenizer.ggml.merges": [1]}, "merge 0 is '1'"),
    "merge of a missing token": ({"tokenizer.ggml.merges": ["a z"]}, "merge 0 needs the token 'z'"),
    "merge cycle": ({"tokenizer.ggml.merges": ["ab a", "a ab"]}, "merge 0 needs the token 'aba'"),
    "token twice": ({"tokenizer.ggml.tokens": ["a", "a", "ab", "<|end|>"]}, "tokens 0 and 1 are both 'a'"),
    "pre a number": ({"tokenizer.ggml.pre": 1}, "pre is '1'"),
}


@pytest.mark.parametrize(
    ("base", "case"), [*((SPM, case) for case in GGUF_CASES), *((GPT2, case) for case in GPT2_CASES)],
    ids=[*GGUF_CASES, *GPT2_CASES],
)  # fmt: skip
def test_gguf_metadata_is_refused_by_name(base: Json, case: str) -> None:
    change, message = (GGUF_CASES if base is SPM else GPT2_CASES)[case]
    metadata = {key: value for key, value in (base | change).items() if value is not None}
    with within(8), pytest.raises(CheckpointError, match=rf"model\.gguf: .*{message}"):
        from_metadata(metadata, "model.gguf")


def test_the_same_metadata_unchanged_is_read() -> None:
    assert from_metadata(SPM, "model.gguf").encode_prompt("ab") == [1, 7]
    assert from_metadata(GPT2, "model.gguf").encode("ab") == [2]


# --- anything at all ------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


# one of every step that the library has
NORMALIZERS: list[Json] = [
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
    *({"type": kind} for kind in ("StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "ByteLevel")),
    prepend("a"),
]
SPLITTERS: list[Json] = [
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Split", "pattern": {"Regex": r"\\s+"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": "a"}, "behavior": "MergedWithPrevious", "invert": True},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "Digits", "individual_digits": True},
    {"type": "BertPreTokenizer"},
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    {"type": "UnicodeScripts"},
]
DECODERS: list[Json] = [
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "Fuse"},
    {"type": "ByteFallback"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
ENDS: list[Json] = [
    {"type": "BertProcessing", "sep": ["c", 2], "cls": ["a", 0]},
    template(13),
    {"type": "RobertaProcessing", "sep": ["c", 2], "cls": ["a", 0], "trim_offsets": True, "add_prefix_space": True},
]
BPE_MODEL, WORDS = BPE["model"], WORD | {"max_input_chars_per_word": 9}
MODELS: list[Json] = [
    BPE_MODEL,
    UNIGRAM["model"],
    WORDS,
    {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    BPE_MODEL
    | {
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": "x",
        "continuing_subword_prefix": "#",
        "end_of_word_suffix": "</w>",
        "ignore_merges": True,
    },
]


def steps(key: str, known: list[Json]) -> st.SearchStrategy[Any]:
    some = st.lists(st.sampled_from(known), min_size=1, max_size=3)
    return st.none() | st.sampled_from(known) | some.map(lambda chosen: {"type": "Sequence", key: chosen})


ANY_TOKENIZER = st.fixed_dictionaries({
    "version": st.just("1.0"), "added_tokens": st.sampled_from([[], [TOKEN]]), "model": st.sampled_from(MODELS),
    "normalizer": steps("normalizers", NORMALIZERS), "pre_tokenizer": steps("pretokenizers", SPLITTERS),
    "decoder": steps("decoders", DECODERS), "post_processor": steps("processors", ENDS),
})  # fmt: skip

RICH = changed(BPE, split(r"\s+")) | {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, prepend("a")]},
    "post_processor": template(13),
}
RICH_PLACES = list(places(RICH))


def try_out(tokenizer: Tokenizer) -> None:
    """What was read can be used: only typed errors come of it."""
    try:
        ids = tokenizer.encode_prompt("abc <|end|> d")
        tokenizer.decode(number for number in ids if number < tokenizer.vocab_size)
        tokenizer.tokens_as_text(number for number in ids if number < tokenizer.vocab_size)
        tokenizer.encode_marked("<|end|>")
    except DataError:
        pass


@settings(max_examples=examples(300))
@given(st.sampled_from(RICH_PLACES), values)
def test_any_value_anywhere_in_a_tokenizer_json_is_read_or_refused(path: tuple[str | int, ...], value: Any) -> None:
    from pellucid.text.tokenizer_json import parse
    from pellucid.text.tokenizer_roles import roles_of

    with within(5):
        try:
            inner = parse(json.dumps(changed(RICH, put(*path, value=value))), "tokenizer.json")
            tokenizer = Tokenizer(inner, roles_of(inner, {}, {}, {}, "tokenizer.json"))
        except CheckpointError:
            return
        try_out(tokenizer)


@settings(max_examples=examples(400))
@given(ANY_TOKENIZER.flatmap(spoiled))
def test_a_spoiled_tokenizer_of_any_kind_is_read_or_refused(config: Json) -> None:
    from pellucid.text.tokenizer_json import parse
    from pellucid.text.tokenizer_roles import roles_of

    def read() -> None:
        inner = parse(json.dumps(config), "tokenizer.json")
        try_out(Tokenizer(inner, roles_of(inner, {}, {}, {}, "tokenizer.json")))

    with within(5):
        read_or_refused(read)


CONFIG: Json = {
    "bos_token": "a", "eos_token": {"content": "b"}, "pad_token": None, "add_bos_token": True, "add_eos_token": False,
    "additional_special_tokens": ["d"], "added_tokens_decoder": {"16": {"content": "<n>", "special": True}},
    "chat_template": "{{ messages }}", "do_lower_case": True, "strip_accents": None, "extra_ids": 5,
}  # fmt: skip
BESIDE: Json = {"tokenizer_config": CONFIG, "generation_config": {"eos_token_id": [1, 2], "bos_token_id": 0},
                "added_tokens": {"<m>": 17}, "special_tokens_map": {"unk_token": "c"},
                "config": {"model_type": "roberta", "eos_token_id": 1}}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*tokenizer.json says otherwise:UserWarning")
@settings(max_examples=examples(200))
@given(st.sampled_from([BPE, UNIGRAM]), spoiled(BESIDE))
def test_spoiled_configs_beside_a_tokenizer_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Json, files: Json
) -> None:
    folder = tmp_path_factory.getbasetemp() / "beside"
    shutil.rmtree(folder, ignore_errors=True)
    known = {name: files[name] for name in BESIDE if name in files}
    read_or_refused(lambda: try_out(load_tokenizer(written(tokenizer, folder, **known))))


SENTENCES = bytes.fromhex(  # seven pieces, a trainer and a normalizer, as SentencePiece writes them
    "0a0e0a053c756e6b3e1500000000180 20a0c0a033c733e150000000018030a0d0a043c2f733e15000000001803"
    "0a0d0a04e296816115000080bf18010a0a0a016115000000c018010a0a0a016215000020c018010a0b0a026162"
    "15000040c0180112051801c802011a021800".replace(" ", "")
)


@settings(max_examples=examples(200))
@given(st.data())
def test_a_spoiled_sentencepiece_model_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(SENTENCES)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw))) if data.draw(st.booleans()) else len(raw)
    folder = tmp_path_factory.getbasetemp() / "sentences"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(raw[:cut])
    read_or_refused(lambda: try_out(load_tokenizer(folder)))


def test_the_sentencepiece_model_above_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(SENTENCES)
    assert load_tokenizer(tmp_path).encode("ab") == [6]


@pytest.mark.parametrize("key", ["scores", "token_type"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, "1", None])
def test_scores_beside_tokens_must_be_numbers(key: str, value: Any) -> None:
    metadata: Json = copy.deepcopy(SPM)
    put(f"tokenizer.ggml.{key}", 0, value=value)(metadata)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.ggml\.{key} holds .*\n.*a finite number for each"):
        from_metadata(metadata, "model.gguf")


@pytest.mark.filterwarnings("ignore:.*tokenizer.ggml.pre is missing")
@settings(max_examples=examples(300))
@given(st.sampled_from([SPM, GPT2]), st.data())
def test_any_value_in_gguf_metadata_is_read_or_refused(base: Json, data: st.DataObject) -> None:
    metadata = copy.deepcopy(base)
    path = data.draw(st.sampled_from(list(places(metadata))))
    put(*path, value=data.draw(values))(metadata)
    with within(5):
        try:
            tokenizer = from_metadata(metadata, "model.gguf")
        except CheckpointError:
            return
        try_out(tokenizer)
