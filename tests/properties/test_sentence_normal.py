"""What SentencePiece does to a text before it is cut: ours is its own, on every entry of its tables and on any text."""

from __future__ import annotations

import io
import json
import random
import struct
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import CheckpointError
from pellucid.text.charsmap import NormalForms
from pellucid.text.sentence_normal import Normal
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_files import load_tokenizer
from pellucid.text.tokenizer_gguf import from_metadata

LINES = [f"{a}{b} was {b}{a} here" for a in "abcdefgh" for b in "ijklmnop"] + ["tiếng Việt", "한국어", "がぎぐ ﾀﾞ"]
# letters that come in parts, signs that become several, spaces of all kinds, and marks that no table composes
# fmt: off
WORDS = ["Vie\u0323\u0302t", "X\u0303", "e\u0301\u0302", "ﾀﾞ", "\u1112\u1161\u11ab", "ﬁ", "½", "\r\n", "\u3000",
         "\u00a0", "\u200b", "  ", " ", "\t", "Σ", "İ", "ß", "foo", "foo\u0301", "a", "was", "▁", "Å", "\u0345",
         "Ａ\u0303"]
# fmt: on
texts = st.one_of(st.lists(st.sampled_from(WORDS), max_size=10).map("".join), st.text(max_size=20))
texts = texts.map(lambda text: text.replace("\x00", ""))
RULES = ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]


@cache
def trained(kind: str = "bpe", rule: str = "nmt_nfkc", prefix: bool = True, squeeze: bool = True) -> bytes:
    """A model with three symbols."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=made, model_type=kind, vocab_size=360, byte_fallback=True,
        normalization_rule_name=rule, add_dummy_prefix=prefix, remove_extra_whitespaces=squeeze, minloglevel=2,
        user_defined_symbols=["foo", "ﬁ", "(x▁y)"], hard_vocab_limit=False, num_threads=1,
    )  # fmt: skip
    return made.getvalue()


def spec_of(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2 as schema

    return getattr(schema, "ModelProto").FromString(model)  # noqa: B009  (made as it is imported)


@cache
def vocabulary(folder: Path, *way: Any) -> tuple[Tokenizer, Any]:
    """Ours and SentencePiece's."""
    (folder / "tokenizer.model").write_bytes(trained(*way))
    return load_tokenizer(folder), sentencepiece.SentencePieceProcessor(model_proto=trained(*way))


@cache
def table(rule: str) -> tuple[NormalForms, Any]:
    """Of normal forms alone: ours and SentencePiece's own."""
    theirs = sentencepiece.SentencePieceNormalizer(
        model_proto=trained(rule=rule), add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
    )
    return NormalForms(spec_of(trained(rule=rule)).normalizer_spec.precompiled_charsmap), theirs


# --- normal forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_letters_in_parts_have_the_forms_of_sentencepiece(rule: str) -> None:
    """All of Unicode's, a quarter for each table, each before another letter; and a sample of single characters."""
    forms, theirs = table(rule)
    everything = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    parted = [parts for letter in everything if (parts := unicodedata.normalize("NFD", letter)) != letter]
    assert len(parted) > 13_000
    for some in (parted[RULES.index(rule) :: len(RULES)], random.Random(rule).sample(everything, 1_000)):
        whole = "x".join(some)
        assert forms(whole) == theirs.Normalize(whole)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=50)
@given(text=texts)
def test_any_text_has_the_form_of_sentencepiece(rule: str, text: str) -> None:
    forms, theirs = table(rule)
    assert forms(text) == theirs.Normalize(text)


def test_of_several_entries_the_longest_counts_and_counts_once(tmp_path: Path) -> None:
    rules = {"a": "1", "ab": "2", "abc": "3", "bcd": "4", "x": "", "1": "9", "e": "  y"}
    codes = ([" ".join(f"{ord(c):X}" for c in side) for side in rule] for rule in rules.items())
    (tmp_path / "rules.tsv").write_text("".join("\t".join(rule) + "\n" for rule in codes))
    theirs = sentencepiece.SentencePieceNormalizer(
        rule_tsv=str(tmp_path / "rules.tsv"), add_dummy_prefix=False, escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    forms = NormalForms(spec_of(theirs.serialized_model_proto()).normalizer_spec.precompiled_charsmap)
    for text in ("a", "ab", "abc", "abcd", "bcd", "aabb", "xax", "ababcabcd", "zbcz", "1a", "eae", ""):
        assert forms(text) == theirs.Normalize(text)
    assert forms("abcd a1x") == "3d 19"


LEAF = [2 << 10, 0, 1 << 31 | 5, 1 << 10 | 1 << 8 | 1]  # the key "\x01", whose form begins 5 bytes behind the trie
DAMAGED = [
    (16, LEAF, b"abc", "no end"),
    (16, LEAF, b"a" * 300 + b"\0", "no end"),
    (400, LEAF, b"\0", "damaged"),
    (0, [], b"", "damaged"),
]


@pytest.mark.parametrize(("size", "units", "forms", "named"), DAMAGED)
def test_a_damaged_table_is_refused(size: int, units: list[int], forms: bytes, named: str) -> None:
    blob = struct.pack(f"<{1 + len(units)}I", size, *units) + forms if units else forms
    with pytest.raises(CheckpointError, match=f"precompiled_charsmap .*{named}"):
        NormalForms(blob)


def test_a_form_that_is_not_there_is_refused_where_it_is_met() -> None:
    forms = NormalForms(struct.pack("<5I", 16, *LEAF) + b"abc\0")
    assert forms("a") == "a"
    with pytest.raises(CheckpointError, match="no form at 5"):
        forms("\x01")


def test_a_table_that_leads_in_circles_ends() -> None:
    """The root's child for byte 1 has its own children where it lies itself."""
    forms = NormalForms(struct.pack("<5I", 16, 2 << 10, 0, 1 << 31, 1 << 10 | 1 << 8 | 1) + b"x\0")
    assert forms("\x01" * 150) == "xxx"


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[Any, Path] = {}
    return lambda *way: vocabulary(made.setdefault(way, tmp_path_factory.mktemp("spm")), *way)


WAYS = [(kind, rule, prefix, squeeze) for kind in ("bpe", "unigram") for rule in ("nmt_nfkc", "identity")
        for prefix in (True, False) for squeeze in (True, False)]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=25)
