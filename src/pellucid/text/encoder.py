"""From a text to ids, exactly: special tokens that a text spells stay text, and long texts are encoded in parts."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pellucid.text.pieces import pieces, refuse_surrogates
from pellucid.text.sentence_normal import Normal, one_of
from pellucid.text.tokenizer_json import after_special, explained, without_beginning

if TYPE_CHECKING:
    import tokenizers

_LOCK = threading.RLock()  # a vocabulary's one switch, whether special tokens are seen in text, is turned under it


class Encoder:
    """The ids of texts. unk: the unknown token's id, the one special token that may stand for text.

    normal: what SentencePiece does to a text before ``inner`` sees it. Where it is given, added tokens are found in the
    text as it was, and each ends what stands before it; the symbols of ``normal`` are found in what it makes of a text.
    """

    def __init__(self, inner: tokenizers.Tokenizer, unk: int | None, normal: Normal | None):
        self.inner, self.normal = inner, normal
        self._added = {token.content: (n, token) for n, token in sorted(inner.get_added_tokens_decoder().items())}
        special = ((written, n) for written, (n, token) in self._added.items() if token.special)
        self._never = frozenset(n for written, n in special if len(written) > 1) - {unk}
        self._literal = _spelled_pieces(inner, unk)

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text alone."""
        if self._apart is None or not any(map(self._apart.search, texts)):
            return self._encode_texts(self.inner, texts)
        return [self.between(parts[::2], parts[1::2]) for parts in map(self._apart.split, texts)]

    def pair(self, text: str, pair: str) -> tuple[list[int], list[int]]:
        """Of two texts as a model expects them, and for each id which of the two it belongs to."""
        refuse_surrogates(text + pair)
        if self.normal is not None:
            text, pair = self.normal(text), self.normal(pair)
        with _LOCK, explained():
            encoding = self.inner.encode(text, pair)
        return encoding.ids, encoding.type_ids

    def marked(self, text: str) -> list[int]:
        """Of a text in which special tokens are written out: they become their ids."""
        if self._marks is not None:
            parts = self._marks.split(text)
            return self.between(parts[::2], parts[1::2])
        refuse_surrogates(text)
        if self.normal is not None:
            text = self.normal(text)
        with _LOCK, explained():
            self.inner.encode_special_tokens = False
            try:
                return self.inner.encode(text, add_special_tokens=False).ids
            finally:
                self.inner.encode_special_tokens = True

    def between(self, texts: Sequence[str], words: Sequence[str]) -> list[int]:
        """Of texts with added tokens between them: texts[0], words[0], texts[1], …, one text more."""
        parts = list(texts)
        for i, word in enumerate(words):  # some swallow the spaces beside them
            _, token = self._added[word]
            parts[i] = parts[i].rstrip() if token.lstrip else parts[i]
            parts[i + 1] = parts[i + 1].lstrip() if token.rstrip else parts[i + 1]
        first = self._encode_texts(self.inner, parts[:1])[0]
        after = self._encode_texts(self._behind, parts[1:])
        return first + [n for word, ids in zip(words, after, strict=True) for n in (self._added[word][0], *ids)]

    def _encode_texts(self, first: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        if self.normal is not None:
            texts = [self.normal(text) for text in texts if refuse_surrogates(text) is None]
        parts = [list(pieces(text)) for text in texts]
        begun = iter(self._encode_all(first, [of_text[0] for of_text in parts]))
        rest = [piece for of_text in parts for piece in of_text[1:]]
        more = iter(self._encode_all(self._inside, rest) if rest else ())
        return [[*next(begun), *(n for _ in of_text[1:] for n in next(more))] for of_text in parts]

    def _encode_all(self, inner: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
        with _LOCK, explained():
            found = [encoding.ids for encoding in inner.encode_batch_fast(texts, add_special_tokens=False)]
        return [
            self._spell(inner, text) if self._has_special(text, ids) else ids
            for text, ids in zip(texts, found, strict=True)
        ]

    def _has_special(self, text: str, ids: list[int]) -> bool:
        return not self._never.isdisjoint(ids) or bool(self._literal and self._literal.search(text))

    def _spell(self, inner: tokenizers.Tokenizer, text: str) -> list[int]:
        """Ids of a text of which some pieces were taken for special tokens: it is cut inside these."""
        with _LOCK, explained():
            encoding = inner.encode(text, add_special_tokens=False)
        cuts = {
            start + 1
            for number, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
            if number in self._never and stop - start > 1
        }
        cuts |= {found.start() + 1 for found in self._literal.finditer(text)} if self._literal else set()
        places = [0, *sorted(cuts), len(text)]
        if len(places) == 2:  # one character that is written as a special token
            return [number for number in encoding.ids if number not in self._never]
        first, *rest = [text[start:stop] for start, stop in itertools.pairwise(places) if start < stop]
        parts = [*self._encode_all(inner, [first]), *self._encode_all(self._inside, rest)]
        return list(itertools.chain(*parts))

    @cached_property
    def _marks(self) -> re.Pattern[str] | None:
        """The added tokens at which a text is cut before ``normal`` changes it."""
        return one_of(self._added.keys() - set(self.normal.symbols)) if self.normal is not None else None

    @cached_property
    def _apart(self) -> re.Pattern[str] | None:
        """Those of them that are not special."""
        if self.normal is None:
            return None
        return one_of({word for word, (_, token) in self._added.items() if not token.special} - {*self.normal.symbols})

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The vocabulary for what stands inside a text: some put a space before its first word."""
        return self.inner if self.normal is not None else without_beginning(self.inner)

    @cached_property
    def _behind(self) -> tokenizers.Tokenizer:
        """The vocabulary for what stands behind a special token."""
        return self.inner if self.normal is not None else after_special(self.inner)


def _spelled_pieces(inner: tokenizers.Tokenizer, unk: int | None) -> re.Pattern[str] | None:
    """What a unigram model would find in a text that merely spells it: bytes, and the unknown token."""
    from tokenizers.models import Unigram

    if not isinstance(inner.model, Unigram):
        return None
    unknown = inner.id_to_token(unk) if unk is not None else None
    return re.compile("|".join(["<0x[0-9A-F]{2}>", *([re.escape(unknown)] if unknown and len(unknown) > 1 else [])]))
