"""Every kind of vocabulary, small and learned here, against the libraries that own it."""

from __future__ import annotations

import argparse
import copy
import inspect
import io
import json
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

import pellucid
from pellucid.errors import CheckpointError, DataError
from pellucid.text.tokenizer import END_OF_TEXT, Tokenizer
from pellucid.text.tokenizer_build import Kind
from pellucid.text.tokenizer_files import load_tokenizer
from pellucid.text.tokenizer_gguf import from_metadata

TEXT = [
    *(inspect.getsource(argparse) + inspect.getsource(textwrap)).splitlines(),
    *["naïve café déjà vu", "漢字かな交じり文", "ｆｕｌｌ ｗｉｄｔｈ ﬁne", "Straße ΣΊΣΥΦΟΣ", "مرحبا بالعالم"] * 20,
]
# fmt: off
WORDS = ["a", "the", " ", "  ", "\n", "\t", "\x00", "é", "e\u0301", "ﬁ", "漢", "👩\u200d👧", "self.", "X9", "1234",
         "don't", "Σ", "(a)", " (", "self x", "<s>", "</s>", "<unk>", "[CLS]", "[MASK]", "<0x0A>", "<|endoftext|>", "▁",
         "##", "Ġ"]
# fmt: on
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=12).map("".join))
quick = settings(max_examples=examples(60))


def write(folder: Path, **files: Any) -> Path:
    """``folder`` with JSON files, named without their ending."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@cache
def scratch() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="pellucid-tokenizers-"))


@cache
def byte_bpe() -> Library:
    """As GPT-2's and Llama 3's: a token that is special, one that is not, and one that begins every text."""
    inner = Library(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    begin, end = AddedToken("<|begin|>", special=True), AddedToken("<|end|>", special=True)
    inner.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=600, special_tokens=[begin, end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))  # fmt: skip
    inner.add_tokens([AddedToken("<tool call>", special=False)])
    inner.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", 0)]
    )
    return inner


@cache
def word_piece() -> Library:
    inner = Library(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return inner


CONFIGS: dict[str, dict[str, Any]] = {
    "byte_bpe": {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": "{{ messages }}"},
    "word_piece": {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                   "mask_token": "[MASK]"},
}  # fmt: skip
MAKERS: dict[str, Callable[[], Library]] = {"byte_bpe": byte_bpe, "word_piece": word_piece}


@cache
def published(kind: str) -> tuple[Tokenizer, Any]:
    """Ours and transformers' reading of one folder with a tokenizer.json."""
    folder = write(scratch() / kind, tokenizer_config=CONFIGS[kind] | {"tokenizer_class": "PreTrainedTokenizerFast"})
    MAKERS[kind]().save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


# --- tokenizer.json, against transformers --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@quick
@given(text=texts)
def test_ids_and_text_are_those_of_transformers(kind: str, text: str) -> None:
    ours, theirs = published(kind)
    ids = ours.encode_prompt(text)
    assert ids == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.encode_marked(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.encode(text) == ids[len(ids) - len(ours.encode(text)) - ours.adds_eos :][: len(ours.encode(text))]
    assert not set(ours.encode(text)) & (set(ours.special.values()) - {ours.unk_id})


def test_pairs_are_those_of_transformers() -> None:
    ours, theirs = published("word_piece")
    both = theirs("the first text", "and another", return_token_type_ids=True)
    assert ours.encode_pair("the first text", "and another") == (both["input_ids"], both["token_type_ids"])
    assert 1 in both["token_type_ids"]


@quick
@given(texts)
def test_byte_level_round_trip_is_exact(text: str) -> None:
    ours, _ = published("byte_bpe")
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert b"".join(map(ours.bytes_of, ids)) == text.encode()


def test_roles_of_single_tokens_are_known() -> None:
    ours, _ = published("byte_bpe")
    assert (ours.bos_id, ours.eos_id, ours.stop_ids, ours.adds_bos, ours.adds_eos) == (0, 1, (1,), True, False)
    assert ours.special == {"<|begin|>": 0, "<|end|>": 1}
    assert ours.chat_template == "{{ messages }}"
    assert ours.tokens_as_text([0, *ours.encode("<tool call>")]) == ["<|begin|>", "<tool call>"]
    bert, _ = published("word_piece")
    assert (bert.bos_id, bert.mask_id, bert.pad_id, bert.unk_id) == (None, 4, 0, 1)
    assert (bert.adds_bos, bert.adds_eos, bert.stop_ids) == (True, True, ())
    ids = bert.encode("parser_class")
    assert b"".join(map(bert.bytes_of, ids)) == b" parser _ class"
    assert bert.encode_marked("[MASK]") == [bert.mask_id]
    assert bert.encode("[MASK]") != [bert.mask_id]


@pytest.mark.parametrize("kind", MAKERS)
def test_saved_and_loaded_it_is_the_same_for_us_and_for_transformers(kind: str, tmp_path: Path) -> None:
    ours, _ = published(kind)
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.hash, again.roles) == (ours.hash, ours.roles)
    theirs, folder = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in ("The parser adds two words.", "", " <|end|> [SEP]"):
        ids = ours.encode_prompt(text)
        assert again.encode_prompt(text) == ids == folder.encode_prompt(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == ids
    assert theirs.chat_template == ours.chat_template == folder.chat_template


def test_roles_are_part_of_the_hash() -> None:
    ours, _ = published("byte_bpe")
    folder = write(scratch() / "other roles", tokenizer_config=CONFIGS["byte_bpe"] | {"eos_token": "<|begin|>"})
    byte_bpe().save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).hash != ours.hash
    assert copy.deepcopy(ours).hash == ours.hash


