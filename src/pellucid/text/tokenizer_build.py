"""Tokenizers from their parts: pieces with scores (SentencePiece, GGUF), words (WordPiece), merges (byte-level BPE).

Each function gives what a tokenizer.json would hold, for ``tokenizer_json.build`` or ``sentence_normal.built``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from pellucid.errors import CheckpointError
from pellucid.text.sentence_normal import MARK, Normal

Config: TypeAlias = dict[str, Any]
BYTE_LEVEL: Config = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_ALL_SPACES = 1 << 10  # at the beginning of a text
_MAX_WORK = 1 << 28  # characters looked at while merges are derived; the largest published vocabularies need 2 ** 24


class Kind(IntEnum):
    """What a piece is: the numbers are SentencePiece's, and GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of a vocabulary; its id is its place."""

    text: str
    score: float = 0.0
    kind: int = Kind.NORMAL


def sentence_bpe(pieces: Sequence[Piece], normal: Normal) -> Config:
    """SentencePiece's BPE: of all neighbours, the two that make the piece of the highest score are joined.

    Bytes stand for characters that are no piece, where the vocabulary has all 256 of them.
    """
    pieces = _spelled(pieces)
    model = {
        "type": "BPE",
        "unk_token": _unknown(pieces),
        "fuse_unk": True,
        "byte_fallback": _has_bytes(pieces),
        "vocab": _numbered(pieces),
        "merges": merges_by_score(pieces),
    }
    return _sentence(model, pieces, normal)


def sentence_unigram(pieces: Sequence[Piece], normal: Normal) -> Config:
    """SentencePiece's unigram model (Kudo 2018): the pieces whose scores, logarithms of probabilities, sum highest."""
    pieces, unknown = _spelled(pieces), _unknown(pieces)
    if unknown is None:
        raise CheckpointError("the vocabulary has no token for unknown characters", "a unigram model needs one")
    lowest = min((piece.score for piece in pieces if piece.kind == Kind.NORMAL), default=0.0)
    # Pieces that are not normal are not to be found in a text; a lower score than this would also change that of an
    # unknown character, 10 below the lowest. ``Tokenizer`` spells out what is found all the same.
    vocab = [[piece.text, piece.score if piece.kind == Kind.NORMAL else lowest] for piece in pieces]
    model = {
        "type": "Unigram",
        "unk_id": [piece.text for piece in pieces].index(unknown),
        "vocab": vocab,
        "byte_fallback": _has_bytes(pieces),
    }
    return _sentence(model, pieces, normal)


def merges_by_score(pieces: Sequence[Piece]) -> list[list[str]]:
    """Every pair of normal pieces that makes a third, the highest score first: the order in which BPE joins them."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == Kind.NORMAL}
    if sum(len(text) ** 2 for text in scores) > _MAX_WORK:
        raise CheckpointError("the vocabulary's pieces are too long to derive merges from", "is it a BPE vocabulary?")
    found = [
        (score, cut, text)
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    found.sort(key=lambda merge: (-merge[0], -merge[1]))
    return [[text[:cut], text[cut:]] for _, cut, text in found]


def _spelled(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces checked; user-defined ones are found in texts as they are, so they keep spaces as spaces."""
    seen: set[str] = set()
    checked: list[Piece] = []
    for number, piece in enumerate(pieces):
        text = piece.text.replace(MARK, " ") if piece.kind == Kind.USER_DEFINED else piece.text
        if not text or text in seen:
            raise CheckpointError(f"token {number} is {'empty' if not text else f'{text[:80]!r}, as one before it'}")
        if not math.isfinite(piece.score):
            raise CheckpointError(f"token {number}, {text[:80]!r}, has the score {piece.score}")
        seen.add(text)
        checked.append(Piece(text, piece.score, piece.kind))
    return checked


def _numbered(pieces: Iterable[Piece]) -> dict[str, int]:
    return {piece.text: number for number, piece in enumerate(pieces)}


def _unknown(pieces: Iterable[Piece]) -> str | None:
    return next((piece.text for piece in pieces if piece.kind == Kind.UNKNOWN), None)


def _has_bytes(pieces: Iterable[Piece]) -> bool:
    return sum(piece.kind == Kind.BYTE for piece in pieces) == 256


def _sentence(model: Config, pieces: Sequence[Piece], normal: Normal) -> Config:
    decoders: list[Config] = [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if normal.prefix or normal.squeeze:
        most = _ALL_SPACES if normal.squeeze else 1
        decoders.append({"type": "Strip", "content": " ", "start": most, "stop": 0})
    return {
        "version": "1.0",
        "added_tokens": added(pieces),
        "normalizer": {"type": "Sequence", "normalizers": normal.steps()},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def added(pieces: Sequence[Piece]) -> list[Config]:
    """Tokens that are found in a text before anything is done to it: control tokens and user-defined ones."""
    special = (Kind.CONTROL, Kind.UNKNOWN)
    return [
        {
            "id": number,
            "content": piece.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.kind in special,
        }
        for number, piece in enumerate(pieces)
        if piece.kind in (*special, Kind.USER_DEFINED)
    ]


def word_piece(vocab: Mapping[str, int], special: Sequence[Config], lowercase: bool, **options: Any) -> Config:
    """BERT's vocabulary: words, and their continuations behind ``##``; of each word the longest beginning is taken.

    options: ``strip_accents``, ``handle_chinese_chars`` and ``clean_text`` of BERT's normalizer.
    """
    if "[UNK]" not in vocab:
        raise CheckpointError("the vocabulary has no token [UNK]", "a WordPiece vocabulary needs one")
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": lowercase}
    return {
        "version": "1.0",
        "added_tokens": list(special),
        "normalizer": {"type": "BertNormalizer", **normalizer, **options},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": dict(vocab),
        },
    }


def byte_bpe(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    special: Sequence[Config],
    split: Sequence[Config],
    normalizer: Config | None = None,
    ignore_merges: bool = False,
) -> Config:
    """Byte-level BPE (Radford et al. 2019): ``split`` cuts a text into words, whose bytes' letters are then merged.

    ignore_merges: a word that is a token is that token, whatever the merges would make of it.
    """
    return {
        "version": "1.0",
        "added_tokens": list(special),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(split)},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": dict(vocab),
            "merges": [list(merge) for merge in merges],
        },
    }
