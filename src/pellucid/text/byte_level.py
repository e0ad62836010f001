"""Byte-level BPE learned from texts (Sennrich et al. 2016, on the bytes of Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from pellucid.errors import UsageError
from pellucid.text.pieces import pieces

if TYPE_CHECKING:
    import tokenizers

Progress: TypeAlias = Callable[[int], None]  # told how many more bytes of text are done; its owner has the display

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


def byte_level(
    texts: Iterable[str], vocab_size: int, special: Sequence[str], progress: Progress | None = None
) -> tokenizers.Tokenizer:
    """The vocabulary of 256 bytes, ``special`` tokens, and merges that are learned from ``texts``.

    Raises UsageError where ``vocab_size`` is too small for the bytes and the special tokens.
    """
    if vocab_size < (least := 256 + len(special)):
        tokens = "<|endoftext|>" if len(special) == 1 else f"{len(special)} special tokens"
        raise UsageError(f"vocab_size={vocab_size} is too small", f"at least {least}: 256 bytes and {tokens}")
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
        special_tokens=list(special),
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
    return inner