def test_our_own_vocabulary_opens_in_transformers(tmp_path: Path) -> None:
    own = Tokenizer.train(["\n".join(TEXT)], 400)
    own.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    own.save_pretrained(tmp_path, 64)
    theirs, read = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in ("The parser adds two words.", "", f" {END_OF_TEXT}", "漢 \x00"):
        ids = own.encode_prompt(text)
        assert ids == own.encode(text, bos=True) == read.encode_prompt(text)
        assert theirs(text, split_special_tokens=True)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert (read.bos_id, read.eos_id, read.stop_ids) == (own.bos_id, own.eos_id, own.stop_ids)


def test_a_model_folder_keeps_roles_and_template(tmp_path: Path) -> None:
    ours, _ = published("byte_bpe")
    model = pellucid.build(small_spec(ours.vocab_size))
    model.tokenizer = ours
    pellucid.save(model, tmp_path / "model")
    assert pellucid.load(tmp_path / "model").tokenizer.hash == ours.hash
    config = tmp_path / "model" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|end|>", "<|begin|>"))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        pellucid.load(tmp_path / "model")


def small_spec(vocab_size: int) -> Any:
    from pellucid.spec import (
        AttentionSpec,
        BlockSpec,
        DecoderSpec,
        EmbedSpec,
        FFNSpec,
        LayerNormSpec,
        LearnedSpec,
        StackSpec,
    )

    block = BlockSpec(AttentionSpec(2, 2, 4), FFNSpec(16), LayerNormSpec())
    return DecoderSpec(vocab_size, 16, EmbedSpec(LearnedSpec()), StackSpec(8, (block,), LayerNormSpec()))


# --- what folders say, in all their ways ------------------------------------------------------------------------------


def read_with(name: str, **files: Any) -> Tokenizer:
    folder = write(scratch() / name, **files)
    byte_bpe().save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_tokens_that_end_a_text_come_from_every_file() -> None:
    both = read_with("several", tokenizer_config=CONFIGS["byte_bpe"], generation_config={"eos_token_id": [1, 7]})
    assert both.stop_ids == (1, 7)
    bare = read_with("bare", config={"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": -1})
    assert (bare.bos_id, bare.eos_id, bare.stop_ids, bare.pad_id) == (0, 1, (1,), None)
    ordinary = read_with("ordinary", config={"pad_token_id": byte_bpe().token_to_id("!"), "eos_token_id": 1})
    assert (ordinary.pad_id, ordinary.decode(ordinary.encode("!"))) == (None, "!")
    mapped = read_with("mapped", special_tokens_map={"eos_token": {"content": "<|end|>"}})
    assert (mapped.eos_id, mapped.stop_ids) == (1, (1,))


def test_tokens_that_a_model_must_not_write_are_kept(tmp_path: Path) -> None:
    """Marian's padding; words of several tokens are no matter of one token."""
    words = {"bad_words_ids": [[7], [3], [4, 5], [100_000]]}
    ours = read_with(
        "never", tokenizer_config=CONFIGS["byte_bpe"], generation_config=words, config={"bad_words_ids": [[9]]}
    )
    assert ours.never_ids == (3, 7)
    assert read_with("never, of old", tokenizer_config=CONFIGS["byte_bpe"], config=words).never_ids == (3, 7)
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path / "tokenizer.json").never_ids == (3, 7)
    for wrong in ({"a": 1}, [["x"]], 5):
        with pytest.raises(CheckpointError):
            read_with("never, wrong", tokenizer_config=CONFIGS["byte_bpe"], generation_config={"bad_words_ids": wrong})


