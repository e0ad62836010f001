"""Byte-level BPE: any text to integers and back, exactly, byte for byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from pellucid.errors import CheckpointError, DataError, UsageError
from pellucid.files import write_text

if TYPE_CHECKING:
    import tokenizers

Progress = Callable[[int], None]  # told how many more bytes of text are done; whoever passes it owns the display
END_OF_TEXT = "<|endoftext|>"

# Where a text may be cut into words before merges are learned: contractions; letters with the one character before
# them; up to three digits; punctuation with its line ends; indentation and space. The alternatives are those of
# GPT-4's splitting. The bounds are ours: without them "aaaa…" is one word, and one word's merges are not linear.
_WORDS = (
    r"(?i:'(?:[sdmt]|ll|ve|re))"
    r"|[^\r\n\p{L}\p{N}]?\p{L}{1,64}"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]{1,64}[\r\n]{0,64}"
    r"|\s{0,64}[\r\n]{1,64}"
    r"|\s{1,64}(?!\S)"
    r"|\s{1,64}"
)
_PIECE = 1 << 15  # characters encoded at a time: bounds memory and lets the encoder's threads share a long text
_BETWEEN_WORDS = re.compile(
    r"(?<=\S)[ \t]|(?<=[^\W_])\s"
)  # no alternative of _WORDS reaches across, or looks across, this place


def pieces(text: str) -> Iterator[str]:
    """``text`` in parts of at most ``2 * _PIECE`` characters, cut where words end whenever there is such a place.

    Encoding the parts is encoding the text, unless one word is longer than a part. Raises DataError for text that has
    no UTF-8 form (an unpaired surrogate).
    """
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        problem = f"character {error.start} of the text is an unpaired surrogate, U+{ord(text[error.start]):04X}"
        raise DataError(problem, "it has no UTF-8 form: decode the text properly, or remove it") from error
    start = 0
    while len(text) - start > 2 * _PIECE:
        place = _BETWEEN_WORDS.search(text, start + _PIECE, start + 2 * _PIECE)
        stop = place.start() if place else start + 2 * _PIECE
        yield text[start:stop]
        start = stop
    yield text[start:]


def sample(texts: Sequence[str], characters: int) -> Iterator[str]:
    """Pieces spread evenly over ``texts``, about ``characters`` in all: enough to learn a vocabulary of a huge text."""
    total, seen, taken = sum(map(len, texts)), 0, 0
    for text in texts:
        for piece in pieces(text):
            if taken * total <= seen * characters:
                taken += len(piece)
                yield piece
            seen += len(piece)


def _byte_of_letter() -> dict[str, int]:
    """The printable character by which byte-level vocabularies write each byte (Radford et al. 2019, GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


class Tokenizer:
    """A byte-level BPE vocabulary (Sennrich et al. 2016, on bytes) with one special token, ``<|endoftext|>``.

    That token begins every document (``bos_id``) and ends it (``eos_id``): one id. Text never encodes to it, even text
    in which it is written out.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        """Wrap a byte-level ``tokenizers.Tokenizer``; raises CheckpointError for any other kind."""
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # "<|endoftext|>" inside a text is text (this is not kept by its JSON)
        self.inner = inner
        end = inner.token_to_id(END_OF_TEXT)
        if end is None:
            raise CheckpointError(f"the tokenizer has no token {END_OF_TEXT!r}", "only such vocabularies can be used")
        self.bos_id: int = end
        self.eos_id: int = end
        self._bytes = self._table()

    def _table(self) -> list[bytes]:
        special = {number for number, token in self.inner.get_added_tokens_decoder().items() if token.special}
        vocabulary = {number: token for token, number in self.inner.get_vocab(with_added_tokens=True).items()}
        if sorted(vocabulary) != list(range(len(vocabulary))):
            raise CheckpointError("the tokenizer's ids are not 0, 1, 2, …", "only such vocabularies can be used")
        byte = _byte_of_letter()
        try:
            return [
                b"" if number in special else bytes(byte[letter] for letter in vocabulary[number])
                for number in range(len(vocabulary))
            ]
        except KeyError as error:
            raise CheckpointError(
                f"the tokenizer is not byte-level: a token has {error.args[0]!r}", "only byte-level BPE can be used"
            ) from error

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int, progress: Progress | None = None) -> Tokenizer:
        """Learn merges from ``texts``; the same texts give the same vocabulary, of at most ``vocab_size`` tokens.

        A short text has fewer pairs to merge: ``vocab_size`` of the result says how many there are.
        Raises UsageError below 257 (256 bytes and one special token).
        """
        if vocab_size < 257:
            raise UsageError(f"vocab_size={vocab_size} is too small", "at least 257: 256 bytes and <|endoftext|>")
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [
                pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )

        def stream() -> Iterator[str]:
            for text in texts:
                for piece in pieces(text):
                    yield piece
                    if progress:
                        progress(len(piece.encode()))

        inner.train_from_iterator(stream(), trainer)
        return Tokenizer(inner)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, the special one included."""
        return len(self._bytes)

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON: equal exactly when two tokenizers are the same."""
        canonical = json.dumps(json.loads(self.inner.to_str()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Token ids of ``text``, with ``<|endoftext|>`` before them if ``bos``."""
        ids = self.encode_batch([text])[0]
        return [self.bos_id, *ids] if bos else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of several texts at once, on all cores."""
        parts = [list(pieces(text)) for text in texts]
        flat = [piece for of_text in parts for piece in of_text]
        encoded = iter(self.inner.encode_batch_fast(flat, add_special_tokens=False))
        return [[number for _ in of_text for number in next(encoded).ids] for of_text in parts]

    def bytes_of(self, number: int) -> bytes:
        """The bytes one token stands for, b"" for a special one; raises DataError for an id out of range."""
        if not 0 <= number < len(self._bytes):
            raise DataError(
                f"token id {number} is not in 0…{self.vocab_size - 1}", f"this tokenizer has {self.vocab_size} tokens"
            )
        return self._bytes[number]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of ``ids`` (a list, array or 1-D tensor); special tokens are left out.

        Bytes that are not UTF-8 show as U+FFFD. Raises DataError for an id out of range.
        """
        return b"".join(self.bytes_of(index(number)) for number in ids).decode("utf-8", errors="replace")

    def tokens_as_text(self, ids: Iterable[SupportsIndex]) -> list[str]:
        r"""Each token by itself, to be shown: a part of a character as ``\xNN``, a special token by its name."""
        return [self._shown(index(number)) for number in ids]

    def _shown(self, number: int) -> str:
        raw = self.bytes_of(number)
        return raw.decode("utf-8", errors="backslashreplace") if raw else str(self.inner.id_to_token(number))

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json`` (the format of the ``tokenizers`` library), whole or not at all."""
        write_text(Path(path), self.inner.to_str())

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Read what ``save`` wrote; raises CheckpointError when missing, damaged or not byte-level."""
        import tokenizers

        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", "restore it, or train a tokenizer again"
            ) from error
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the JSON
            raise CheckpointError(f"{path} is not a tokenizer: {error}", "restore it from a copy") from error
        try:
            return Tokenizer(inner)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error.problem}", error.remedy) from error

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:12]!r})"

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield "vocab_size", self.vocab_size
        yield "hash", self.hash[:12]
