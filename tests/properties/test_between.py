"""What stands between special tokens is spelled as the tokenizers library spells it there, whoever typed what."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tokenizers
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from pellucid.text.chat import ChatTemplate, encode_chat
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_roles import Roles

LETTERS = "abcde<>/|usr"
MARKED = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
WAYS: dict[str, dict[str, Any]] = {  # how a space comes before a first word
    "Llama 2": {"normalizer": normalizers.Sequence(MARKED)},  # pyright: ignore[reportArgumentType]
    "Metaspace, first": {"pre_tokenizer": pre_tokenizers.Metaspace("▁", "first", split=False)},
    "Metaspace, always": {"pre_tokenizer": pre_tokenizers.Metaspace("▁", "always", split=False)},
    "Metaspace, never": {"pre_tokenizer": pre_tokenizers.Metaspace("▁", "never", split=False)},
    "bytes, with a space": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
    "bytes": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)},
}
SPECIAL = [
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("</s>", special=True, normalized=False, rstrip=True),  # Phi 3's swallow the line end after them
    AddedToken("<u>", special=True, normalized=False, lstrip=True),
]
WORDS = [token.content for token in SPECIAL]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>\n{% endfor %}<u>a"


@cache
def vocabulary(way: str) -> Tokenizer:
    space = "Ġ" if way.startswith("bytes") else "▁"
    merges = [(space, "a"), (f"{space}a", "b"), ("a", "b"), ("c", "d")]
    vocab = {token: i for i, token in enumerate([space, "Ċ", *LETTERS, *(a + b for a, b in merges)])}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    for name, part in WAYS[way].items():
        setattr(inner, name, part)
    inner.decoder = decoders.ByteLevel() if way.startswith("bytes") else decoders.Metaspace("▁")
    inner.add_special_tokens(SPECIAL)
    return Tokenizer(inner, Roles(chat_template=TEMPLATE))


parts = st.text(" abcd", max_size=6)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=examples(60))
@given(texts=st.lists(parts, min_size=3, max_size=3), words=st.lists(st.sampled_from(WORDS), min_size=2, max_size=2))
def test_parts_are_spelled_as_in_the_whole(way: str, texts: list[str], words: list[str]) -> None:
    tokenizer = vocabulary(way)
    whole = texts[0] + "".join(word + text for word, text in zip(words, texts[1:], strict=True))
    assert tokenizer.encode_between(texts, words) == tokenizer.encode_marked(whole)


@pytest.mark.parametrize("way", WAYS)
def test_typed_text_changes_nothing_around_it(way: str) -> None:
    """A message in which a special token is typed is cut at others; what stands before it is as it was."""
    tokenizer = vocabulary(way)
    earlier = {"role": "us", "content": "ab cd"}
    harmless, typed = ([earlier, {"role": "us", "content": f"ab {said}"}] for said in ("c", "<s>"))
    written = ChatTemplate(TEMPLATE).render(harmless)
    ids, plain = encode_chat(tokenizer, typed), encode_chat(tokenizer, harmless)
    assert plain == tokenizer.encode_marked(written)
    last = len(plain) - plain[::-1].index(tokenizer.special["<s>"])  # behind it stands what was typed
    assert ids[: last + 3] == plain[: last + 3]
    assert [n for n in ids if n in tokenizer.special.values()] == [n for n in plain if n in tokenizer.special.values()]


def test_the_ways_differ() -> None:
    """The control: behind a special token, two ways put a space before a word and another does not."""
    ids = {way: vocabulary(way).encode_between(["", "ab"], ["<s>"])[1:] for way in WAYS}
    spaced = [way for way, found in ids.items() if found == [vocabulary(way).inner.token_to_id("▁ab")]]
    assert spaced == ["Llama 2", "Metaspace, always"]
    first = vocabulary("Metaspace, first")
    assert first.encode("ab") == [first.inner.token_to_id("▁ab")] != ids["Metaspace, first"]