def test_beside_a_tokenizer_json_the_flags_of_begin_and_end_are_not_obeyed_but_a_disagreement_is_said() -> None:
    for flags in (
        {},
        {"add_bos_token": None},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": False},
    ):
        ours = read_with(f"agrees {flags}", tokenizer_config=CONFIGS["byte_bpe"] | flags)
        assert ours.encode_prompt("the") == [0, *ours.encode("the")]
        assert ours.adds_bos
        assert ours.encode_marked("<|begin|>the") == [0, *ours.encode("the")]
    for flags, told in (
        ({"add_bos_token": False}, "add_bos_token is false, but tokenizer.json"),
        ({"add_eos_token": True}, "add_eos_token is true, but tokenizer.json"),
    ):
        with pytest.warns(UserWarning, match=told):
            ours = read_with(f"disagrees {flags}", tokenizer_config=CONFIGS["byte_bpe"] | flags)
        assert ours.encode_prompt("the") == [0, *ours.encode("the")]


def test_without_a_tokenizer_json_a_begin_of_text_token_stands_as_the_config_says() -> None:
    inner = json.loads(byte_bpe().to_str())["model"]
    for asked in (True, False):
        folder = write(
            scratch() / f"merged {asked}",
            tokenizer_config=CONFIGS["byte_bpe"] | {"add_bos_token": asked, "add_eos_token": not asked},
            vocab=inner["vocab"],
        )
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in inner["merges"]]
        (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
        ours = load_tokenizer(folder)
        assert ours.adds_bos is asked
        assert ours.encode_prompt("the") == [*[0][:asked], *ours.encode("the"), *[1][asked:]]


def test_the_template_may_lie_in_a_file_of_its_own_or_among_others() -> None:
    several = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    assert read_with("list", tokenizer_config=CONFIGS["byte_bpe"] | {"chat_template": several}).chat_template == "D"
    folder = write(scratch() / "jinja", tokenizer_config=CONFIGS["byte_bpe"])
    byte_bpe().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("from a file")
    assert load_tokenizer(folder).chat_template == "from a file"


def test_added_tokens_that_the_vocabulary_lacks_are_added_under_their_ids() -> None:
    size = byte_bpe().get_vocab_size()
    token = {"content": "<|new|>", "special": True, "normalized": False}
    ours = read_with("added", tokenizer_config=CONFIGS["byte_bpe"] | {"added_tokens_decoder": {str(size): token}})
    assert ours.special["<|new|>"] == size
    assert ours.encode_marked("<|new|>") == [size]
    with pytest.raises(CheckpointError, match="has the id 9999"):
        read_with("wrong", tokenizer_config=CONFIGS["byte_bpe"] | {"added_tokens_decoder": {"9999": token}})


# --- older files ------------------------------------------------------------------------------------------------------


def test_words_a_line_and_merges_a_line_are_the_same_vocabularies() -> None:
    bert, _ = published("word_piece")
    folder = write(scratch() / "vocab.txt", tokenizer_config=CONFIGS["word_piece"])
    vocab = bert.inner.get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)))
    older = load_tokenizer(folder)
    gpt, _ = published("byte_bpe")
    model = json.loads(gpt.inner.to_str())["model"]
    plain = write(scratch() / "merges.txt", tokenizer_config=CONFIGS["byte_bpe"], vocab=model["vocab"])
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (plain / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    pairs = [(bert, older), (gpt, load_tokenizer(plain))]
    for known, read in pairs:
        for text in ("The parser_class adds two café.", " x  y", "[MASK]<|end|>", "漢👩‍👩‍👧"):
            assert read.encode(text) == known.encode(text)
            assert read.decode(read.encode(text)) == known.decode(known.encode(text))
    assert older.encode_prompt("the") == bert.encode_prompt("the")
    assert older.encode_pair("a", "b") == bert.encode_pair("a", "b")


LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
GEMMA = LLAMA | {"add_dummy_prefix": False, "allow_whitespace_only_pieces": True,
                 "user_defined_symbols": ["▁▁", "\n", "\n\n", "<b>"]}  # fmt: skip
SYMBOLS = {"byte_fallback": True, "normalization_rule_name": "identity"}  # as ALBERT's: spaces at the ends go
SENTENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "unigram": ("unigram", {}),
    "unigram with bytes": ("unigram", {"byte_fallback": True}),
    "unigram as it is": ("unigram", LLAMA),
    "unigram with symbols": ("unigram", SYMBOLS | {"user_defined_symbols": [".", "'", "(", ")", "<b>", "self▁x"]}),
    "bpe with symbols": ("bpe", SYMBOLS | {"user_defined_symbols": [".", "'", "(", ")", "1"]}),
    "bpe": ("bpe", {}),
    "llama": ("bpe", LLAMA),
    "gemma": ("bpe", GEMMA),
}


