"""SentencePiece itself, on models of every kind that are trained here: its ids and its texts, and ours.

python tests/peers/sentencepiece_models.py --texts 500
"""

from __future__ import annotations

import argparse
import inspect
import io
import itertools
import random
import tempfile
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from _counts import Counts

from pellucid.errors import CheckpointError
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_files import load_tokenizer

LINES = [
    *inspect.getsource(textwrap).splitlines(),
    *["naïve café déjà vu ﬁne", "漢字かな交じり文 ガギグ", "ｆｕｌｌ ｗｉｄｔｈ", "Straße ΣΊΣΥΦΟΣ"] * 20,
    *["tiếng Việt", "한국어 문장"] * 20,
]
# fmt: off
WORDS = ["a", "the", " ", "  ", "   ", "\n", "\t", "\r\n", "é", "e\u0301", "ﬁ", "漢", "👩\u200d👧", "self.", "X9",
         "don't", "Σ", "(", ")", "Việt", "한국어", "ガギ", "ｶﾞ", "①", "½", "\u00a0", "\u3000", "\u200b", "x\u0303",
         "1234", "▁", "Ẹ\u0302", "X\u0303", "<s>", "</s>", "<unk>", "<b>", "foo", "self", "x", "ＡＢ", "İ", "ß", "…",
         "\u0345", "\u0308\u0301"]
# fmt: on
SYMBOLS = ["foo", ".", "(", "self▁x", "<b>", "ﬁ"]
YES_NO = (True, False)
RULES = ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"]


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Options of SentencePiece's trainer, by a name that tells them apart."""
    for kind, rule in itertools.product(("bpe", "unigram"), RULES):
        yield f"{kind} {rule}", {"model_type": kind, "normalization_rule_name": rule}
    for kind, prefix, squeeze, bytes_too in itertools.product(("bpe", "unigram"), YES_NO, YES_NO, YES_NO):
        rule = "nmt_nfkc" if bytes_too else "identity"
        options = {"add_dummy_prefix": prefix, "remove_extra_whitespaces": squeeze, "byte_fallback": bytes_too}
        name = f"{kind} symbols{' prefix' * prefix}{' squeeze' * squeeze}{' bytes nfkc' * bytes_too}"
        yield name, {"model_type": kind, "normalization_rule_name": rule, "user_defined_symbols": SYMBOLS, **options}
    spaces = {"allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False}
    yield "bpe pieces of spaces", {"model_type": "bpe", "user_defined_symbols": ["▁▁", "\n"], **spaces}


def trained(options: dict[str, Any]) -> bytes:
    """A model of some hundred pieces."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=made, vocab_size=700, hard_vocab_limit=False, minloglevel=2,
        num_threads=1, **options,
    )  # fmt: skip
    return made.getvalue()


def texts(n: int) -> list[str]:
    """``n`` texts: words of ``WORDS``, any characters, and both with their letters in parts."""
    chance = random.Random(0)
    planes = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x1E00, 0x2000), (0x3040, 0x3100), (0xAC00, 0xD7A4),
              (0xFF00, 0xFFF0), (0x1100, 0x1200), (0x2000, 0x2200), (0x1F600, 0x1F650)]  # fmt: skip

    def one() -> str:
        if chance.random() < 0.6:
            text = "".join(chance.choices(WORDS, k=chance.randint(0, 12)))
        else:
            text = "".join(chr(chance.randrange(*chance.choice(planes))) for _ in range(chance.randint(1, 20)))
        return unicodedata.normalize(chance.choice(["NFC", "NFD"]), text) if chance.random() < 0.5 else text

    return [one() for _ in range(n)]


def compare(name: str, model: bytes, given: list[str], counts: Counts) -> None:
    """Ids of every text, and the text of these ids."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.model").write_bytes(model)
        try:
            ours: Tokenizer = load_tokenizer(folder)
        except CheckpointError as error:
            return counts.add(name, "refused", error.problem[:100], len(given))
    for text in given:
        ids, expected = ours.encode(text), theirs.encode(text)
        note = ""
        if ids != expected:
            note = f"{text!a}: expected {theirs.encode(text, out_type=str)}, seen {ours.tokens_as_text(ids)}"
        elif theirs.unk_id() not in ids and ours.decode(ids) != theirs.decode(ids):
            note = f"{ids}: expected {theirs.decode(ids)!a}, seen {ours.decode(ids)!a}"
        counts.add(name, "wrong" if note else "right", note)
    return None


def main() -> int:
    """Print the counts; 1 where any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=500)
    given, counts = texts(parser.parse_args().texts), Counts()
    for name, options in settings():
        compare(name, trained(options), given, counts)
    return counts.report(f"SentencePiece, {len(counts.rows)} models")


if __name__ == "__main__":
    raise SystemExit(main())
