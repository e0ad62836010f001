"""Documents that stand in a text more than once, of which the first is kept, and held-out lines that are trained on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt64

from pellucid.data.corpus import Text
from pellucid.errors import UsageError

SIMILAR = 0.8  # of the shingles of two documents together stand in both: then they are copies
SHINGLE = 5  # words
HASHES = 128
LONGEST = 1 << 20  # characters of a document that is compared with others; longer ones have no near copy by chance
LINE = 40  # characters of a line, at least, that is no copy by chance


class Kept(NamedTuple):
    """numbers: of the documents that are left. equal, alike: how many others are copies, to the byte or nearly."""

    numbers: Sequence[int]
    equal: int
    alike: int


def without_copies(documents: Sequence[Text], *, near: bool = False, told: Callable[[int], None] | None = None) -> Kept:
    """The documents but for copies of earlier ones: equal ones, found by their sha256, and with ``near`` those that
    share four fifths of their shingles of five words with an earlier one, found by MinHash (Broder 1997; Lee et al.
    2021). told: hears the bytes of each document that was read. Raises UsageError where datasketch is not installed."""
    alike = _Alike() if near else None
    seen, kept, equal, copies = set[bytes](), array("q"), 0, 0
    for number, document in enumerate(documents):
        digest = bytes.fromhex(document.digest)[:16]
        if digest in seen:
            equal += 1
        elif alike is not None and alike.is_copy(number, document):
            copies += 1
        else:
            kept.append(number)
        seen.add(digest)
        if told is not None:
            told(document.n_bytes)
    return Kept(kept, equal, copies)


class _Alike:
    """Signatures of the documents so far. Candidates share a band of them, and are then compared by all hashes."""

    def __init__(self) -> None:
        try:
            from datasketch import MinHash, MinHashLSH  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError(
                f"near-duplicates cannot be found: {error}", "pip install 'pellucid[near]', or --deduplicate exact"
            ) from error
        self._signature: Any = MinHash
        self._index: Any = MinHashLSH(threshold=SIMILAR, num_perm=HASHES)
        self._known: dict[int, Any] = {}

    def is_copy(self, number: int, document: Text) -> bool:
        """Whether an earlier document is nearly this one. If none is, this one is an earlier one from now on."""
        if document.n_characters > LONGEST:
            return False
        words = document.text.split()
        signature = self._signature(num_perm=HASHES, seed=1)
        signature.update_batch(
            {" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1))}
        )
        if any(self._known[other].jaccard(signature) >= SIMILAR for other in self._index.query(signature)):
            return True
        self._index.insert(number, signature)
        self._known[number] = signature
        return False


class Leak(NamedTuple):
    """Held-out lines of ``LINE`` characters and more, and how many of them the training text has, too."""

    lines: int
    seen: int

    @property
    def share(self) -> float:
        """Of the held-out lines those that are seen in training."""
        return self.seen / self.lines if self.lines else 0.0


def leak(training: Sequence[Text], validation: Sequence[Text]) -> Leak:
    """How much of what is held out can be learned by heart, line by line. Equal documents never stand on both sides
    (``split``); parts of documents may."""
    nothing = np.zeros(0, np.uint64)
    held = np.concatenate([nothing, *(lines for document in validation for lines in _long_lines(document))])
    wanted = np.unique(held)
    found = np.zeros(len(wanted), dtype=np.bool_)
    for lines in (lines for document in training if len(wanted) for lines in _long_lines(document)):
        places = np.minimum(np.searchsorted(wanted, lines), len(wanted) - 1)
        found[places[wanted[places] == lines]] = True
    return Leak(len(held), int(found[np.searchsorted(wanted, held)].sum()))


def _long_lines(document: Text) -> Iterator[UInt64[np.ndarray, " lines"]]:
    """Hashes of a document's long lines, block by block; a line longer than a block is passed over."""
    rest = ""
    for block in document.blocks():
        *lines, rest = (rest + block).split("\n")
        rest = rest if len(rest) < LONGEST else ""
        yield _hashes(lines)
    yield _hashes([rest])


def _hashes(lines: Sequence[str]) -> UInt64[np.ndarray, " lines"]:
    long = [line for line in map(str.strip, lines) if len(line) >= LINE]
    return np.frombuffer(b"".join(blake2b(line.encode(), digest_size=8).digest() for line in long), dtype=np.uint64)
