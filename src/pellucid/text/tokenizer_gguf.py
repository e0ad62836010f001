"""The tokenizer that a GGUF file carries in its metadata (the keys are those of llama.cpp's ``tokenizer.ggml.*``)."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pellucid.errors import CheckpointError
from pellucid.text.gguf_splits import BY_NAME
from pellucid.text.sentence_normal import Normal, built
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_build import (
    Config,
    Kind,
    Piece,
    added,
    byte_bpe,
    sentence_bpe,
    sentence_unigram,
    word_piece,
)
from pellucid.text.tokenizer_json import around, build
from pellucid.text.tokenizer_roles import Roles, make_special

_PREFIX = "tokenizer.ggml."
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "padding": "pad",
    "mask": "mask",
    "cls": "cls",
    "seperator": "sep",
}
_COMPOSED = {"qwen2", "qwen35", "mpt", "olmo"}  # those that first write accents and letters as one character
_WRAPPED = {"roberta-bpe", "jina-v1-en", "jina-v2-code"}  # between a token that begins a text and one that ends it
_GPT_2 = ("gpt2", "gptneox")  # architectures whose vocabularies are split as GPT-2's
_NAME = re.compile(r"\[.+\]")  # of a token that stands for no text
# A GGUF names one token that ends a text, but chat models also end turns; these are theirs.
TURN_ENDS = """<|im_end|> <|eot_id|> <|eom_id|> <|end|> <|end_of_text|> <|endoftext|> <end_of_turn> <eos> </s> <EOT>
    <|END_OF_TURN_TOKEN|>""".split()


def from_metadata(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer in a GGUF's ``metadata``; ``where`` names the file in errors.

    Raises CheckpointError where a key is missing, of a wrong type, or says what is not known here.
    """
    try:
        return _Metadata(metadata, where).tokenizer()
    except CheckpointError as error:
        problem = error.problem if error.problem.startswith(where) else f"{where}: {error.problem}"
        raise CheckpointError(problem, error.remedy or "get the file from another source") from error


def _is_number(value: Any) -> bool:
    """Finite, and no longer than a file can hold."""
    return isinstance(value, int | float) and -(2.0**63) <= value <= 2.0**64


