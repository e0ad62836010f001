"""The tokenizers of real checkpoints, against transformers' reading of the same files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoints import gemma, minilm, smollm2
from transformers import AutoTokenizer

from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_files import load_tokenizer
from pellucid.text.tokenizer_gguf import from_metadata

TEXTS = [
    "The capital of France is",
    "",
    " ",
    "  two  spaces, then\ttabs\t\tand\r\n\r\nlines\n\n\n",
    "don't DON'T it's 12345 3.14159 v1.2.3",
    "naïve café, e\u0301 (decomposed), ﬁne, ｆｕｌｌ ｗｉｄｔｈ",
    "漢字かな交じり文。한국어 텍스트 — русский текст",
    "مرحبا بالعالم שלום עולם",
    "👩‍👩‍👧 🏳️‍🌈 🤷🏽‍♀️",
    "\x00\x01\x7f\u200b\ufeff",
    "def f(self, x):\n        return {'a': [x ** 2 for _ in range(10)]}\n",
    "<html><b>bold</b></html> user@example.org https://example.org/?q=1&r=2",
]
SPELLED = "<|im_end|> <|endoftext|> <end_of_turn> <eos><bos> [CLS] [MASK] </s>"


@cache
def read(path: Path) -> Tokenizer:
    return from_metadata(GGUFFile(path).metadata, str(path))


def theirs_of(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def assert_equal(ours: Tokenizer, theirs: Any) -> None:
    for text in [*TEXTS, " ".join(TEXTS)]:
        ids = theirs(text)["input_ids"]
        assert ours.encode_prompt(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.encode_marked(SPELLED) == theirs(SPELLED, add_special_tokens=False)["input_ids"]
    assert not set(ours.encode(SPELLED)) & (set(ours.special.values()) - {ours.unk_id})


def test_smollm2_is_what_transformers_reads() -> None:
    ours, theirs = read(smollm2()), theirs_of(smollm2())
    assert_equal(ours, theirs)
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (theirs.bos_token_id, theirs.eos_token_id, len(theirs))
    assert ours.chat_template == theirs.chat_template
    assert set(ours.special) >= {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}
    assert ours.tokens_as_text(ours.stop_ids) == ["<|endoftext|>", "<|im_end|>"]
    assert not ours.adds_bos
    for text in TEXTS:  # its vocabulary lacks some bytes, but none of these
        assert ours.decode(ours.encode(text)) == text


def test_digits_of_smollm2_stand_alone() -> None:
    ours = read(smollm2())
    assert ours.tokens_as_text(ours.encode("12345")) == list("12345")


@pytest.mark.slow  # transformers takes a minute for it
def test_gemma_is_what_transformers_reads() -> None:
    assert_equal(read(gemma()), theirs_of(gemma()))


@pytest.mark.slow
def test_gemma_keeps_every_text_and_its_published_ids() -> None:
    ours = read(gemma())
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
        assert b"".join(map(ours.bytes_of, ours.encode(text))) == text.encode()
        assert ours.encode_prompt(text) == [2, *ours.encode(text)]
    assert ours.encode("The capital of France is") == [818, 5279, 529, 7001, 563]  # as Google's own tokenizer has it
    assert ours.encode_marked("<start_of_turn>user\n") == [105, 2364, 107]
    assert ours.tokens_as_text(ours.encode("a    b\n\n\n")) == ["a", "    ", "b", "\n\n\n"]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.vocab_size) == (2, 1, 0, 3, 262144)
    assert ours.tokens_as_text(ours.stop_ids) == ["<eos>", "<end_of_turn>"]


def test_minilm_is_what_transformers_reads(tmp_path: Path) -> None:
    ours, theirs = load_tokenizer(minilm()), AutoTokenizer.from_pretrained(minilm())
    assert_equal(ours, theirs)
    assert (ours.mask_id, ours.pad_id, ours.bos_id) == (theirs.mask_token_id, theirs.pad_token_id, None)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm() / name).read_bytes())
    assert_equal(load_tokenizer(tmp_path), theirs)  # its older file says the same


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_saved_in_our_folder_it_opens_in_transformers(name: str, tmp_path: Path) -> None:
    ours = read(smollm2()) if name == "smollm2" else load_tokenizer(minilm())
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.hash, again.roles) == (ours.hash, ours.roles)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert_equal(again, theirs)
    assert theirs.chat_template == ours.chat_template