@cache
def sentence(name: str) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor, bytes]:
    kind, options = SENTENCES[name]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=out, vocab_size=720, model_type=kind, minloglevel=2, **options
    )
    folder = write(scratch() / name, config={"model_type": "llama"})
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    return load_tokenizer(folder), sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()), out.getvalue()


@pytest.mark.parametrize("name", SENTENCES)
@quick
@given(text=texts.map(lambda text: text.replace("\x00", "").replace("▁", "")))
def test_ids_and_text_are_those_of_sentencepiece(name: str, text: str) -> None:
    ours, theirs, _ = sentence(name)
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    if theirs.unk_id() not in ids:
        assert ours.decode(ids) == theirs.decode(ids)
    if name in ("llama", "gemma", "unigram as it is"):
        assert ours.decode(ids) == text


def test_a_sentence_vocabulary_knows_its_ends_and_its_bytes() -> None:
    ours, theirs, _ = sentence("llama")
    assert ours.encode_prompt("the parser") == [theirs.bos_id(), *theirs.encode("the parser")]
    assert b"".join(map(ours.bytes_of, ours.encode("the 👩"))) == " the 👩".encode()
    assert ours.tokens_as_text(ours.encode("\n")) == [" ", "\n"]
    assert ours.special == {"<unk>": 0, "<s>": 1, "</s>": 2}


@pytest.mark.parametrize("name", ["unigram with symbols", "bpe with symbols"])
def test_a_symbol_inside_a_text_neither_ends_one_nor_begins_one(name: str) -> None:
    ours, theirs, _ = sentence(name)
    ids = ours.encode("the (first) self.x isn't")
    assert ids == theirs.encode("the (first) self.x isn't")
    assert ours.decode(ids) == "the (first) self.x isn't"
    assert "(" in theirs.id_to_piece(ids), "control: it is one"