class _Metadata:
    """``tokenizer.ggml.*``, read key by key with the types checked."""

    def __init__(self, metadata: Mapping[str, Any], where: str):
        self.all, self.where = metadata, where
        self.pieces = self._pieces()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the metadata describe. Raises CheckpointError naming what is missing or not known."""
        model = self.get("model", str)
        pre = self._pre() if model == "gpt2" else ""
        normal = self._normal() if model in ("llama", "t5") else None
        config, begun, ended = self._config(model, pre, normal)
        begins, ends = self.get("add_bos_token", bool, begun), self.get("add_eos_token", bool, ended)
        ids = {role: self._id(f"{name}_token_id") for name, role in ROLES.items()}
        if model == "bert":
            ids["cls"] = ids["cls"] if ids["cls"] is not None else ids["bos"]
            before, after, ids["bos"], ids["eos"] = ids["cls"], ids["sep"], None, None
        else:
            before, after = ids["bos"] if begins else None, ids["eos"] if ends else None
        ends_of = [[(self.pieces[number].text, number)] if number is not None else [] for number in (before, after)]
        config["post_processor"] = around(ends_of[0], ends_of[1])
        inner, normal = (build(config, self.where), None) if normal is None else built(config, normal, self.where)
        make_special(inner, {number for number in (ids["bos"], ids["eos"]) if number is not None})
        stops, numbered = self._stops(ids["eos"]), dict[str, Any]({f"{role}_id": n for role, n in ids.items()})
        roles = Roles(**numbered, stop_ids=stops, never_ids=self._never(), chat_template=self._template())
        return Tokenizer(inner, roles, normal)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.all.get(_PREFIX + key, default)
        if not isinstance(value, kind):
            problem = "is missing" if value is None else f"is {str(value)[:80]!r}"
            raise CheckpointError(f"{_PREFIX}{key} {problem}", f"it must be of type {kind.__name__}")
        return value

    def _pieces(self) -> list[Piece]:
        tokens = self.get("tokens", Sequence)
        scores = self._beside(tokens, "scores", 0.0)
        kinds = self._beside(tokens, "token_type", int(Kind.NORMAL))
        for number, token in enumerate(tokens):
            if not isinstance(token, str):
                raise CheckpointError(f"{_PREFIX}tokens: token {number} is {str(token)[:80]!r}", "it must be text")
        return [Piece(*entry) for entry in zip(tokens, scores, kinds, strict=True)]

    def _beside(self, tokens: Sequence[Any], key: str, default: int | float) -> Sequence[Any]:
        values = self.get(key, Sequence, [default] * len(tokens))
        if len(values) != len(tokens):
            problem = f"{_PREFIX}{key} has {len(values)} entries, for {len(tokens)} tokens"
            raise CheckpointError(problem, "it needs one number for each")
        if wrong := [value for value in values if not _is_number(value)]:
            raise CheckpointError(f"{_PREFIX}{key} holds {str(wrong[0])[:80]!r}", "it needs a finite number for each")
        return [type(default)(value) for value in values]

    def _id(self, key: str) -> int | None:
        number = self.all.get(_PREFIX + key)
        if number is None or number in (-1, 0xFFFFFFFF):  # llama.cpp's "there is none"
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.pieces):
            raise CheckpointError(f"{_PREFIX}{key} is {number!r}", f"there are {len(self.pieces)} tokens")
        return number

    def _normal(self) -> Normal:
        return Normal(
            self._charsmap(),
            prefix=self.get("add_space_prefix", bool, True),
            squeeze=self.get("remove_extra_whitespaces", bool, False),
        )

    def _config(self, model: str, pre: str, normal: Normal | None) -> tuple[Config, bool, bool]:
        """The tokenizer.json, and whether texts begin and end with a token where the file does not say it."""
        match model, normal:
            case "llama", Normal():
                return sentence_bpe(self._with_unknown(), normal), True, False
            case "t5", Normal():
                return sentence_unigram(self._with_unknown(), normal), False, True
            case "bert", _:
                return self._bert(), True, True
            case "gpt2", _:
                return self._bpe(pre), BY_NAME[pre].begins or pre in _WRAPPED, pre in _WRAPPED
            case _:
                raise CheckpointError(f"{_PREFIX}model is {model!r}", "known: llama, gpt2, bert, t5")

    def _charsmap(self) -> bytes:
        value = self.all.get(f"{_PREFIX}precompiled_charsmap", b"")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            with suppress(ValueError):
                return base64.b64decode(value, validate=True)
        elif isinstance(value, Sequence) and all(isinstance(byte, int) and -128 <= byte < 256 for byte in value):
            return bytes(byte % 256 for byte in value)
        raise CheckpointError(f"{_PREFIX}precompiled_charsmap is {str(value)[:80]}", "it must be bytes")

    def _with_unknown(self) -> list[Piece]:
        """Converters often write the unknown token as one more control token: its id tells."""
        unknown = self._id("unknown_token_id")
        return [
            Piece(piece.text, piece.score, Kind.UNKNOWN) if number == unknown and piece.kind == Kind.CONTROL else piece
            for number, piece in enumerate(self.pieces)
        ]

    def _pre(self) -> str:
        """llama.cpp's name for how texts are split. Where files of before May 2024 do not say it, a warning does."""
        if (pre := self.all.get(f"{_PREFIX}pre")) is None:
            if self.all.get("general.architecture") not in _GPT_2:
                warnings.warn(
                    f'{self.where}: {_PREFIX}pre is missing, so texts are split as GPT-2 splits them ("gpt-2"), and the'
                    " model may read other tokens than it was taught; get a file that says it, or the published folder",
                    stacklevel=4,
                )
            return "gpt-2"
        if not isinstance(pre, str) or pre not in BY_NAME:
            raise CheckpointError(f"{_PREFIX}pre is {str(pre)[:80]!r}", f"known: {', '.join(sorted(BY_NAME))}")
        return pre

    def _bpe(self, pre: str) -> Config:
        merges, split = list(self._merges()), BY_NAME[pre]
        composed = {"type": "NFC"} if pre in _COMPOSED else None
        return byte_bpe(self._vocab(), merges, added(self.pieces), split.steps, composed, split.whole)

    def _merges(self) -> Iterator[list[str]]:
        for number, merge in enumerate(self.get("merges", Sequence)):
            if not isinstance(merge, str) or len(pair := merge.split(" ")) != 2:
                raise CheckpointError(
                    f"{_PREFIX}merges: merge {number} is {str(merge)[:80]!r}", "two tokens, one space"
                )
            yield pair

    def _vocab(self) -> dict[str, int]:
        vocab: dict[str, int] = {}
        for number, piece in enumerate(self.pieces):
            if vocab.setdefault(piece.text, number) != number:
                raise CheckpointError(f"tokens {vocab[piece.text]} and {number} are both {piece.text[:80]!r}")
        return vocab

    def _bert(self) -> Config:
        """A WordPiece vocabulary; GGUF marks the beginnings of words where BERT's own file marks continuations.

        Names in brackets, such as "[unused0]", stand as they are in older files, which do not call them control tokens.
        """

        def published(piece: Piece) -> Piece:
            text = piece.text
            if piece.kind in (Kind.CONTROL, Kind.UNKNOWN) or _NAME.fullmatch(text):
                return piece
            return Piece(text[1:] if text.startswith("▁") else "##" + text, piece.score, piece.kind)

        self.pieces = [published(piece) for piece in self.pieces]
        words = (piece.text for piece in self.pieces if piece.kind == Kind.NORMAL and not _NAME.fullmatch(piece.text))
        lowercase = self.get("normalizer.lowercase", bool, all(word == word.lower() for word in words))
        accents = self.get("normalizer.strip_accents", bool, lowercase)
        return word_piece(self._vocab(), added(self.pieces), lowercase, strip_accents=accents)

    def _stops(self, eos: int | None) -> tuple[int, ...]:
        """Every token that ends a text or a turn: those the file names, and those with a name that says so."""
        named = {self._id(f"{name}_token_id") for name in ("eot", "eom")} | {eos}
        known = {n for n, piece in enumerate(self.pieces) if piece.kind == Kind.CONTROL and piece.text in TURN_ENDS}
        return tuple(sorted(number for number in named | known if number is not None))

    def _never(self) -> tuple[int, ...]:
        """The tokens that are not to be written."""
        listed = self.get("suppress_tokens", Sequence, ())
        if wrong := [number for number in listed if type(number) is not int]:
            raise CheckpointError(f"{_PREFIX}suppress_tokens holds {str(wrong[0])[:80]!r}", "ids of tokens")
        return tuple(sorted({number for number in listed if 0 <= number < len(self.pieces)}))

    def _template(self) -> str | None:
        template = self.all.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise CheckpointError(f"tokenizer.chat_template is {str(template)[:80]}", "it must be a text")
        return template
