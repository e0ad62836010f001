"""What tokenizer_config.json and special_tokens_map.json say beside a vocabulary counts as it does for transformers."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from pellucid.errors import CheckpointError
from pellucid.text.chat import special_names
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_files import load_tokenizer
from pellucid.text.tokenizer_flags import GENERATION, table

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*BERT, "the", "The", "cat", "Cat", "café", "cafe", "漢", "字", "漢字"]
TEXT = "The Cat café 漢字"


def word_piece(lowercase: bool = False, accents: bool | None = None, chinese: bool = True) -> Library:
    made = Library(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(True, chinese, accents, lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(BERT)
    return made


@cache
def byte_bpe(prefix: bool = False) -> Library:
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "<image>", "<video>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the cat sat on the mat " * 9], trainer)
    return made


def folder_of(made: Library, folder: Path, **said: Any) -> Path:
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


CLASSES = ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "PreTrainedTokenizerFast"]


@pytest.mark.parametrize("name", CLASSES)
def test_case_and_accents_are_those_of_the_class_that_is_named(name: str, tmp_path: Path) -> None:
    flags: tuple[bool | None, ...] = (True, False, None)
    for lowers, flag, accents in itertools.product((True, False), flags, flags):
        said = {"do_lower_case": flag, "strip_accents": accents}
        said = {key: value for key, value in said.items() if value is not None}
        folder = folder_of(word_piece(lowers), tmp_path, tokenizer_class=name, **said)
        right = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
        assert load_tokenizer(folder).encode_prompt(TEXT) == right, (lowers, said)


def test_the_class_of_a_folder_that_names_none_is_its_models(tmp_path: Path) -> None:
    folder = folder_of(word_piece(), tmp_path, do_lower_case=True)
    plain = load_tokenizer(folder).encode(TEXT)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    ids = load_tokenizer(folder).encode_prompt(TEXT)
    assert ids == AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    assert ids[1:-1] != plain


def test_a_flag_that_is_not_true_or_false_is_refused_where_it_is_obeyed(tmp_path: Path) -> None:
    folder = folder_of(word_piece(), tmp_path, tokenizer_class="BertTokenizer", do_lower_case="yes")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: do_lower_case is 'yes'"):
        load_tokenizer(folder)
    folder_of(word_piece(), tmp_path, tokenizer_class="PreTrainedTokenizerFast", do_lower_case="yes")
    assert load_tokenizer(folder).encode("The") == [WORDS.index("The")]


ROWS = [
    (kind, name, flag, happens)
    for kind, classes in table()[GENERATION]["kinds"].items()
    for name, row in classes.items()
    for flag, happens in row.items()
]
MADE = {
    ("WordPiece", "do_lower_case"): lambda on: word_piece(on),
    ("WordPiece", "strip_accents"): lambda on: word_piece(accents=on),
    ("WordPiece", "tokenize_chinese_chars"): lambda on: word_piece(chinese=on),
    ("byte-level BPE", "add_prefix_space"): byte_bpe,
}
PROBES = {
    "do_lower_case": ("The", "the"),
    "strip_accents": ("café", "cafe"),
    "tokenize_chinese_chars": ("漢字", "漢 字"),
    "add_prefix_space": ("cat", " cat"),
}


@pytest.mark.parametrize(("kind", "flag"), MADE)
def test_every_class_obeys_what_the_table_says(kind: str, flag: str, tmp_path: Path) -> None:
    rows = [(name, happens) for of, name, about, happens in ROWS if (of, about) == (kind, flag)]
    assert rows
    seen: dict[str, list[bool]] = {}
    for name, happens in rows:
        if happens in seen:
            continue
        seen[happens] = []
        for on, said in itertools.product((True, False), (True, False, None)):
            more = {"do_lower_case": False} if flag != "do_lower_case" else {}
            given = more if said is None else {**more, flag: said}
            folder = folder_of(MADE[kind, flag](on), tmp_path, tokenizer_class=name, **given)
            read, (one, other) = load_tokenizer(folder), PROBES[flag]
            silent = {"file": on, "said": on, "said or true": True}.get(happens, False)
            wanted = on if happens == "file" else silent if said is None else said
            assert (read.encode(one) == read.encode(other)) == wanted, (name, happens, on, said)


def test_names_of_special_tokens_are_those_that_templates_get(tmp_path: Path) -> None:
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "[CLS]",
        "sep_token": {"content": "[SEP]", "__type": "AddedToken"}, "video_token": "<video>",
        "extra_special_tokens": {"image_token": "<image>"},
    }  # fmt: skip
    folder = folder_of(byte_bpe(), tmp_path, **said)
    ours = load_tokenizer(folder)
    assert special_names(ours) == AutoTokenizer.from_pretrained(folder).special_tokens_map
    (tmp_path / "again").mkdir()
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again" / "tokenizer.json")
    assert (special_names(again), again.hash) == (special_names(ours), ours.hash)


MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}


@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
def test_a_mask_takes_the_space_before_it_where_any_file_says_so(file: str, tmp_path: Path) -> None:
    """Folders of older versions: vocab.json and merges.txt."""
    learned = json.loads(byte_bpe().to_str())["model"]
    vocab = {**learned["vocab"], "<mask>": len(learned["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{' '.join(m)}\n" for m in learned["merges"]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
             "cls_token": "<s>", "sep_token": "</s>"}  # fmt: skip
    said = {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>"}}
    typed = MASK if file.startswith("special") else {"__type": "AddedToken", **MASK}
    said[file] = {**said.get(file, {}), **names, "mask_token": typed}  # pyright: ignore[reportArgumentType]
    for name, content in said.items():
        (tmp_path / name).write_text(json.dumps(content))
    text = "the cat <mask> on the mat"
    right = AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)["input_ids"]
    ids = load_tokenizer(tmp_path).encode_marked(text)
    assert ids == right
    assert vocab["Ġ"] not in ids