@given(text=texts)
def test_ids_are_those_of_sentencepiece_around_symbols_and_marks(folder: Any, way: Any, text: str) -> None:
    ours, theirs = folder(*way)
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


def test_a_symbol_keeps_the_spaces_beside_it(folder: Any) -> None:
    """It used to be cut out first: each side was a text of its own, whose spaces went."""
    ours, theirs = folder("bpe")
    for text in ("a foo b", "he was fooling", "foo here", "foo foo", "  foo  ", "a(x y)b"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == " ".join(text.split())


def test_a_mark_of_a_space_at_the_end_goes_as_spaces_do(tmp_path: Path) -> None:
    """Also where the steps of the library are enough: a model without a table and without symbols."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=made, vocab_size=200, normalization_rule_name="identity",
        hard_vocab_limit=False, minloglevel=2, num_threads=1, model_type="bpe",
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
    ours, theirs = load_tokenizer(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    assert ours.normal is None
    for text in ("was▁", "a ▁ ", "▁", "▁ was"):
        assert ours.encode(text) == theirs.encode(text)


def test_letters_in_parts_keep_their_marks(folder: Any) -> None:
    ours, _ = folder("unigram")
    for text in ("Việt", "한국어", "がぎぐ", "lǖ nǚ"):
        assert ours.decode(ours.encode(unicodedata.normalize("NFD", text))) == text
    assert ours.decode(ours.encode("ﾀﾞ")) == "ダ"


@pytest.mark.parametrize("way", [("bpe",), ("unigram", "nmt_nfkc_cf"), ("bpe", "identity", True, False)], ids=str)
def test_saved_and_loaded_it_is_the_same(folder: Any, way: Any, tmp_path: Path) -> None:
    ours, theirs = folder(*way)
    ours.save(tmp_path)
    for again in (Tokenizer.load(tmp_path / "tokenizer.json"), load_tokenizer(tmp_path)):
        assert (again.hash, again.roles, again.normal) == (ours.hash, ours.roles, ours.normal)
        for text in ("a foo b", "Vie\u0323\u0302t  was", "ﬁ x"):
            assert again.encode(text) == theirs.encode(text)
    said = (tmp_path / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(said.replace('"foo"', "7"))
    with pytest.raises(CheckpointError, match="sentencepiece_symbols"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_special_tokens_and_added_ones_end_a_text(folder: Any, tmp_path: Path) -> None:
    """Each begins another, whose spaces at the ends go, as those of any text do."""
    ours, _ = folder("bpe")
    (tmp_path / "tokenizer.model").write_bytes(trained())
    config = {"added_tokens_decoder": {str(ours.vocab_size): {"content": "<tool>", "special": False}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    more = load_tokenizer(tmp_path)
    assert more.encode("a foo <tool> b") == [*ours.encode("a foo"), ours.vocab_size, *ours.encode("b")]
    marked = ours.encode_marked("<s>a foo</s> Vie\u0323t")
    assert marked == [1, *ours.encode("a foo"), 2, *ours.encode("Vie\u0323t")]
    assert marked == ours.encode_between(["", "a foo", " Vie\u0323t"], ["<s>", "</s>"])
    assert not {1, 2} & set(ours.encode("<s>a foo</s>"))


def test_a_gguf_keeps_marks_of_letters_in_parts(folder: Any) -> None:
    ours, theirs = folder("unigram")
    proto = spec_of(trained("unigram"))
    metadata = {
        "model": "t5",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [1 if piece.type == 4 else piece.type for piece in proto.pieces],
        "unknown_token_id": theirs.unk_id(),
        "remove_extra_whitespaces": True,
        "precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap),
    }
    read = from_metadata({f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, "x.gguf")
    for text in ("Vie\u0323\u0302t was", "\u1112\u1161\u11ab", "ﾀﾞ\r\nX\u0303"):
        assert read.encode(text) == ours.encode(text)


def test_steps_before_the_table_run_before_it() -> None:
    normal = Normal(spec_of(trained()).normalizer_spec.precompiled_charsmap, before=({"type": "Lowercase"},))
    assert normal("ＡＢ  ﬁ") == " ab  fi"
    assert [step["type"] for step in normal.steps()] == ["Lowercase", "Precompiled", "Prepend", "Replace"]