def test_long_texts_are_encoded_as_a_whole() -> None:
    from pellucid.text import pieces as module

    text = "\n".join(TEXT)[:30_000]
    for ours in (sentence("llama")[0], sentence("unigram")[0], published("word_piece")[0], published("byte_bpe")[0]):
        whole = ours.encode(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_PIECE", 512)
            assert len(list(module.pieces(text))) > 30
            assert ours.encode(text) == whole


def test_marian_cuts_by_one_vocabulary_and_numbers_by_another(tmp_path: Path) -> None:
    _, theirs, model = sentence("unigram")
    pieces = [theirs.id_to_piece(n) for n in range(3, theirs.get_piece_size())]
    shared = ["</s>", "<unk>", ">>fra<<", *reversed(pieces), "▁Haus", "thep", "<pad>"]
    folder = write(tmp_path, vocab={piece: number for number, piece in enumerate(shared)}, config={})
    (folder / "source.spm").write_bytes(model)
    (folder / "target.spm").write_bytes(model)
    ours = load_tokenizer(folder)
    for text in ("The parser adds two words.", "thep Haus", "ﬁne  text ", "</s>"):
        assert ours.encode(text) == [shared.index(piece) for piece in theirs.encode(text, out_type=str)]
    assert ours.encode_prompt(">>fra<< the") == [2, *ours.encode("the"), 0]
    assert ours.decode([shared.index("▁Haus"), shared.index("thep")]) == "Hausthep"
    assert (ours.eos_id, ours.pad_id, ours.adds_bos, ours.adds_eos) == (0, len(shared) - 1, False, True)


# --- GGUF -------------------------------------------------------------------------------------------------------------


def gguf_of(ours: Tokenizer, model: str, **more: Any) -> dict[str, Any]:
    """The metadata that a converter would write for a vocabulary."""
    vocab = ours.inner.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    added = ours.inner.get_added_tokens_decoder()
    kinds = [Kind.NORMAL if n not in added else Kind.CONTROL if added[n].special else Kind.USER_DEFINED
             for n in range(len(tokens))]  # fmt: skip
    metadata = {"model": model, "tokens": tokens, "token_type": [int(kind) for kind in kinds], **more}
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


@cache
def from_gguf(kind: str) -> tuple[Tokenizer, Tokenizer]:
    """A vocabulary out of GGUF metadata, and the one it was written from."""
    if kind == "gpt2":
        known = published("byte_bpe")[0]
        merges = [" ".join(merge) for merge in json.loads(known.inner.to_str())["model"]["merges"]]
        ids = {"bos_token_id": 0, "eos_token_id": 1, "add_bos_token": True}
        return from_metadata(gguf_of(known, "gpt2", pre="gpt-2", merges=merges, **ids), "x.gguf"), known
    if kind == "bert":
        known = published("word_piece")[0]
        metadata = gguf_of(known, "bert", cls_token_id=2, seperator_token_id=3, unknown_token_id=1, mask_token_id=4)
        tokens = metadata["tokenizer.ggml.tokens"]
        metadata["tokenizer.ggml.tokens"] = tokens[:5] + [
            token[2:] if token.startswith("##") else "▁" + token for token in tokens[5:]
        ]
        return from_metadata(metadata, "x.gguf"), known
    known, theirs, model = sentence(kind)
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = getattr(schema, "ModelProto").FromString(model)  # noqa: B009  (made as it is imported)
    tokens = [piece.piece.replace("▁", " ") if piece.type == 4 else piece.piece for piece in proto.pieces]
    metadata = {
        "model": "t5" if kind.startswith("unigram") else "llama",
        "tokens": tokens,
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "bos_token_id": theirs.bos_id(),
        "eos_token_id": theirs.eos_id(),
        "unknown_token_id": theirs.unk_id(),
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
        "precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap),
        "add_bos_token": True,
        "add_eos_token": False,
    }
    return from_metadata({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, "x.gguf"), known


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama", "gemma", "unigram"])
@quick
@given(text=texts)
def test_gguf_metadata_gives_the_same_vocabulary(kind: str, text: str) -> None:
    read, known = from_gguf(kind)
    assert read.encode_prompt(text) == known.encode_prompt(text)
    assert read.decode(read.encode(text)) == known.decode(known.encode(text))


def test_gguf_says_what_ends_a_turn() -> None:
    known = published("byte_bpe")[0]
    metadata = gguf_of(
        known, "gpt2", pre="gpt-2", merges=[], eos_token_id=0, eot_token_id=5, padding_token_id=0xFFFFFFFF
    )
    metadata |= {"tokenizer.chat_template": "{{ x }}"}
    metadata["tokenizer.ggml.tokens"][1] = "<|im_end|>"
    read = from_metadata(metadata, "x.gguf")
    assert (read.stop_ids, read.eos_id, read.pad_id, read.chat_template) == ((0, 1, 5), 0, None, "{{ x }}")
    assert not read.adds_bos


SPLITS = {
    "gpt-2": ["don", "'t", " 1234", " x", "  ", " y", "\n\n", "\n", "z", "\t", "!?"],
    "smollm": ["don", "'t", " ", "1", "2", "3", "4", " x", "  ", " y", "\n\n", "\n", "z", "\t", "!?"],
    "llama-bpe": ["don", "'t", " ", "123", "4", " x", "  ", " y", "\n\n\n", "z", "\t", "!?"],
    "qwen2": ["don", "'t", " ", "1", "2", "3", "4", " x", "  ", " y", "\n\n\n", "z", "\t", "!?"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_each_pre_tokenizer_cuts_its_own_way(pre: str) -> None:
    known = published("byte_bpe")[0]
    read = from_metadata(gguf_of(known, "gpt2", pre=pre, merges=[]), "x.gguf")
    text = "don't 1234 x   y\n\n\nz\t!?"
    words = [text[start:stop] for _, (start, stop) in read.inner.pre_tokenizer.pre_tokenize_str(text)]
    assert "".join(words) == text
    assert words == SPLITS[pre]


def test_a_surrogate_is_refused_everywhere() -> None:
    ours, _ = published("word_piece")
    for call in (ours.encode, ours.encode_prompt, ours.encode_marked, lambda text: ours.encode_pair("a", text)):
        with pytest.raises(DataError, match=r"unpaired surrogate, U\+D800"):
            call("x\ud800")
