"""SentencePiece's own files (Kudo and Richardson 2018), turned into what a tokenizer.json would hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import CheckpointError
from pellucid.files import read_bytes, read_json
from pellucid.text.sentence_normal import MARK, Normal, built
from pellucid.text.tokenizer_build import Config, Kind, Piece, sentence_bpe, sentence_unigram
from pellucid.text.tokenizer_json import around
from pellucid.text.tokenizer_limits import MAX_TOKENS

if TYPE_CHECKING:
    import tokenizers

_UNIGRAM, _BPE = 1, 2  # of TrainerSpec.ModelType
_HIDDEN = "\U0010ffff"  # no character, so that a piece which begins with it is in no text
# What stands around a text, by the model_type of config.json; where it is another, the begin-of-text token if there is
# one. Of ids that were shifted when the vocabulary was taken over (XLM-R, mBART, …), the file knows nothing.
_ENDS: dict[str, tuple[str | None, str | None]] = {
    **dict.fromkeys(("t5", "mt5", "umt5", "pegasus"), (None, "</s>")),
    "albert": ("[CLS]", "[SEP]"),
}
_SHIFTED = ("xlm-roberta", "xlm-roberta-xl", "camembert", "mbart", "m2m_100", "nllb", "xglm", "plbart")


def sentencepiece(
    path: Path, config: Mapping[str, Any], model: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, Normal | None]:
    """The tokenizer in a ``tokenizer.model`` or ``spiece.model``; configs: what lies beside it.

    Raises CheckpointError where it is damaged, or of a family whose ids are not those in the file.
    """
    family = model.get("model_type")
    if family in _SHIFTED:
        raise CheckpointError(f"{path}: {family} numbers its tokens otherwise than this file", "add its tokenizer.json")
    proto = _proto(path)
    pieces, trainer = _pieces(proto, path), proto.trainer_spec
    if family in ("t5", "mt5", "umt5") and not any(piece.text == "<extra_id_0>" for piece in pieces):
        pieces += [Piece(f"<extra_id_{n}>", 0.0, Kind.CONTROL) for n in reversed(range(_extra_ids(path, config)))]
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise CheckpointError(f"{path}: a model of type {trainer.model_type}", "known: unigram (1) and BPE (2)")
    is_unigram = trainer.model_type == _UNIGRAM
    normal = _normal(proto, path, _albert(config) if family == "albert" else ())
    try:
        made = sentence_unigram(_found_inside(pieces), normal) if is_unigram else sentence_bpe(pieces, normal)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.problem}", error.remedy or "restore it from a copy") from error
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    begin = pieces[trainer.bos_id].text if 0 <= trainer.bos_id < len(pieces) else None
    ends = _ENDS.get(family, (begin, None)) if isinstance(family, str) else (begin, None)
    before, after = ([(token, ids[token])] if token is not None and token in ids else [] for token in ends)
    made["post_processor"] = around(before, after)
    return built(made, normal, str(path))


def marian(folder: Path, config: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, Normal | None]:
    """Marian's pair of vocabularies as one: text is cut by ``source.spm``, ids are those of ``vocab.json``.

    Pieces of the other language are written so that no text has them, and read as themselves. A piece of source.spm
    that vocab.json leaves out was in no text the model has seen; here the text is cut into others.
    """
    path = folder / "vocab.json"
    if config.get("separate_vocabs"):
        raise CheckpointError(f"{folder}: separate vocabularies for the two languages", "use a model with one")
    vocab = read_json(path, CheckpointError)
    if not isinstance(vocab, dict) or sorted(vocab.values(), key=str) != sorted(range(len(vocab)), key=str):
        raise CheckpointError(f"{path} does not number its tokens 0, 1, 2, …", "restore it from a copy")
    proto = _proto(folder / "source.spm")
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise CheckpointError(f"{folder / 'source.spm'} is no unigram model", "restore it from a copy")
    scores = {piece.text: piece.score for piece in _pieces(proto, folder / "source.spm") if piece.kind == Kind.NORMAL}
    kinds = {"<unk>": Kind.UNKNOWN, "</s>": Kind.CONTROL, "<pad>": Kind.CONTROL}
    pieces: list[Piece] = []
    for token in sorted(vocab, key=vocab.__getitem__):
        kind = kinds.get(token, Kind.USER_DEFINED if token.startswith(">>") and token.endswith("<<") else Kind.NORMAL)
        hidden = kind == Kind.NORMAL and token not in scores
        pieces.append(Piece(_HIDDEN * hidden + token, scores.get(token, min(scores.values(), default=0.0)), kind))
    normal = _normal(proto, folder / "source.spm")
    made = sentence_unigram(pieces, normal)
    made["decoder"]["decoders"].insert(0, {"type": "Replace", "pattern": {"String": _HIDDEN}, "content": ""})
    made["post_processor"] = around([], [("</s>", vocab["</s>"])] if "</s>" in vocab else [])
    return built(made, normal, str(path))


def _proto(path: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2 as schema
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a SentencePiece model, which needs the packages sentencepiece and protobuf",
            "pip install pellucid[sentencepiece], or add the model's tokenizer.json",
        ) from error
    try:
        proto = getattr(schema, "ModelProto").FromString(read_bytes(path, CheckpointError))  # noqa: B009  (made as it is imported)
    except DecodeError as error:
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}", "restore it from a copy") from error
    if not 0 < len(proto.pieces) <= MAX_TOKENS:
        raise CheckpointError(f"{path} has {len(proto.pieces):,} pieces", f"1 to {MAX_TOKENS:,}")
    return proto


def _pieces(proto: Any, path: Path) -> list[Piece]:
    if odd := [number for number, piece in enumerate(proto.pieces) if not isinstance(piece.piece, str)]:
        raise CheckpointError(f"{path}: piece {odd[0]} is not UTF-8", "restore it from a copy")
    return [Piece(piece.piece, piece.score, piece.type) for piece in proto.pieces]


def _found_inside(pieces: Sequence[Piece]) -> list[Piece]:
    """User-defined symbols as pieces that a unigram model finds: a symbol of n bytes counts as n best pieces."""
    scores = [piece.score for piece in pieces if piece.kind == Kind.NORMAL]
    best, least = max(scores, default=0.0), min(scores, default=0.0)

    def inside(piece: Piece) -> Piece:
        if piece.kind != Kind.USER_DEFINED:
            return piece
        return Piece(piece.text, max(len(piece.text.encode()) * best - 0.1, least), Kind.NORMAL)

    return [inside(piece) for piece in pieces]


def _normal(proto: Any, path: Path, before: Sequence[Config] = ()) -> Normal:
    spec = proto.normalizer_spec
    if not spec.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        raise CheckpointError(f"{path}: spaces are not written as a ▁ before words", "add the model's tokenizer.json")
    symbols = (piece.text.replace(MARK, " ") for piece in _pieces(proto, path) if piece.kind == Kind.USER_DEFINED)
    options = spec.precompiled_charsmap, spec.add_dummy_prefix, spec.remove_extra_whitespaces
    try:
        return Normal(*options, tuple(before), tuple(symbols))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.problem}", error.remedy) from error


def _extra_ids(path: Path, config: Mapping[str, Any]) -> int:
    """How many tokens T5 keeps for its gaps, beyond those in the file."""
    number = config.get("extra_ids", 100)
    if not isinstance(number, int) or not 0 <= number <= 1000:
        raise CheckpointError(f"{path}: extra_ids is {number!r}", "a whole number up to 1000")
    return number


def _albert(config: Mapping[str, Any]) -> Sequence[Config]:
    """What ALBERT does to a text before SentencePiece does."""
    quotes = ({"type": "Replace", "pattern": {"String": old}, "content": '"'} for old in ("``", "''"))
    accents = [] if config.get("keep_accents") else [{"type": "NFKD"}, {"type": "StripAccents"}]
    return [*quotes, *accents, *([{"type": "Lowercase"}] if config.get("do_lower_case", True) else [])]
