"""Vocabularies in GGUF files: what llama.cpp reads is read, what a file leaves out is said, what is lost is named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.checkpoints.gguf.write import to_gguf
from pellucid.designs import language_models
from pellucid.errors import CheckpointError
from pellucid.nn.models import build_model
from pellucid.text.gguf_splits import BY_NAME
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_build import Kind
from pellucid.text.tokenizer_files import load_tokenizer
from pellucid.text.tokenizer_gguf import from_metadata
from pellucid.text.tokenizer_roles import Roles

NORMAL, UNKNOWN, CONTROL = int(Kind.NORMAL), int(Kind.UNKNOWN), int(Kind.CONTROL)
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["1 2", "3 4", "12 34", "12 3", "! \u010a", "' S", "\u0120 \u0120"]


def metadata_of(**said: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in said.items() if value is not None}


def byte_level(**said: Any) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary with a few merges, whose last token may begin a text."""
    tokens = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES), "<s>"]
    kinds = [*[NORMAL] * (len(tokens) - 1), CONTROL]
    return metadata_of(
        model="gpt2", tokens=tokens, token_type=kinds, merges=MERGES, bos_token_id=len(tokens) - 1, **said
    )


# --- how a text is split ---------------------------------------------------------------------------------------------


def test_a_file_that_does_not_say_how_it_splits_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"x\.gguf: tokenizer\.ggml\.pre is missing.*'gpt-2'|\"gpt-2\""):
        silent = from_metadata(byte_level() | {"general.architecture": "llama"}, "x.gguf")
    assert silent.hash == from_metadata(byte_level(pre="gpt-2"), "x.gguf").hash
    with pytest.raises(CheckpointError, match="pre is '7'"):
        from_metadata(byte_level(pre=7), "x.gguf")


@pytest.mark.parametrize("architecture", ["gpt2", "gptneox"])
def test_a_model_that_splits_as_gpt2_needs_not_say_it(architecture: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_metadata(byte_level() | {"general.architecture": architecture}, "x.gguf")


TEXT = "don't 1234 naïve x\u0303 a.b  c+d\n\n"
# fmt: off
WORDS = {
    "qwen35": ["don", "'t", " ", "1", "2", "3", "4", " naïve", " x\u0303", " a", ".b", " ", " c", "+d", "\n\n"],
    "falcon": ["don", "'", "t", " ", "123", "4", " naïve", " x", "\u0303", " a", ".", "b", " ", " c", "+", "d", "\n\n"],
    "deepseek-coder": ["don", "'", "t", " ", "1", "2", "3", "4", " naïve", " x", "\u0303", " a", ".", "b", " ", " c",
                       "+", "d", "\n", "\n"],
    "default": ["don", "'", "t", " ", "123", "4", " naïve", " x", "\u0303", " a", ".", "b", " ", " c", "+", "d",
                "\n\n"],
}
# fmt: on


@pytest.mark.parametrize("pre", WORDS)
def test_patterns_cut_in_turn(pre: str) -> None:
    cut = from_metadata(byte_level(pre=pre), "x.gguf").inner.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[start:stop] for _, (start, stop) in cut] == WORDS[pre]


def test_names_of_one_splitting_give_one_vocabulary() -> None:
    for names in (["dbrx", "smaug-bpe"], ["gpt-2", "mellum"], ["llama-bpe", "pixtral"]):
        assert len({from_metadata(byte_level(pre=pre), "x.gguf").hash for pre in names}) == 1
    whole, plain = (from_metadata(byte_level(pre=pre), "x.gguf") for pre in ("lfm2", "glm4"))
    assert whole.adds_bos and not plain.adds_bos, "where the file does not say whether texts begin with a token"
    assert json.dumps(whole.as_json()["pre_tokenizer"]) == json.dumps(plain.as_json()["pre_tokenizer"])
    assert len(BY_NAME) >= 60


# --- words and letters -----------------------------------------------------------------------------------------------

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]", "a", "##b", "[", "##[", "]", "##]", "x"]


def in_gguf(word: str, names_stay: bool) -> str:
    """names_stay: whole names in brackets are left as they are, as older converters do."""
    if names_stay and len(word) > 2 and word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


@pytest.mark.parametrize("names_stay", [True, False])
def test_a_bracket_begins_words_and_continues_them(names_stay: bool, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(BERT) + "\n", encoding="utf-8")
    known = load_tokenizer(tmp_path)
    tokens = [*BERT[:4], *(in_gguf(word, names_stay) for word in BERT[4:])]
    kinds = [CONTROL, UNKNOWN, CONTROL, CONTROL, *[NORMAL] * (len(BERT) - 4)]
    ids = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3}
    read = from_metadata(metadata_of(model="bert", tokens=tokens, token_type=kinds, **ids), "x.gguf")
    assert read.inner.get_vocab() == known.inner.get_vocab()
    for text in ("ab [ x ]", "[a]b[", "[[]]", "[unused0]"):
        assert read.encode_prompt(text) == known.encode_prompt(text)


@pytest.mark.parametrize(
    ("lowercase", "accents", "expected"),
    [(None, None, "ae"), (True, None, "ae"), (False, None, "AÉ"), (False, True, "AE"), (True, False, "aé")],
)
def test_case_and_accents_are_as_the_file_says(lowercase: bool | None, accents: bool | None, expected: str) -> None:
    said = {"normalizer.lowercase": lowercase, "normalizer.strip_accents": accents}
    metadata = metadata_of(model="bert", tokens=["[UNK]", "▁ae"], token_type=[UNKNOWN, NORMAL], **said)
    assert from_metadata(metadata, "x.gguf").inner.normalizer.normalize_str("AÉ") == expected


def test_tokens_with_letters_of_their_own_are_these_letters(tmp_path: Path) -> None:
    """Command R has 1,403 of them; text never becomes them."""
    tokens = ["<s>", "</s>", *LETTERS, "he", "\u231a", "a漢"]
    library: Any = Library(models.BPE({token: n for n, token in enumerate(tokens)}, [("h", "e")]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    kinds = [CONTROL, CONTROL, *[NORMAL] * (len(tokens) - 2)]
    metadata = metadata_of(model="gpt2", pre="command-r", tokens=tokens, token_type=kinds, merges=["h e"])
    for ours in (load_tokenizer(tmp_path), from_metadata(metadata, "x.gguf")):
        for text in ("he 12 \u231a café", "a漢"):
            assert ours.encode(text) == library.encode(text).ids
            assert ours.decode(ours.encode(text)) == text
        for number in (len(tokens) - 2, len(tokens) - 1):
            assert ours.decode([number]) == library.decode([number]) == tokens[number]


# --- what ends a text ------------------------------------------------------------------------------------------------


def vocabulary_of(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """What the GGUF of a small model says of its vocabulary."""
    model = build_model(language_models.modern(300, 64, 1, 64, 32))
    model.tokenizer = tokenizer
    to_gguf(model, folder / "x.gguf", "f32")
    return from_metadata(GGUFFile(folder / "x.gguf").metadata, "x.gguf")


def read_again(folder: Path, *stops: str) -> tuple[Tokenizer, Tokenizer]:
    """A vocabulary that ends at these tokens, the first of them ``eos``, and what its GGUF says of it."""
    inner: Any = Library(models.BPE({token: n for n, token in enumerate([*LETTERS, "he"])}, [("h", "e")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(list(stops))
    ids = tuple(inner.token_to_id(stop) for stop in stops)
    before = Tokenizer(inner, Roles(eos_id=ids[0], stop_ids=ids))
    return before, vocabulary_of(before, folder)


@pytest.mark.parametrize("stops", [("</s>", "<a>", "<b>"), ("<a>", "<|im_end|>", "<b>", "<|eot_id|>", "<c>")], ids=len)
def test_three_tokens_that_end_a_text_are_kept_and_all_with_known_names(stops: tuple[str, ...], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before, after = read_again(tmp_path, *stops)
    assert (after.stop_ids, after.eos_id) == (before.stop_ids, before.eos_id)


def test_a_token_that_ends_a_text_and_has_no_key_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="this model has 4: .*'<c>'"):
        before, after = read_again(tmp_path, "<s>", "<a>", "<b>", "<c>")
    assert after.stop_ids == before.stop_ids[:3]


def test_bytes_alone_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A GGUF has no empty list, and llama.cpp opens none without merges."""
    with pytest.raises(CheckpointError, match="without merges"):
        vocabulary_of(Tokenizer.train(["a"], 257), tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_roles_and_tokens_that_must_not_be_written_are_kept(tmp_path: Path) -> None:
    inner: Any = Library(models.BPE({token: n for n, token in enumerate([*LETTERS, "he"])}, [("h", "e")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(["<m>", "<p>", "<c>"])
    roles = Roles(mask_id=257, pad_id=258, cls_id=259, sep_id=259, never_ids=(3, 257))
    assert vocabulary_of(Tokenizer(inner, roles), tmp_path).roles == roles
    wrong = byte_level(pre="gpt-2") | {"tokenizer.ggml.suppress_tokens": ["a"]}
    with pytest.raises(CheckpointError, match="suppress_tokens holds 'a'"):
        from_metadata(wrong, "x.gguf")
